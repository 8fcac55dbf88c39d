"""Lock files that no interrupt leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def held(file: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock file, and remove it at the end unless an outer block holds it as well.

    Args:
        timeout: seconds to wait for another process; negative waits without end.

    Raises:
        Timeout: another process holds it.
    """
    lock = FileLock(file, timeout=timeout, is_singleton=True)
    outer_blocks = lock.lock_counter
    try:  # from here on, since an interrupt may come when the file exists and is not yet locked
        lock.acquire()
        yield
    finally:
        if not outer_blocks:
            with suppress(Timeout, OSError):  # another process holds it, or it is open, which Windows does not remove
                if not lock.is_locked:
                    lock.acquire(timeout=0)
                Path(lock.lock_file).unlink()
        if lock.lock_counter > outer_blocks:
            lock.release()
