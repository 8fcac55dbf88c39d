"""Two names of one file system exchanged at once, where the system can do so."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

#: From linux/fs.h and fcntl.h, and from sys/stdio.h of macOS.
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
#: Errors of systems and drives that cannot.
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EXDEV)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two existing files or folders, at no instant of which a name is missing; False if that is impossible.

    Raises:
        OSError: permissions are missing, or one of them is.
    """
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, _RENAME_SWAP)
        else:
            failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    except (AttributeError, OSError, TypeError):  # no such function; Windows has no library of all
        return False
    number = ctypes.get_errno()
    if failed and number not in _CANNOT:
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    return not failed
