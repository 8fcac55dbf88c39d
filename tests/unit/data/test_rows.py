"""Rows and lines of users' files: read as what they are, or refused in one line with file, line and field."""

import bz2
import csv
import gzip
import json
import lzma
import os
import re
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from hgsp.data import files, rows
from hgsp.data.fields import Row, short
from hgsp.data.rows import is_plain, read_rows, text_rows
from hgsp.data.texts import EVALUATE, check_dataset_name, dataset_names, load_text
from hgsp.errors import InputError

GOOD = b'{"text": "one"}\n'


def texts(path):
    return [row.text("text") for row in read_rows(path)]


def refused(call, *arguments):
    """The message of the refusal: one line."""
    with pytest.raises(InputError) as refusal:
        call(*arguments)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


#: name -> (content, line, words). Every one is refused with its file, its line from 1, and words of its own.
BAD_LINES = {
    "a broken line": (GOOD * 7 + b'{"text": "x"\n' + GOOD, 8, "Expecting"),
    "a blank line before it": (GOOD + b"\n\n" + b"{", 4, "Expecting"),
    "a row that is a number": (GOOD + b"5\n", 2, "a JSON object in every row; got 5"),
    "a row that is null": (GOOD + b"null\n", 2, "got None"),
    "a row that is a list of rows": (GOOD + b'[{"text": "x"}]', 2, "got \\["),
    "two objects in a line": (b'{"text": "x"} {"text": "y"}\n', 1, "Extra data"),
    "a text that is null": (GOOD * 2 + b'{"text": null}', 3, "'text' of every row; got None there"),
    "a text that is an object": (b'{"text": {"a": 1}}', 1, "got {'a': 1} there"),
    "no text": (GOOD + b'{"content": "x", "id": 1}', 2, "got only the fields content, id"),
    "no fields": (GOOD + b"{}", 2, "got only no fields"),
    "half an emoji": (GOOD + b'{"text": "\\ud83d"}', 2, "surrogate"),
    "the other half": (GOOD + b'{"text": "a\\ude00b"}', 2, "surrogate"),
    "a NUL": (GOOD + b'{"text": "a\\u0000b"}', 2, "NUL"),
    "a raw NUL": (GOOD + b'{"text": "a\0b"}', 2, "NUL"),
    "Latin-1": (GOOD + b'{"text": "K\xe4se"}', 2, "0xE4"),
    "a key twice": (GOOD + b'{"text": "a", "text": "b"}', 2, "'text' twice"),
    "a key twice within": (GOOD + b'{"text": "a", "more": [{"x": 1, "x": 1}]}', 2, "'x' twice"),
    "deep lists": (GOOD + b'{"text": ' + b"[" * 200_000, 2, "deep"),
    "deep objects": (GOOD + b'{"a":' * 200_000, 2, "deep"),
    "a number of many digits": (GOOD + b'{"text": ' + b"9" * 5000 + b"}", 2, "digits"),
    "a control character": (GOOD + b'{"text": "a\x01b"}', 2, "control character"),
    "a comment": (GOOD + b"// rows\n", 2, "Expecting"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_line_is_refused_with_file_line_and_reason(tmp_path, name, packed):
    content, line, words = BAD_LINES[name]
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    message = refused(texts, path)
    assert f"{path}, line {line}" in message
    assert re.search(words, message)
    assert len(message) < 500


BAD_LISTS = {
    "an item": (b'[\n{"text": "a"},\n{"text": 5}\n]', 3, "got 5 there"),
    "an item that is no object": (b'[{"text": "a"},\n\n"b"]', 3, "a JSON object"),
    "a comma too many": (b'[{"text": "a"},\n]', 2, "Expecting"),
    "no comma": (b'[{"text": "a"}\n{"text": "b"}]', 2, "',' or ']'"),
    "no end": (b'[{"text": "a"},\n{"text": "b"}\n', 3, "',' or ']'"),
    "more after the end": (b'[{"text": "a"}]\n\n{"text": "b"}', 3, "after the end"),
    "a break within": (b'[{"text": "a"},\n{"text":\n oops}]', 3, "Expecting"),
    "a key twice": (b'[\n{"text": "a", "text": "a"}]', 2, "twice"),
    "deep": (b'[\n{"text": "a"},\n' + b"[" * 200_000, 3, "deep"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_bad_item_of_a_list_is_refused_with_its_line(tmp_path, name):
    content, line, words = BAD_LISTS[name]
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    message = refused(texts, path)
    assert f"{path}, line {line} " in f"{message} ".replace(";", " ")
    assert words in message


def test_lists_and_lines_are_read_whole_whatever_their_spaces(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'\xef\xbb\xbf\r\n\r\n [ {"text": "a"}\r\n,\r\n{"text": "[b]"} ] \r\n')
    assert [(row.text("text"), row.place) for row in read_rows(path)] == [
        ("a", f"{path}, line 3"),
        ("[b]", f"{path}, line 5"),
    ]
    path.write_bytes(b"[]")
    assert read_rows(path) == []
    path.write_bytes(b'\n{"text": "a"}\r\n\r\n{"text": "b"}')
    assert [row.place for row in read_rows(path)] == [f"{path}, line 2", f"{path}, line 4"]


@pytest.mark.parametrize(
    "name", ["DATA.JSONL", "data.Json", "data.ndjson", "data.jsonlines", "x.jsonl.GZ", "d.json.bak"]
)
def test_rows_are_rows_however_their_suffix_is_written(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(GOOD) if name.lower().endswith(".gz") else GOOD)
    assert not is_plain(path)
    assert texts(path) == list(text_rows(path, "")) == ["one"]


@pytest.mark.parametrize(("name", "delimiter"), [("r.csv", ","), ("R.CSV", ","), ("r.tsv", "\t"), ("r.Tab", "\t")])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_tables_are_read_by_their_header(tmp_path, name, delimiter, ends):
    wanted = [{"text": 'a "b", c', "id": "1"}, {"text": "two\nlines\tand more", "id": ""}, {"text": "ä", "id": "3"}]
    with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as sink:
        writer = csv.DictWriter(sink, ["text", "id"], delimiter=delimiter, lineterminator=ends)
        writer.writeheader()
        writer.writerows(wanted)
    found = read_rows(tmp_path / name)
    assert found == wanted
    assert [row.place.rpartition(" ")[2] for row in found] == ["2", "3", "5"]
    assert load_text(str(tmp_path / name), EVALUATE).content == "\n\n".join(row["text"] for row in wanted)


BAD_TABLES = {
    "a cell too many": ("text,id\na,1\nb,2,3\n", 3, "3 cells under a header of 2"),
    "a cell too few": ("text,id\na\n", 2, "1 cells"),
    "an open quote": ('text,id\na,1\n"b,2\nc,3\n', 3, "unexpected end"),
    "text after a quote": ('text,id\n"a"b,1\n', 2, "expected after"),
    "a column twice": ("text,text\na,b\n", 1, "twice"),
    "no text column": ("content,id\na,1\n", 2, "the fields content, id"),
    "semicolons": ("text;id\na;1\n", 2, "the fields text;id"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_with_its_line(tmp_path, name):
    content, line, words = BAD_TABLES[name]
    (tmp_path / "rows.csv").write_text(content)
    message = refused(texts, tmp_path / "rows.csv")
    assert f"rows.csv, line {line}" in message
    assert words in message


def test_reading_tables_leaves_the_limit_of_other_readers_of_csv_alone(tmp_path):
    (tmp_path / "rows.csv").write_text("text\n" + "x" * 200_000)
    before = csv.field_size_limit()
    assert len(texts(tmp_path / "rows.csv")[0]) == 200_000
    assert csv.field_size_limit() == before


#: Files that are neither text nor rows, whatever they are named.
FOREIGN = {
    "zip": lambda path: zipfile.ZipFile(path, "w").writestr("rows.jsonl", GOOD),
    "gzip without its suffix": lambda path: path.write_bytes(gzip.compress(GOOD)),
    "bzip2": lambda path: path.write_bytes(bz2.compress(GOOD)),
    "xz": lambda path: path.write_bytes(lzma.compress(GOOD)),
    "zstd": lambda path: path.write_bytes(bytes.fromhex("28b52ffd") + b"x"),
    "PDF": lambda path: path.write_bytes(b"%PDF-1.7\n"),
    "UTF-16": lambda path: path.write_bytes(GOOD.decode().encode("utf-16")),
    "UTF-16 without a mark": lambda path: path.write_bytes(GOOD.decode().encode("utf-16-le")),
    "UTF-32": lambda path: path.write_bytes(GOOD.decode().encode("utf-32")),
    "parquet": lambda path: parquet.write_table(pyarrow.table({"text": ["x"]}), path),
    "a picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"),
    "pickle": lambda path: path.write_bytes(b"\x80\x04\x95\x0b\x00\x00"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["rows.jsonl", "text.txt", "table.csv", "novel"])
def test_binary_files_are_refused_whatever_their_name(tmp_path, kind, name):
    FOREIGN[kind](tmp_path / name)
    assert str(tmp_path / name) in refused(load_text, str(tmp_path / name), EVALUATE)


def test_rows_in_a_file_of_no_kind_are_not_taken_for_a_text(tmp_path):
    for name in ("rows", "rows.data", "rows.log"):
        (tmp_path / name).write_bytes(GOOD)
        assert "name it .jsonl" in refused(load_text, str(tmp_path / name), EVALUATE)
    (tmp_path / "rows.txt").write_bytes(GOOD)
    assert load_text(str(tmp_path / "rows.txt"), EVALUATE).content == GOOD.decode()


def test_rows_beyond_the_limit_are_refused_before_they_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_ROW", 1000)
    long = b'{"text": "' + b"x" * 2000 + b'"}'
    for name, content in (("a.jsonl", GOOD + long), ("b.json", b"[" + GOOD + b",\n" + long + b"]")):
        (tmp_path / name).write_bytes(content)
        message = refused(texts, tmp_path / name)
        assert "MiB" in message
        assert f"{name}, line" in message
    (tmp_path / "c.csv").write_bytes(b"text\na\n" + b"x" * 2000)
    assert "c.csv, line 3" in refused(texts, tmp_path / "c.csv")
    (tmp_path / "list.json").write_bytes(b"[" + b",".join([GOOD.strip()] * 200) + b"]")  # one line of many short rows
    assert len(texts(tmp_path / "list.json")) == 200


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.txt.gz", "bomb.csv.gz"])
def test_an_archive_that_would_fill_memory_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "UNLIMITED_BYTES", 1 << 16)
    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "' + b"x" * (1 << 23), 9))
    assert "decompresses to at most 200 times" in refused(load_text, str(tmp_path / name), EVALUATE)


def test_a_parquet_file_that_would_fill_memory_is_refused(tmp_path, monkeypatch):
    """One long text repeated: a few bytes per row in the file, its whole length in memory."""
    monkeypatch.setattr(files, "UNLIMITED_BYTES", 1 << 16)
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({"text": ["x" * 1000] * 100_000}), path)
    assert "decompresses to at most 200 times" in refused(read_rows, path)


def test_more_bytes_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    (tmp_path / "long.txt").write_bytes(b"a line\n" * (1 << 18))
    assert "split it" in refused(load_text, str(tmp_path / "long.txt"), EVALUATE)


def test_the_limits_let_ordinary_archives_through(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNLIMITED_BYTES", 1 << 12)
    content = "".join(json.dumps({"text": f"row {number} of many"}) + "\n" for number in range(5000))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content.encode(), 9))
    assert len(texts(tmp_path / "rows.jsonl.gz")) == 5000


def test_parquet_is_refused_by_row(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"] * 300 + [None]}), path)
    assert f"None there, in {path}, row 301" in refused(lambda: list(text_rows(path, "")))
    parquet.write_table(pyarrow.table({"text": [b"a"]}), path)
    assert "row 1" in refused(lambda: list(text_rows(path, "")))
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), path)
    assert "twice" in refused(read_rows, path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "rows in parquet" in refused(read_rows, path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("folder", "loop", "dangling", "pipe.jsonl"):
        refused(check_dataset_name, str(tmp_path / name), "--dataset")
        refused(load_text, str(tmp_path / name), EVALUATE)
    assert "pipe or device" in refused(check_dataset_name, "/dev/zero", "--dataset")
    assert "pipe or device" in refused(read_rows, tmp_path / "pipe.jsonl")


def test_something_else_in_place_of_a_local_text_does_not_send_us_to_the_hub(tmp_path):
    (tmp_path / "ptb" / "ptb.test.txt").mkdir(parents=True)
    assert "to be a file; got a folder" in refused(load_text, "ptb", EVALUATE, tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".jsonl", "a\0b", "\ud800"])
def test_names_that_no_file_can_have_are_names_of_nothing(name):
    assert dataset_names(name) == (name,)
    assert len(refused(check_dataset_name, name, "--dataset").encode("utf-8", "backslashreplace")) > 0


def test_a_named_file_that_cannot_be_opened_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    assert "PermissionError" in refused(read_rows, path)


def test_fields_are_named_in_one_line_whatever_they_are_called():
    row = Row({"a\nb": 1, "\ud800": 2, **{f"field{n}": n for n in range(50)}}, "rows.jsonl, line 3")
    message = str(row.refusal("text", "text"))
    assert message.isprintable()
    assert "..." in message
    assert len(message) < 400
    assert len(short("x" * 10**6)) < 80
