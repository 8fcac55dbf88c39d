"""Exit codes and one-line errors, the same for every command."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hgsp.errors import InputError, NumericalError

OUT_OF_MEMORY = (
    "no partial output is left behind. Try, in this order: --batch_size 1, --use_gradient_checkpointing, a smaller "
    "--nsamples or --seq_len, --spill_dir DIR, --offload, or --importance_method fisher (no weight gradients) or "
    "magnitude (no data)"
)

#: A full disk, a user's quota, a limit on the size of files.
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def run_guarded(
    run: Callable[[], int],
    out_of_memory: str = OUT_OF_MEMORY,
    interrupted: str = "interrupted; no partial output is left behind",
) -> int:
    """Run a command and map its failures to exit codes, each with one line: 2 for bad input, 1 for failure.

    SIGTERM, which batch systems send, is treated as Ctrl-C.

    Args:
        out_of_memory: remedies, printed when memory runs out.
        interrupted: message, printed on Ctrl-C.

    Raises:
        RuntimeError: any that is not an out-of-memory error; it is a bug and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a Windows pipe has a code page without most of Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _sigterm_as_interrupt():
            return run()
    except InputError as error:
        return fail(2, str(error))
    except NumericalError as error:
        return fail(1, str(error))
    except KeyboardInterrupt:
        return fail(1, interrupted)
    except OSError as error:
        if error.errno in FULL_DISK:
            return fail(1, f"{error.strerror}; free space or write to another disk")
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error):
            first = str(error).splitlines()[0] if str(error) else "MemoryError"
            return fail(1, f"out of memory ({first}); {out_of_memory}")
        raise


def fail(code: int, message: str) -> int:
    """Print an error line to stderr and return the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def quiet_libraries() -> None:
    """Silence progress bars and warnings of transformers and the hub; the commands do their own checks."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # deprecated names used by peft
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # one line per retry when offline
