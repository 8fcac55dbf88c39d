"""Places of models: the file system says what a path is, never its suffix. Importing this file costs no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

from hgsp.errors import InputError

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
LFS_POINTER = b"version https://git-lfs"
#: The first bytes of a zip archive and of a pickle, the two forms of a file that ``torch.save`` writes.
_TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80")
#: Suffixes of weights; a name that ends so and does not exist is a missing file, not a hub id.
WEIGHTS = (".safetensors", ".bin", ".gguf")


def exists(name: str | Path) -> bool:
    """Return whether anything has this name; unlike that of ``Path``, False for a text that no path can be."""
    return os.path.exists(name)  # noqa: PTH110


def is_file(name: str | Path) -> bool:
    """Return whether a file has this name; as for ``exists``."""
    return os.path.isfile(name)  # noqa: PTH113


def is_folder(name: str | Path) -> bool:
    """Return whether a folder has this name, however the name ends; as for ``exists``."""
    return os.path.isdir(name)  # noqa: PTH112


def is_gguf(name: str | Path) -> bool:
    """Return whether a name is a file that begins as .gguf files do."""
    return beginning(name, 4) == b"GGUF"


def is_bin(name: str | Path) -> bool:
    """Return whether a name is a single file that ``torch.save`` wrote, such as ``pruned_model.bin``."""
    return beginning(name, 4).startswith(_TORCH_BEGINNINGS)


def is_hub_id(name: str | Path) -> bool:
    """Return whether nothing has this name here and a model of the hub may."""
    return bool(HUB_ID.fullmatch(str(name))) and not exists(name) and not str(name).endswith(WEIGHTS)


def is_lfs_pointer(name: str | Path) -> bool:
    """Return whether a file holds a reference of git-lfs instead of its content."""
    return beginning(name, len(LFS_POINTER)) == LFS_POINTER


def beginning(name: str | Path, length: int) -> bytes:
    """Return the first bytes of a file, none if it is no file."""
    if not is_file(name):
        return b""
    with Path(name).open("rb") as file:
        return file.read(length)


def refuse_no_model(name: str | Path) -> None:
    """Refuse a name that is no folder, .gguf file, single file of weights or hub id.

    Raises:
        InputError: says what it is instead.
    """
    if is_folder(name) or is_gguf(name) or is_bin(name) or is_hub_id(name):
        return
    _refuse(name)


def _refuse(name: str | Path) -> NoReturn:
    found, remedy = "which does not exist", "check the path, or log in and go online for a hub id"
    if is_lfs_pointer(name):
        found, remedy = "a git-lfs pointer", "run `git lfs pull` in its folder"
    elif exists(name):
        found, remedy = "which is none of them", "pass the folder that holds config.json and the weights"
    raise InputError(
        expected="a model as hub id, local folder with config.json, .gguf file or pruned_model.bin",
        got=f"'{name}', {found}",
        remedy=remedy,
    )
