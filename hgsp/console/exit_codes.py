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

#: Errors that are the environment's, and their remedies: full disks, quotas, limits, permissions, failing devices.
OS_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space or write to another disk"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit on open files (ulimit -n)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change the permissions or use another folder"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk or the network drive"),
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOMEM: "free memory",
}


def run_guarded(
    run: Callable[[], int],
    out_of_memory: str = OUT_OF_MEMORY,
    interrupted: str = "interrupted; no partial output is left behind",
) -> int:
    """Run a command and map its failures to exit codes, each with one line: 2 for bad input, 1 for failure.

    SIGTERM, which batch systems send, and SIGHUP of a closed terminal are treated as Ctrl-C. A closed pipe, as of
    ``hgsp ... | head``, ends the command without a word.

    Args:
        out_of_memory: remedies, printed when memory runs out.
        interrupted: message, printed on Ctrl-C.

    Raises:
        RuntimeError: any that is not an out-of-memory error; it is a bug and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a Windows pipe has a code page without most of Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, so that libraries show no bars beside ours
    try:
        with _signals_as_interrupt():
            code = run()
            sys.stdout.flush()  # a closed pipe shows here, and not when Python ends
            return code
    except InputError as error:
        return fail(2, str(error))
    except NumericalError as error:
        return fail(1, str(error))
    except KeyboardInterrupt:
        return fail(1, interrupted)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 1
    except OSError as error:
        if error.errno in OS_REMEDIES:
            place = f" ({error.filename})" if error.filename else ""
            return fail(1, f"{error.strerror}{place}; {OS_REMEDIES[error.errno]}")
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
def _signals_as_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    signals = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # a command that was started with nohup ignores SIGHUP, and shall go on to
    signals = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_libraries() -> None:
    """Silence progress bars and warnings of transformers and the hub; the commands do their own checks."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # deprecated names used by peft
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # one line per retry when offline
