"""Archives of arrays: read if numpy.savez wrote them, refused before anything large or executable is touched."""

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest

from hgsp.scoring.npz_files import read_npz

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 4), np.float32)}


def npy(array):
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, allow_pickle=True)
    return sink.getvalue()


def write(path, members, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile warns about doubled names
        for name, content in members:
            archive.writestr(name, content)


def test_arrays_are_read_as_they_were_written(tmp_path):
    np.savez(tmp_path / "s.npz", **ARRAYS)
    found = read_npz(tmp_path / "s.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def longer_than_it_is(array):
    """A header that claims a thousand times the values."""
    return npy(array).replace(b"(6,), }   ", b"(6000,), }")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.npy", npy(np.array([object()], dtype=object)))], "array 'a.npy' of"),
        ([("a.npy", npy(np.zeros(2, np.complex64)))], "array 'a.npy' of"),
        ([("a.npy", npy(np.zeros(2, [("x", "f8")])))], "array 'a.npy' of"),
        ([("a.npy", npy(np.array([1.0, np.nan])))], "not finite"),
        ([("a.npy", npy(np.array([np.inf], np.float32)))], "not finite"),
        ([("a.npy", longer_than_it_is(np.arange(6.0)))], "other size than its header says"),
        ([("a.npy", npy(np.zeros(3))[:-1])], "other size than its header says"),
        ([("a.npy", npy(np.zeros(3))), ("a.npy", npy(np.zeros(3)))], "one name twice"),
        ([("a.txt", b"text")], "no uncompressed array"),
        ([("a.npy", b"text")], "magic string"),
        ([("a.npy", b"")], "magic string"),
        ([("a.npy", b"\x93NUMPY\x09\x00" + struct.pack("<H", 10) + b"x" * 10)], "no archive of arrays"),
        ([("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 10) + b"{'a': (\n\n ")], "no archive of arrays"),
    ],
)
def test_other_archives_are_refused(tmp_path, members, reason):
    write(tmp_path / "s.npz", members)
    with pytest.raises(ValueError, match=reason):
        read_npz(tmp_path / "s.npz")


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    write(tmp_path / "s.npz", [("a.npy", npy(np.zeros(10**6)))], zipfile.ZIP_DEFLATED)
    assert (tmp_path / "s.npz").stat().st_size < 10**5
    with pytest.raises(ValueError, match="larger than the file"):
        read_npz(tmp_path / "s.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"text"])
def test_files_that_are_no_archive_are_refused(tmp_path, content):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(ValueError, match="no archive of arrays"):
        read_npz(tmp_path / "s.npz")


def test_a_file_larger_than_any_scores_is_not_read(tmp_path):
    with (tmp_path / "s.npz").open("wb") as sink:
        sink.truncate(2**40)
    with pytest.raises(ValueError, match="bytes"):
        read_npz(tmp_path / "s.npz")
    with pytest.raises(ValueError, match="no such file"):
        read_npz(tmp_path / "absent.npz")
