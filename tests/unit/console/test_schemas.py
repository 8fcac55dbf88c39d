"""Schemas: what fits is converted, and what does not is named by field, expected type and value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import pytest

from hgsp.console.json_files import MAX_DEPTH, json_object, read_json_file
from hgsp.console.schemas import Above, Count, OneOf, Sha256, Stored, checked
from hgsp.errors import InputError


@dataclass(frozen=True)
class Layer:
    kept: tuple[Count, ...]
    ratio: Annotated[float, Above(0)] | None = None


class Note(TypedDict, total=False):
    text: str


@dataclass(frozen=True)
class File:
    layers: tuple[Layer, ...]
    kind: Literal["a", "b"] = "a"
    role: Annotated[str, OneOf(("x", "y"))] = "x"
    by_size: dict[int, float] = field(default_factory=dict)
    hashes: dict[str, Sha256] = field(default_factory=dict)
    note: Annotated[Mapping[str, Any], Stored(Note)] = field(default_factory=dict)
    pair: tuple[int, str] | None = None
    flag: bool = False
    unstored: int = field(default=3, metadata={"stored": False})

    def __post_init__(self):
        if len(self.layers) == 9:
            raise InputError(expected="no nine layers", got="nine", remedy="none")


WHOLE = {
    "layers": [{"kept": [0, 2], "ratio": 0.5}, {"kept": []}],
    "by_size": {"8": 1},
    "note": {"text": "t", "more": 1},
}


def test_a_fitting_value_becomes_a_typed_object():
    expected = File((Layer((0, 2), 0.5), Layer(())), by_size={8: 1}, note={"text": "t", "more": 1})
    assert checked(File, WHOLE) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, "layers must be a list, not 3"),
        ({"layers": [{"kept": [0, -1]}]}, "layers[0].kept[1] must be an integer >= 0, not -1"),
        ({"layers": [{"kept": [True]}]}, "layers[0].kept[0] must be an integer >= 0, not True"),
        ({"layers": [{"kept": [], "ratio": 0}]}, "layers[0].ratio must be a number > 0 or null, not 0"),
        ({"layers": [{}]}, "layers[0].kept must be there, not 'nothing'"),
        ({"layers": [{"kept": [], "ratoi": 1}]}, "layers[0] must be a known field (did you mean ratio?), not 'ratoi'"),
        ({"kind": "c"}, "kind must be 'a' or 'b', not 'c'"),
        ({"role": "z"}, "role must be a string among x, y, not 'z'"),
        ({"by_size": {"08": 1}}, "by_size.08 must be under a key that is an integer >= 0, not '08'"),
        ({"hashes": {"a b": "0"}}, "hashes.'a b' must be a string (64 hexadecimal digits), not '0'"),
        ({"note": {"text": 1}}, "note.text must be a string, not 1"),
        ({"pair": [1]}, "pair must be a list of 2 or null, not [1]"),
        ({"flag": 1}, "flag must be true or false, not 1"),
        ({"unstored": 1}, "the content must be a known field (it has no such one), not 'unstored'"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - its text is compared below
        checked(File, WHOLE | change)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b" \n", "an empty file"),
        (b"[]", "must be an object"),
        (b"\xff{}", "can't decode"),
        (b'{"a": NaN}', "NaN, which is not JSON"),
        (b'{"a": 1e999}', "a number out of range"),
        (b'{"a": 99999999999999999999}', "an integer out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        (rb'{"a": "\ud83d"}', "surrogates not allowed"),
        (rb'{"\ud83d": 1}', "surrogates not allowed"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested too deeply"),
        (b'{"a": 1', "delimiter"),
    ],
)
def test_json_that_could_not_be_written_again_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        json_object(content)


def test_a_refusal_is_one_line_with_file_field_and_remedy(tmp_path):
    path = tmp_path / "file.json"
    for content, reason in (
        ({"layers": ["x" * 5000 + "\n"]}, r"layers\[0\] must be an object, not 'xxx"),
        ({"layers": [{"kept": []}] * 9}, "expected no nine layers; got nine"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=reason) as refused:
            read_json_file(path, File, "a file", "delete it")
        assert "\n" not in str(refused.value)
        assert str(refused.value).startswith(f"expected a file; got {path} (")
        assert str(refused.value).endswith("); delete it")
        assert len(str(refused.value)) < 400
    for missing in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InputError, match=r"no such file|no plain file"):
            read_json_file(missing, File, "a file", "delete it")


def test_a_file_larger_than_any_of_ours_is_not_read(tmp_path):
    path = tmp_path / "sparse.json"
    with path.open("wb") as sink:
        sink.truncate(2**40)
    with pytest.raises(InputError, match="bytes, more than"):
        read_json_file(path, File, "a file", "delete it")
