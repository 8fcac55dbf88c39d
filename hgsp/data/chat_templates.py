"""Chats rendered by the template of a tokenizer, within limits of time, memory and length."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hgsp.data import template_process
from hgsp.data.template_process import MAX_CHARACTERS, MAX_MEMORY, MAX_SECONDS
from hgsp.errors import InputError

#: Seconds in which the process of the templates must start.
_MAX_START = 600
#: Templates print today's date with this function.
_DATE = "strftime_now"


class ChatRefusedError(InputError):
    """A chat that the template cannot render."""


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    prefixes: Sequence[tuple[int | None, bool]],
    place: str,
    **named: Any,
) -> list[str]:
    """Render a chat up to each of the ``prefixes``: a number of turns (None = all), and whether a prompt follows them.

    Args:
        place: names the chat in refusals.
        named: further variables of the template, such as ``tools``.

    Raises:
        ChatRefusedError: the template refuses the chat or fails.
        InputError: the template exceeds a limit.
    """
    turns = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
    try:
        template = tokenizer.get_chat_template(tools=named.get("tools"))
        variables = {**tokenizer.special_tokens_map, **named, "chat_template": template}
        request = json.dumps({"messages": turns, "prefixes": list(prefixes), "named": variables}, default=str)
    except (RecursionError, TypeError, ValueError) as error:
        raise _refused(f"{error}, in {place}") from error
    answer = _PROCESS.ask(request)
    if "beyond" in answer:
        raise InputError(
            expected=f"a chat template that renders a chat in {MAX_SECONDS} s, {MAX_MEMORY >> 20} MiB of memory and "
            f"{MAX_CHARACTERS:,} characters",
            got=f"more than {answer['beyond']} by that of {tokenizer.name_or_path or 'the tokenizer'}, for {place}",
            remedy="correct the template (chat_template.jinja or tokenizer_config.json), or use rows with `text`",
        )
    if "error" in answer:
        roles = ", ".join(str(turn.get("role")) for turn in messages)
        raise _refused(f"'{' '.join(answer['error'].split())}' for the roles {roles}, in {place}")
    return list(answer["texts"])


def prints_date(tokenizer: Any) -> bool:
    """Return whether the template prints today's date, so that the same chat is another text tomorrow."""
    templates = tokenizer.chat_template
    return any(_DATE in text for text in (templates.values() if isinstance(templates, Mapping) else [templates or ""]))


def _refused(got: str) -> ChatRefusedError:
    return ChatRefusedError(
        expected="messages that the model's chat template accepts",
        got=got,
        remedy="change the rows, or use rows with `text`",
    )


class _TemplateProcess:
    """The process of the templates, started for the first chat and again after one that had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, request: str) -> dict[str, Any]:
        """Return the answer to one request; a process that gives none is ended."""
        with self._lock:
            if self._process is None:
                self._start()
            answer = self._line(f"{request}\n", MAX_SECONDS)
            if answer is None:
                self.end()
                return {"beyond": f"{MAX_SECONDS} s"}
            if not answer:
                self.end()
                return {"beyond": f"{MAX_MEMORY >> 20} MiB of memory, or an error that ended its process,"}
            return dict(json.loads(answer))

    def _start(self) -> None:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", template_process.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"},
        )
        atexit.register(self.end)
        if self._line("", _MAX_START) != "\n":
            self.end()
            raise RuntimeError("the process that renders chat templates did not start")

    def _line(self, request: str, seconds: float) -> str | None:
        """Send a request and return the line that follows, empty if the process has ended, None if it took too long."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        return None if late.is_set() else answer

    def end(self) -> None:
        """End the process."""
        atexit.unregister(self.end)
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_PROCESS = _TemplateProcess()
