"""The safetensors files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hgsp.errors import InputError, one_line

LFS_POINTER = b"version https://git-lfs"


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would read; other safetensors files in the folder are not the model's.

    Raises:
        InputError: there are none, or their index cannot be read.
    """
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    if not (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        raise InputError(
            expected=f"{SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME} in {folder}",
            got="neither",
            remedy="convert the checkpoint to safetensors, or leave --offload out",
        )
    return [folder / shard for shard in shards_of(folder / SAFE_WEIGHTS_INDEX_NAME)]


def shards_of(index: Path) -> list[str]:
    """Return the file names in an index.

    Raises:
        InputError: the index cannot be read.
    """
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise _unreadable(index, error) from error
    return sorted(set(weight_map.values()))


def open_weights(file: Path) -> Any:
    """Open a safetensors file; use it as a context manager.

    Raises:
        InputError: the file is missing, broken, or a git-lfs pointer.
    """
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    """Return the error about a file of weights, or a folder of them, that cannot be read."""
    if _is_lfs_pointer(path):
        return InputError(
            expected=f"weights in {path}", got="a git-lfs pointer to them", remedy="run `git lfs pull` in its folder"
        )
    return InputError(expected=f"weights in {path}", got=one_line(error), remedy="check that the download is complete")


def _is_lfs_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def refusal_of_files(folder: Path, error: Exception) -> InputError:
    """Return the error about a folder that transformers could not read, naming the broken file if there is one."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            open_weights(file)
        except InputError as refusal:
            return refusal
    return _unreadable(next(folder.glob("pytorch_model*.bin"), folder), error)
