"""Named texts for calibration and evaluation: local files first, then the hub, never a silent substitute.

A text comes from the data folder (``--data_dir`` or ``HGSP_DATA_DIR``), else from the hub through ``datasets``.
``docs/DATA.md`` documents the folder's layout.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from hgsp.console.hub_access import ask_hub
from hgsp.console.nearest import did_you_mean
from hgsp.data.files import is_file, kind_of
from hgsp.data.rows import is_plain, text_rows
from hgsp.errors import InputError

CALIBRATE, EVALUATE = "calibrate", "evaluate"

#: C4 perplexity is conventionally measured on 1100 documents; calibration reads more, from another shard.
C4_ROWS = {CALIBRATE: 8000, EVALUATE: 1100}


@dataclass(frozen=True)
class Text:
    """A text and its origin; ``join`` is the repr of the separator between its rows."""

    name: str
    split: str
    source: str
    join: str
    content: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the UTF-8 bytes, in hex."""
        return hashlib.sha256(self.content.encode()).hexdigest()


@dataclass(frozen=True)
class TextSource:
    """A named dataset: for each use, the file names tried in ``<data_dir>/<folder>/`` and a loader for the hub's rows.

    ``clean`` turns a line of a plain file into the hub's row, so that both give the same text.
    """

    folder: str
    join: str
    clean: Callable[[str], str]
    files: dict[str, tuple[tuple[str, str], ...]]  # use -> ((file name, its split), ...)
    hub_rows: Callable[[str], tuple[str, str, list[str]]]  # use -> (source, split, rows)
    max_rows: Mapping[str, int | None] = field(default_factory=lambda: {CALIBRATE: None, EVALUATE: None})


def _wikitext2_from_hub(use: str) -> tuple[str, str, list[str]]:
    from datasets import load_dataset

    split = {CALIBRATE: "train", EVALUATE: "test"}[use]
    rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)["text"]
    return "Salesforce/wikitext", f"wikitext-2-raw-v1/{split}", list(rows)


def _ptb_from_hub(use: str) -> tuple[str, str, list[str]]:
    from datasets import load_dataset

    split = {CALIBRATE: "train", EVALUATE: "test"}[use]
    source = load_dataset("ptb-text-only/ptb_text_only", revision="refs/convert/parquet", split=split)
    return "ptb-text-only/ptb_text_only", f"penn_treebank/{split}", list(source["sentence"])


def _c4_from_hub(use: str) -> tuple[str, str, list[str]]:
    from datasets import load_dataset

    shard = {CALIBRATE: "en/c4-train.00000-of-01024.json.gz", EVALUATE: "en/c4-validation.00000-of-00008.json.gz"}[use]
    rows = load_dataset("allenai/c4", data_files={"part": shard}, split="part", streaming=True)
    return "allenai/c4", f"{shard}, first {C4_ROWS[use]}", [row["text"] for row in islice(rows, C4_ROWS[use])]


SOURCES = {
    "wikitext2": TextSource(
        "wikitext2",
        "\n\n",
        lambda line: line if line.strip() else "",
        {
            CALIBRATE: (
                ("wiki.train.raw", "wikitext-2-raw-v1/train"),
                ("wiki.train.head.raw", "wikitext-2-raw-v1/train (head)"),
            ),
            EVALUATE: (("wiki.test.raw", "wikitext-2-raw-v1/test"),),
        },
        _wikitext2_from_hub,
    ),
    "ptb": TextSource(
        "ptb",
        " ",
        str.strip,
        {
            CALIBRATE: (("ptb.train.txt", "penn_treebank/train"),),
            EVALUATE: (("ptb.test.txt", "penn_treebank/test"),),
        },
        _ptb_from_hub,
    ),
    "c4": TextSource(
        "c4",
        " ",
        str,
        {
            CALIBRATE: (
                ("c4-train.00000-of-01024.json.gz", "en/train, shard 0"),
                ("c4_demo_300.jsonl", "sample, split unknown"),
            ),
            EVALUATE: (
                ("c4-validation.00000-of-00008.json.gz", "en/validation, shard 0"),
                ("c4_sample_1000.jsonl", "sample, split unknown"),
            ),
        },
        _c4_from_hub,
        C4_ROWS,
    ),
}
ALIASES = {"wikitext": "wikitext2"}
BUILTIN = "builtin"
_BUILTIN_SOURCE = "pydoc_data.topics of this Python"
DATASET_CHOICES = (*SOURCES, BUILTIN)


def canonical_name(name: str) -> str:
    """Resolve an alias of a dataset name."""
    return ALIASES.get(name, name)


