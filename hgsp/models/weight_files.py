"""The files of a model's weights: which ones transformers would read, their index, and reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hgsp.errors import InputError, one_line
from hgsp.models.configs import read_object
from hgsp.models.hub import with_revision
from hgsp.models.places import is_folder, is_lfs_pointer
from hgsp.models.refusals import refusing

#: Names of whole and sharded weights, in the order in which transformers looks for them.
_SAFE, _PICKLED = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would read; other safetensors files in the folder are not the model's.

    Raises:
        InputError: there are none, or their index is wrong.
    """
    found = _files(folder, _SAFE)
    if not found:
        raise InputError(
            expected=f"{SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME} in {folder}",
            got="neither",
            remedy="check that the download is complete, or convert the checkpoint to safetensors",
        )
    return found


def pickled_weight_files(folder: Path) -> list[Path]:
    """Return the files of an older checkpoint, none if the folder has no such files or safetensors beside them.

    Raises:
        InputError: their index is wrong.
    """
    return [] if _files(folder, _SAFE) else _files(folder, _PICKLED)


def _files(folder: Path, names: tuple[str, str]) -> list[Path]:
    whole, index = (folder / name for name in names)
    if whole.is_file():
        return [whole]
    return [folder / shard for shard in shards_of(index)] if index.is_file() else []


def shards_of(index: Path) -> list[str]:
    """Return the file names in an index.

    Raises:
        InputError: it is no index, or a name in it is not that of a file beside it.
    """
    return sorted(set(weight_map_of(index).values()))


def weight_map_of(index: Path) -> dict[str, str]:
    """Return the file name of every tensor in an index.

    Raises:
        InputError: it is no index, or a name in it is not that of a file beside it.
    """
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _wrong_index(index, "no object weight_map with a file for every tensor")
    for tensor, file in weight_map.items():
        if not is_plain_name(file):
            raise _wrong_index(index, f"{file!r:.100} as the file of {tensor:.100}")
    return weight_map


def is_plain_name(name: Any) -> bool:
    """Return whether a value read from a file is the name of a file in the same folder, and not a path elsewhere."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode("utf-8", "replace")) <= 255
        and name not in (".", "..")
        and not any(character in "/\\:" or not character.isprintable() for character in name)
    )


def _wrong_index(index: Path, got: str) -> InputError:
    return InputError(
        expected=f"names of files in the same folder in {index}",
        got=got.encode("ascii", "backslashreplace").decode(),
        remedy="download the index again, or save the model again",
    )


def open_weights(file: Path) -> Any:
    """Open a safetensors file; use it as a context manager.

    Raises:
        InputError: the file is missing, broken, or a git-lfs pointer.
    """
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise unreadable(file, error) from error


def unreadable(path: Path, error: BaseException) -> InputError:
    """Return the error about a file of weights, or a folder of them, that cannot be read."""
    if is_lfs_pointer(path):
        return InputError(
            expected=f"weights in {path}", got="a git-lfs pointer to them", remedy="run `git lfs pull` in its folder"
        )
    return InputError(expected=f"weights in {path}", got=one_line(error), remedy="check that the download is complete")


def refusal_of_files(folder: Path, error: BaseException) -> InputError:
    """Return the error about a folder that transformers could not read, naming the broken file if there is one."""
    for file in sorted(folder.glob("*.safetensors")) if is_folder(folder) else ():
        try:
            open_weights(file)
        except InputError as refusal:
            return refusal
    return unreadable(next(folder.glob("pytorch_model*.bin"), folder) if is_folder(folder) else folder, error)


def weights_folder(name: str | Path) -> Path:
    """Return the folder with the model's files; from the hub, safetensors are downloaded if there are any.

    Raises:
        InputError: an index that is wrong, or a hub that cannot be reached.
    """
    if is_folder(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    plain, revision = with_revision(name)

    def downloaded(*patterns: str) -> Path:
        with refusing(lambda error: unreadable(Path(name), error)):
            return Path(snapshot_download(plain, allow_patterns=list(patterns), **revision))

    index = downloaded(SAFE_WEIGHTS_INDEX_NAME) / SAFE_WEIGHTS_INDEX_NAME
    folder = downloaded(SAFE_WEIGHTS_NAME, *(shards_of(index) if index.is_file() else ()))
    return folder if _files(folder, _SAFE) else downloaded(WEIGHTS_INDEX_NAME, "pytorch_model*.bin")
