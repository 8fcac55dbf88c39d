"""Text sources: local files first, then the hub's standard data sets, and never a silent substitute."""

import gzip
import hashlib
import json
import re
import sys
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from hgsp.data.rows import read_rows
from hgsp.data.texts import CALIBRATE, DATASET_CHOICES, EVALUATE, SOURCES, check_dataset_name, load_text
from hgsp.errors import InputError

NAMED = tuple(SOURCES)
WIKI_LINES = " \n = Title = \n \n First text with <unk> . \n \n"
WIKI_ROWS = ["", " = Title = \n", "", " First text with <unk> . \n", ""]  # the hub's rows of the same article
PTB_LINES = " no it was n't black monday \n but while the <unk> exchange did n't fall apart \n N points \n"


@pytest.fixture(autouse=True)
def no_folder_from_outside(monkeypatch):
    monkeypatch.delenv("HGSP_DATA_DIR", raising=False)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets`; it returns ``hub.rows`` and records its arguments in ``hub.calls``."""
    fake = SimpleNamespace(calls=[], rows=None)

    def load_dataset(*args, **kwargs):
        fake.calls.append((args, kwargs))
        if isinstance(fake.rows, Exception):
            raise fake.rows
        return fake.rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return fake


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def jsonl(texts):
    return "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts)


def test_wikitext_from_a_file_is_the_text_of_the_hub(tmp_path, hub):
    """Rows are joined by a blank line, as in every paper, and the split is named."""
    put(tmp_path, "wikitext2/wiki.test.raw", WIKI_LINES)
    hub.rows = {"text": WIKI_ROWS}
    local, remote = load_text("wikitext2", EVALUATE, tmp_path), load_text("wikitext2", EVALUATE)
    assert local.content == remote.content == "\n\n".join(WIKI_ROWS)
    assert local.split == remote.split == "wikitext-2-raw-v1/test"
    assert (local.source, remote.source) == ("wiki.test.raw", "Salesforce/wikitext")
    assert hub.calls == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "test"})]


def test_ptb_text_is_pinned(tmp_path, hub):
    """Sentences are joined by a space; <unk> and N are kept."""
    put(tmp_path, "ptb/ptb.test.txt", PTB_LINES)
    hub.rows = {"sentence": [line.strip() for line in PTB_LINES.splitlines()]}
    expected = "no it was n't black monday but while the <unk> exchange did n't fall apart N points"
    assert load_text("ptb", EVALUATE, tmp_path).content == expected
    assert load_text("ptb", EVALUATE).content == expected


@pytest.mark.parametrize(("use", "file", "count"), [(CALIBRATE, "c4-train", 8000), (EVALUATE, "c4-validation", 1100)])
def test_c4_streams_one_shard_and_never_the_corpus(hub, use, file, count):
    """One shard is streamed under its current name, and no more rows than the protocol needs."""
    taken = []

    def rows():
        for number in range(10**9):
            taken.append(number)
            yield {"text": f"document {number}"}

    hub.rows = rows()
    text = load_text("c4", use)
    ((args, kwargs),) = hub.calls
    assert args == ("allenai/c4",)
    assert kwargs["streaming"] is True
    (shard,) = kwargs["data_files"].values()
    assert file in shard
    assert "0000" in shard
    assert len(taken) <= count + 1
    assert text.content.endswith(f"document {count - 1}")


def test_c4_from_a_shard_reads_the_same_number_of_rows(tmp_path):
    """The folder holds the shard exactly as the hub serves it."""
    path = tmp_path / "c4" / "c4-validation.00000-of-00008.json.gz"
    path.parent.mkdir()
    with gzip.open(path, "wt") as sink:
        sink.write(jsonl(f"document {number}" for number in range(1200)))
    content = load_text("c4", EVALUATE, tmp_path).content
    assert content == " ".join(f"document {number}" for number in range(1100))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("use", [CALIBRATE, EVALUATE])
def test_the_hub_is_never_asked_to_run_code(hub, name, use):
    hub.rows = {"text": ["x"], "sentence": ["x"]} if name != "c4" else [{"text": "x"}]
    load_text(name, use)
    ((_, kwargs),) = hub.calls
    assert "trust_remote_code" not in kwargs


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("trouble", ["no network", "no package"])
def test_without_file_and_hub_the_error_says_both_ways_out(hub, monkeypatch, tmp_path, name, trouble):
    hub.rows = ConnectionError("Couldn't reach the Hub\nmore lines")
    if trouble == "no package":
        monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError) as refusal:
        load_text(name, EVALUATE, tmp_path)
    message = str(refusal.value)
    assert "\n" not in message
    for part in (f"{SOURCES[name].folder}/{SOURCES[name].files[EVALUATE][0][0]}", "--data_dir", "HGSP_DATA_DIR"):
        assert part in message
    assert {"no network": "did not answer", "no package": "not installed"}[trouble] in message


def test_ptb_comes_from_its_converted_files(hub):
    """The original repository holds only a loading script, which `datasets` no longer runs."""
    hub.rows = {"sentence": ["x"]}
    load_text("ptb", EVALUATE)
    named = {"revision": "refs/convert/parquet", "split": "test"}
    assert hub.calls == [(("ptb-text-only/ptb_text_only",), named)]


def test_an_error_that_is_not_about_the_network_is_not_hidden(hub):
    hub.rows = AttributeError("a bug of ours")
    with pytest.raises(AttributeError):
        load_text("wikitext2", EVALUATE)


def test_the_data_folder_comes_first_and_the_flag_before_the_environment(tmp_path, hub, monkeypatch):
    for place in ("flag", "environment"):
        put(tmp_path / place, "ptb/ptb.test.txt", f"from the {place}\n")
    monkeypatch.setenv("HGSP_DATA_DIR", str(tmp_path / "environment"))
    assert load_text("ptb", EVALUATE).content == "from the environment"
    assert load_text("ptb", EVALUATE, tmp_path / "flag").content == "from the flag"
    assert hub.calls == []


def test_a_data_folder_that_is_not_there_is_refused_and_nothing_comes_from_the_hub(tmp_path, hub, monkeypatch):
    with pytest.raises(InputError, match=r"expected --data_dir to be a folder; got '.*/dta'"):
        load_text("ptb", EVALUATE, tmp_path / "dta")
    monkeypatch.setenv("HGSP_DATA_DIR", str(put(tmp_path, "file", "x")))
    with pytest.raises(InputError, match="expected HGSP_DATA_DIR to be a folder"):
        load_text("ptb", EVALUATE)
    assert hub.calls == []


def test_calibration_reads_train_and_evaluation_reads_test(tmp_path):
    put(tmp_path, "wikitext2/wiki.train.raw", "train\n")
    put(tmp_path, "wikitext2/wiki.test.raw", "test\n")
    texts = {use: load_text("wikitext2", use, tmp_path) for use in (CALIBRATE, EVALUATE)}
    assert {use: text.split for use, text in texts.items()} == {
        CALIBRATE: "wikitext-2-raw-v1/train",
        EVALUATE: "wikitext-2-raw-v1/test",
    }
    assert texts[CALIBRATE].content != texts[EVALUATE].content


def test_a_head_of_the_training_text_is_called_one(tmp_path):
    put(tmp_path, "wikitext2/wiki.train.head.raw", "train\n")
    assert load_text("wikitext2", CALIBRATE, tmp_path).split == "wikitext-2-raw-v1/train (head)"


def test_an_unknown_name_is_refused_with_the_choices_and_no_fallback(hub):
    with pytest.raises(InputError) as refusal:
        load_text("wikitext103", EVALUATE)
    assert all(choice in str(refusal.value) for choice in DATASET_CHOICES)
    assert hub.calls == []
    with pytest.raises(InputError, match="--eval_tasks to be one of"):
        check_dataset_name("wikitext103", "--eval_tasks")


def test_wikitext_is_another_name_of_wikitext2(tmp_path):
    put(tmp_path, "wikitext2/wiki.test.raw", WIKI_LINES)
    assert load_text("wikitext", EVALUATE, tmp_path) == load_text("wikitext2", EVALUATE, tmp_path)


def test_builtin_needs_nothing_and_says_what_it_is(hub):
    calibrate, evaluate = load_text("builtin", CALIBRATE), load_text("builtin", EVALUATE)
    assert "pydoc" in calibrate.source
    assert min(len(calibrate.content), len(evaluate.content)) > 100_000
    assert hub.calls == []


def test_builtin_calibration_and_evaluation_share_no_paragraph():
    """Topics quote one another; otherwise a quarter of the evaluation half would leak into calibration."""
    calibrate, evaluate = load_text("builtin", CALIBRATE), load_text("builtin", EVALUATE)
    assert not set(calibrate.content.split("\n\n")) & set(evaluate.content.split("\n\n"))


@pytest.mark.parametrize("name", ["novel.txt", "novel.md", "novel", "novel.v2.text"])
def test_a_text_file_of_any_extension_is_taken_as_it_is(tmp_path, name):
    content = "Käse\r\n\r\n  indented\nlast line"
    (tmp_path / name).write_bytes(content.encode())
    text = load_text(str(tmp_path / name), EVALUATE)
    assert text.content == content
    assert text.sha256 == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [("wikitext2", "wikitext2/wiki.test.raw", WIKI_LINES), ("ptb", "ptb/ptb.test.txt", PTB_LINES)],
)
def test_a_named_text_that_went_through_windows_is_the_same_text(tmp_path, name, file, content):
    expected = load_text(name, EVALUATE, put(tmp_path / "unix", file, content).parents[1]).content
    windows = put(tmp_path / "windows", file, "")
    windows.write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert load_text(name, EVALUATE, windows.parents[1]).content == expected


@pytest.mark.parametrize("name", ["own.txt", "rows.jsonl", "list.json", "rows.json.gz"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, name):
    content = {"own.txt": "one", "list.json": '[{"text": "one"}]'}.get(name, '{"text": "one"}\r\n\r\n')
    encoded = b"\xef\xbb\xbf" + content.encode()
    (tmp_path / name).write_bytes(gzip.compress(encoded) if name.endswith(".gz") else encoded)
    assert load_text(str(tmp_path / name), EVALUATE).content == "one"
    if name != "own.txt":
        assert read_rows(tmp_path / name) == [{"text": "one"}]


def test_jsonl_compressed_jsonl_and_parquet_give_the_same_text(tmp_path):
    rows = ["one\ntwo", "drei", ""]
    put(tmp_path, "rows.jsonl", jsonl(rows))
    with gzip.open(tmp_path / "rows.json.gz", "wt") as sink:
        sink.write(jsonl(rows))
    (tmp_path / "list.json").write_text(json.dumps([{"text": row} for row in rows], indent=1))
    parquet.write_table(pyarrow.table({"text": rows, "id": [1, 2, 3]}), tmp_path / "rows.parquet")
    texts = {load_text(str(path), EVALUATE).content for path in tmp_path.iterdir()}
    assert texts == {"\n\n".join(rows)}


BROKEN = {
    "array.json": b'[{"text": "a list that never ends"}',
    "strings.jsonl": b'"just a string"\n',
    "no_text.jsonl": b'{"content": "x"}\n',
    "null.jsonl": b'{"text": null}\n',
    "half.jsonl": b'{"text": "a"}\n{"te',
    "latin1.txt": "Käse".encode("latin-1"),
    "not.parquet": b"PAR0",
    "not.json.gz": b"not compressed",
    "cut_short.json.gz": gzip.compress(b'{"text": "a"}\n')[:-9],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_what_its_name_says_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(InputError, match=re.escape(str(tmp_path / name))) as refusal:
        load_text(str(tmp_path / name), EVALUATE)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.txt", ""), ("blank.txt", " \n\n"), ("no_rows.jsonl", ""), ("empty.jsonl", '{"text": ""}')],
)
def test_a_text_without_any_text_is_refused(tmp_path, name, content):
    with pytest.raises(InputError, match=f"nothing in {name}"):
        load_text(str(put(tmp_path, name, content)), EVALUATE)


def test_a_parquet_file_without_a_text_column_is_refused(tmp_path):
    parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="text"):
        load_text(str(tmp_path / "rows.parquet"), EVALUATE)


def test_the_shared_samples_are_read_as_documented(data_dir):
    """The WikiText-2 raw test split has 4358 rows, which joined by blank lines give exactly this text."""
    wikitext = load_text("wikitext2", EVALUATE, data_dir)
    lines = (data_dir / "wikitext2" / "wiki.test.raw").read_text().splitlines(keepends=True)
    assert len(lines) == 4358
    blank = sum(not line.strip() for line in lines)
    # each row keeps its newline, blank rows lose their " \n", and 4357 joints of two characters are added
    assert len(wikitext.content.encode()) == 1_290_590 - 2 * blank + 2 * 4357
    assert load_text("c4", EVALUATE, data_dir).split == "sample, split unknown"
    assert load_text("c4", CALIBRATE, data_dir).content != load_text("c4", EVALUATE, data_dir).content