def check_dataset_name(name: str, flag: str, otherwise: str = "check the spelling or the path") -> None:
    """Refuse a name that is neither a dataset nor an existing file, before anything is loaded.

    Raises:
        InputError: lists the choices.
    """
    kind = kind_of(name)
    if canonical_name(name) in DATASET_CHOICES or kind == "file":
        return
    raise InputError(
        expected=f"{flag} to be one of {', '.join(DATASET_CHOICES)} or a text, .jsonl, .csv or .parquet file",
        got=f"'{name}'" + (f", {kind}" if kind else ""),
        remedy=did_you_mean(name, (*DATASET_CHOICES, *ALIASES), otherwise),
    )


def dataset_names(value: str) -> tuple[str, ...]:
    """Split a comma-separated list of names and drop duplicates; the path of an existing file is a single name."""
    if kind_of(value) == "file":
        return (value,)
    return tuple(dict.fromkeys(canonical_name(name.strip()) for name in value.split(",")))


def data_folder(data_dir: str | Path | None) -> Path | None:
    """Return the folder of local texts: ``data_dir``, else ``HGSP_DATA_DIR``, else None.

    Raises:
        InputError: the folder does not exist; falling back to the hub would go unnoticed.
    """
    name = data_dir or os.environ.get("HGSP_DATA_DIR")
    if name and not Path(name).is_dir():
        flag = "--data_dir" if data_dir else "HGSP_DATA_DIR"
        raise InputError(expected=f"{flag} to be a folder", got=f"'{name}'", remedy="check the path")
    return Path(name) if name else None


def texts_of(calibration: Mapping[str, Any]) -> list[str]:
    """Return the text names of a report's calibration entry; older reports only have ``source``."""
    return calibration.get("texts") or [text.partition(",")[0] for text in calibration["source"].split(" + ")]


def load_text(name: str, use: str, data_dir: str | Path | None = None) -> Text:
    """Read a named dataset or a local file.

    Args:
        name: ``wikitext2``, ``ptb``, ``c4``, ``builtin``, or a path, which serves both uses.
        use: ``CALIBRATE`` or ``EVALUATE``; named datasets have a different text for each.
        data_dir: folder of local texts; defaults to ``HGSP_DATA_DIR``.

    Raises:
        InputError: the name or ``data_dir`` does not exist, or the text is empty or neither local nor on the hub.
    """
    text = _read_text(canonical_name(name), use, data_dir)
    if not text.content.strip():
        raise InputError(
            expected=f"text in {text.name} to {use}",
            got=f"nothing in {text.source}",
            remedy="choose another text",
        )
    return text


def _read_text(name: str, use: str, data_dir: str | Path | None) -> Text:
    if name == BUILTIN:
        return _builtin_text(use)
    if name not in SOURCES:
        check_dataset_name(name, "dataset")
        path = Path(name)
        rows = list(text_rows(path, newline=""))
        join = "" if is_plain(path) else "\n\n"
        return Text(name, "whole file", path.name, repr(join), join.join(rows))
    source = SOURCES[name]
    folder = data_folder(data_dir)
    for file_name, split in source.files[use] if folder is not None else ():
        path = Path(str(folder)) / source.folder / file_name
        if is_file(path):
            rows = [source.clean(row) for row in islice(text_rows(path, newline=None), source.max_rows[use])]
            return Text(name, split, file_name, repr(source.join), source.join.join(rows))
    hub_source, split, rows = _from_hub(name, source, use, folder)
    return Text(name, split, hub_source, repr(source.join), source.join.join(rows))


def _from_hub(name: str, source: TextSource, use: str, folder: Path | None) -> tuple[str, str, list[str]]:
    local = (
        f"no {' or '.join(file for file, _ in source.files[use])} in {folder / source.folder}"
        if folder is not None
        else "no data folder"
    )
    remedy = (
        f"put {source.folder}/{source.files[use][0][0]} into the folder given by --data_dir or HGSP_DATA_DIR, or go "
        "online with `pip install datasets`; 'builtin' and your own text files work as well"
    )
    ask_hub()
    try:
        return source.hub_rows(use)
    except ImportError:
        reason = "the package `datasets` is not installed"
    except (OSError, ValueError, RuntimeError) as error:  # raised by datasets and huggingface_hub when offline
        reason = f"the hub did not answer ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    raise InputError(expected=f"text of dataset '{name}' to {use}", got=f"{local}, and {reason}", remedy=remedy)


def _builtin_text(use: str) -> Text:
    """Return English text that ships with CPython: the pydoc help topics, alternating between the two uses.

    Topics quote one another, so the calibration half omits every paragraph of the evaluation half.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    evaluated = "\n\n".join(topics[topic] for topic in names[1::2])
    if use == EVALUATE:
        return Text(BUILTIN, "odd topics", _BUILTIN_SOURCE, repr("\n\n"), evaluated)
    seen = set(evaluated.split("\n\n"))
    paragraphs = "\n\n".join(topics[topic] for topic in names[::2]).split("\n\n")
    content = "\n\n".join(paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen)
    return Text(BUILTIN, "even topics", _BUILTIN_SOURCE, repr("\n\n"), content)
