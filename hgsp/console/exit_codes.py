"""Exit codes and one-line errors, the same for every command."""

from __future__ import annotations

import _thread
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
from typing import Any

from hgsp.errors import InputError, NumericalError, one_line

OUT_OF_MEMORY = (
    "no partial output is left behind. Try, in this order: --batch_size 1, --use_gradient_checkpointing, a smaller "
    "--nsamples or --seq_len, --spill_dir DIR, --offload, or --importance_method fisher (no weight gradients) or "
    "magnitude (no data)"
)

GOING_ON = "Nothing is half-written; the same command starts again, or resumes where it saved its state"

#: Errors that are the environment's, and their remedies: full disks, quotas, limits, permissions, failing devices.
OS_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space or write to another disk"),
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or write to another disk",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit on open files (ulimit -n)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change the permissions or use another folder"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk or the network drive"),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR), "move it away or use another name"),
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOMEM: "free memory",
}
#: Parts of messages by which libraries report the operating system's errors as others, and the errors.
_MESSAGES = {
    "no space left": errno.ENOSPC,
    "disk quota": errno.EDQUOT,
    "file too large": errno.EFBIG,
    "too many open files": errno.EMFILE,
    "permission denied": errno.EACCES,
    "read-only file system": errno.EROFS,
    "input/output error": errno.EIO,
    "cannot allocate memory": errno.ENOMEM,
    "can't start new thread": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
    # torch.save does not pass on why a write failed
    **dict.fromkeys(("pytorchstreamwriter failed", "unexpected pos"), errno.ENOSPC),
}
_MEMORY = ("out of memory", "can't allocate", "bad_alloc", "could not create a primitive")  # the last is oneDNN's


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
        RuntimeError: any that the environment did not cause; it is a bug and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a Windows pipe has a code page without most of Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, so that libraries show no bars beside ours
    try:
        with _signals_as_interrupt():
            return _flushed(run)
    except InputError as error:
        return fail(2, str(error))
    except NumericalError as error:
        return fail(1, str(error))
    except KeyboardInterrupt:
        return fail(1, interrupted)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 1
    except Exception as error:  # libraries report full disks by several types, tokenizers by this very one
        message = _environment_failure(error, out_of_memory)
        if message is None:
            raise
        return fail(1, message)


def _flushed(run: Callable[[], int]) -> int:
    """Run a command; a closed pipe shows here, and not when Python ends."""
    try:
        code = run()
    except SystemExit:  # of argparse, after --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _safetensors_errors() -> tuple[type[Exception], ...]:
    """Return the error of safetensors, if the command has come as far as importing it."""
    module = sys.modules.get("safetensors")
    return () if module is None else (module.SafetensorError,)


def _environment_failure(error: BaseException, out_of_memory: str) -> str | None:
    """Return the line about a failure that the environment caused; None for a bug."""
    text = one_line(error)
    if isinstance(error, MemoryError) or any(part in str(error).lower() for part in _MEMORY):
        return f"out of memory ({text}); {out_of_memory}"
    number = getattr(error, "errno", None)
    if number not in OS_REMEDIES:
        number = next((found for part, found in _MESSAGES.items() if part in str(error).lower()), None)
    place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    if number is not None:
        return f"{os.strerror(number)}{place}; {OS_REMEDIES[number]}. {GOING_ON}"
    if isinstance(error, OSError) or type(error) in _safetensors_errors():
        return f"{text}; check the disk, and that nothing else changes these files. {GOING_ON}"
    return None


def fail(code: int, message: str) -> int:
    """Print an error line to stderr and return the exit code."""
    line = "\\n".join(message.splitlines())  # names of files may contain line breaks
    print(f"error: {line}", file=sys.stderr)
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
    lost = sys.unraisablehook

    def interrupt_again(unraisable: Any) -> None:
        """Raise an interrupt once more that came while Python deleted an object, where it would be lost."""
        if unraisable.exc_type is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()  # at once, it would be lost in this very function
        else:
            lost(unraisable)

    sys.unraisablehook = interrupt_again
    try:
        yield
    finally:
        sys.unraisablehook = lost
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
