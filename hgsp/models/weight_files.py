"""Files of weights as transformers stores them: which belong to a model, and what to say of one that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hgsp.errors import InputError, one_line

LFS_POINTER = b"version https://git-lfs"


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read; what else lies in the folder does not belong to the model.

    Raises:
        InputError: there are none, or their index is broken.
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
    """Names of the files that an index names.

    Raises:
        InputError: it is broken.
    """
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError) as error:
        raise _unreadable(index, error) from error
    return sorted(set(weight_map.values()))


def open_weights(file: Path) -> Any:
    """A safetensors file to read from, as a context manager.

    Raises:
        InputError: it is missing or broken, or only git-lfs's pointer to it is there.
    """
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    """What to say about a file of weights, or the folder with them, that cannot be read."""
    if _is_lfs_pointer(path):
        return InputError(
            expected=f"weights in {path}", got="git-lfs's pointer to them", remedy="run `git lfs pull` in its folder"
        )
    return InputError(expected=f"weights in {path}", got=one_line(error), remedy="check that the download is complete")


def _is_lfs_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def refusal_of_files(folder: Path, error: Exception) -> InputError:
    """What to say about a folder of which transformers could not read some file: which one, if that can be found."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            open_weights(file)
        except InputError as refusal:
            return refusal
    return _unreadable(next(folder.glob("pytorch_model*.bin"), folder), error)
