"""Arrays from an .npz file, checked before any of them is read: sizes, shapes, dtypes, and that nothing is executed."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgsp.models.refusals import is_about_the_file

Array = npt.NDArray[Any]

#: Larger files are refused unread: the scores of a model of 400 billion parameters take 0.1 GB.
MAX_BYTES = 2**30
_SUFFIX = ".npy"
#: Kinds of dtype that are read: floats, integers, and the text of the head.
_KINDS = "fiuU"


def read_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of a file that ``numpy.savez`` wrote, by name.

    Members are stored, not compressed, so that no archive holds more than its own size.

    Raises:
        ValueError: another kind of file; compressed, doubled or encrypted members; objects, NaN or infinity.
    """
    if not path.is_file():
        raise ValueError("no such file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{size:,} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            _check_members(members, len(archive.infolist()), size)
            return {name.removesuffix(_SUFFIX): _read(archive, name) for name in members}
    except ValueError:
        raise
    except BaseException as error:
        if not is_about_the_file(error):
            raise
        raise ValueError(f"no archive of arrays ({type(error).__name__}: {error})") from error


def _check_members(members: Mapping[str, zipfile.ZipInfo], count: int, file_size: int) -> None:
    if count > len(members):
        raise ValueError("an archive with one name twice")
    if sum(member.file_size for member in members.values()) > file_size:
        raise ValueError("an archive whose content is larger than the file")
    for name, member in members.items():
        if member.compress_type != zipfile.ZIP_STORED or not name.endswith(_SUFFIX):
            raise ValueError(f"an archive with {name!a}, which is no uncompressed array")


def _read(archive: zipfile.ZipFile, name: str) -> Array:
    """Read one array after its header, whose shape must be that of the bytes in the archive."""
    member = archive.getinfo(name)
    with archive.open(member) as source:
        version = np.lib.format.read_magic(source)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = header[version](source)
        if dtype.kind not in _KINDS:
            raise ValueError(f"an array {name!a} of {dtype.str}")
        if math.prod(shape) * dtype.itemsize != member.file_size - source.tell():
            raise ValueError(f"an array {name!a} of other size than its header says")
    with archive.open(member) as source:
        array: Array = np.lib.format.read_array(source, allow_pickle=False)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"an array {name!a} with values that are not finite")
    return array
