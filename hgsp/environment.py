"""The environment of a run: launched processes, versions, hardware, peak memory, and files replaced in one step.

Importing this file costs no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import hgsp

#: Packages whose versions a report names.
PACKAGES = (
    *("torch", "transformers", "safetensors", "numpy", "tokenizers"),
    *("accelerate", "peft", "lm-eval", "datasets"),
)


def launched_processes() -> int:
    """Return how many processes the launcher started, this one included; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Return this process's number among all that were launched."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return this process's number on this machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def describe_environment(device: str, **settings: Any) -> dict[str, Any]:
    """Return versions, hardware and ``settings`` (such as dtype and seed): everything needed to reproduce a run."""
    import torch

    return {
        "hgsp": hgsp.__version__,
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": device,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "num_processes": launched_processes(),
        **settings,
    }


def package_version(name: str) -> str | None:
    """Return the version of an installed package, None if it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def device_name(device: str) -> str:
    """Return the name of the GPU, or of the processor."""
    import torch

    if _uses_gpu(device):
        return str(torch.cuda.get_device_name(None if device == "auto" else device))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def peak_memory_bytes(device: str) -> int | None:
    """Return the peak memory of this process in bytes: allocated on all GPUs if ``device`` is one, else resident.

    None where the operating system does not report it (Windows).
    """
    import torch

    if _uses_gpu(device):
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_gib(num_bytes: int | None) -> str:
    """Format a number of bytes for a table."""
    return "unknown on this system" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"


def install_command(extra: str, *packages: str) -> str:
    """Return the command that installs an extra of hgsp and further packages; it needs no release of hgsp.

    A clone is installed with its extra. Beside an installed wheel, the packages of the extra are named.
    """
    if (Path(hgsp.__file__).parent.parent / "pyproject.toml").is_file():
        return f"{shlex.join(['pip', 'install', *packages, '-e', f'.[{extra}]'])} in the clone of hgsp"
    return shlex.join(["pip", "install", *packages, *_packages_of(extra)])


def _packages_of(extra: str) -> list[str]:
    """Return the requirements of an extra; an extra may name another one, as ``hgsp[plots]``."""
    packages: list[str] = []
    for requirement in metadata.requires("hgsp") or []:
        package, _, marker = (part.strip() for part in requirement.partition(";"))
        if f"'{extra}'" in marker.replace('"', "'"):
            other = re.fullmatch(r"hgsp\[(.+)\]", package)
            packages += _packages_of(other[1]) if other else [package]
    return packages


#: A list in indented JSON that holds numbers, true, false and null alone; strings have no line breaks in JSON.
_PLAIN_LIST = re.compile(r'\[\n[^\[\]{}"]*\]')


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write strict JSON in one step: indented, but each list of numbers on one line.

    Raises:
        ValueError: NaN or infinity in ``content``.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    text = _PLAIN_LIST.sub(lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text)
    write_atomically(path, text + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step: readers see the old content or the new one.

    Bytes of names that are no text become escapes.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def siblings_of(name: str) -> re.Pattern[str]:
    """Return the pattern of the names that ``replacing`` writes a file of this name under."""
    return re.compile(rf"\.[0-9a-f]{{8}}-{re.escape(name)}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of ``path`` to write, which replaces it on success and is removed on failure.

    The new content is on disk before it gets the name, and has the permissions of the user's umask. A symbolic link is
    replaced, not followed. Siblings that killed processes left are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, siblings_of(path.name))
    partial = path.with_name(f".{secrets.token_hex(4)}-{path.name}")  # keeps the suffix, which numpy looks at
    lock = None
    try:
        partial.touch(exist_ok=False)
        lock = lock_of(partial, wait=True)
        yield partial
        partial.chmod(0o666 & ~umask())  # safetensors ignores the umask
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power failure, where the system can tell."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # some network drives cannot
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def reserve_space(path: Path, num_bytes: int) -> None:
    """Give a file all its blocks on the disk, so that no write to its mapping can fail later (SIGBUS).

    The file is created if it is missing.

    Raises:
        OSError: the disk is too full, or the file would be larger than the user may write.
    """
    with path.open("ab") as sink:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(sink.fileno(), 0, max(1, num_bytes))
            elif shutil.disk_usage(path.parent).free < num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            else:
                sink.truncate(num_bytes)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def lock_of(path: Path, *, wait: bool) -> int | None:
    """Return a descriptor that locks a file or folder until it is closed or its process ends.

    None if another process holds the lock or has removed the file, and where there are no such locks (Windows, some
    network drives).
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_abandoned(parent: Path, name: re.Pattern[str]) -> None:
    """Remove this user's files and folders of such names that no living process holds the lock of."""
    with suppress(PermissionError), os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if name.fullmatch(entry.name) and not entry.is_symlink()]
        for path in found:
            if (lock := lock_of(path, wait=False)) is None:
                continue
            try:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            finally:
                os.close(lock)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def umask() -> int:
    """Return the user's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def remove_folder(folder: Path) -> None:
    """Remove a folder so that at no time a part of it is there under its name.

    A killed run leaves at most a hidden folder, which the next run of the same name removes.
    """
    hidden = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.removed")
    with suppress(FileNotFoundError):
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _uses_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
