"""The process in which chat templates run (``python -m``): requests on stdin and answers on stdout, one per line.

Templates are programs in files that others wrote. The sandbox of transformers keeps them from files and from the
network, but not from filling memory or running for ever; a process can be limited, and ended at any moment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

#: Limits of one chat: seconds, bytes of memory beyond those of the empty process, and characters written.
MAX_SECONDS, MAX_MEMORY, MAX_CHARACTERS = 10, 1 << 29, 1 << 24
#: All that the expressions of a template can raise.
FAILURES = (
    *(TemplateError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, TypeError),
    *(RuntimeError, SyntaxError, ValueError),
)


def main() -> None:
    """Answer requests until stdin is closed."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    print(flush=True)  # ready
    for line in sys.stdin:
        if hasattr(signal, "alarm"):
            signal.alarm(2 * MAX_SECONDS)  # ends this process if the one that watches it is gone
        print(json.dumps(_answer(json.loads(line), render_jinja_template)), flush=True)
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _answer(request: Mapping[str, Any], render: Any) -> dict[str, Any]:
    """Return the texts of a chat up to each of the ``prefixes``, pairs of a number of turns and whether to prompt."""
    texts: list[str] = []
    try:
        for turns, prompts in request["prefixes"]:
            chat = request["messages"][:turns]
            rendered, _ = render([chat], add_generation_prompt=prompts, **request["named"])
            texts += rendered
    except MemoryError:
        return {"beyond": f"{MAX_MEMORY >> 20} MiB of memory"}
    except FAILURES as error:
        return {"error": (str(error) or type(error).__name__)[:200]}
    if sum(map(len, texts)) > MAX_CHARACTERS:
        return {"beyond": f"{MAX_CHARACTERS:,} characters"}
    return {"texts": texts}


def _limit_memory() -> None:
    """Limit memory where the system can: not on Windows, and on macOS without effect."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
