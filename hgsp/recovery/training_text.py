"""Training texts: the samples of one or several sources, split into those for training and held-out ones.

Several sources contribute equally many tokens: all that the shortest has, and as many of the others, in random order.

T tokens
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from hgsp.data.chat_templates import prints_date
from hgsp.data.fields import name_of
from hgsp.data.files import kind_of
from hgsp.data.rows import is_plain
from hgsp.data.texts import CALIBRATE, DATASET_CHOICES, Text, load_text
from hgsp.errors import InputError
from hgsp.recovery.config import TrainingConfig
from hgsp.recovery.instructions import load_rows, passage_of
from hgsp.recovery.samples import Sample, pack, tokenize_passages, windows_of_text

LOG = logging.getLogger(__name__)

MAX_VALIDATION_ROWS, VALIDATION_SHARE = 128, 0.05
#: Fields of rows that a report names because the training text does not have them.
MAX_UNUSED_FIELDS = 20
Item = TypeVar("Item")


@dataclass(frozen=True)
class TrainingText:
    """Samples for training and validation, a description for the report, and the texts they are made of."""

    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    description: dict[str, Any]
    texts: tuple[Text, ...]

    @property
    def largest_id(self) -> int:
        return max(int(sample.input_ids.max()) for sample in self.train + self.held_out)

    @property
    def sha256(self) -> str:
        """The hash of all samples: token ids, labels, starts, and which of them are held out."""
        digest = hashlib.sha256()
        for part in (self.train, self.held_out):
            for sample in part:
                digest.update(np.array([len(sample.input_ids), *sample.starts], np.int64).tobytes())
                digest.update(sample.input_ids.tobytes() + sample.labels.tobytes())
            digest.update(b"end of part")
        return digest.hexdigest()

    @property
    def warnings(self) -> list[str]:
        """Warnings for the report."""
        empty, unused = self.description["empty_samples"], self.description.get("unused_fields")
        warnings = [f"rows skipped because their answers are empty: {empty}"] if empty else []
        if unused:
            counted = ", ".join(f"{name_of(field)} ({count:,})" for field, count in unused.items())
            warnings.append(f"fields that are no part of the training text, with their rows: {counted}")
        if self.description.get("template_prints_date"):
            warnings.append(
                "the chat template prints today's date: the same rows are another text, with another hash, tomorrow "
                "(--resume then refuses it)"
            )
        return warnings


@dataclass(frozen=True)
class _Part:
    """The samples of one source; ``notes`` counts empty, cut and dropped ones, ``unused`` the fields of its rows."""

    name: str
    text: Text
    train: list[Sample]
    held_out: list[Sample]
    learns_everything: bool
    notes: Counter[str]
    unused: Counter[str] = field(default_factory=Counter)
    prints_date: bool = False

    @property
    def source(self) -> str:
        return Path(self.name).name if kind_of(self.name) else self.name

    @property
    def num_tokens(self) -> int:
        return sum(len(sample.input_ids) for sample in self.train)

    def at_most(self, num_tokens: int) -> _Part:
        """Return the part with its first training samples, as many as have no more tokens, but at least one."""
        ends = np.cumsum([len(sample.input_ids) for sample in self.train])
        return replace(self, train=self.train[: max(1, int((ends <= num_tokens).sum()))])


def load_training_text(config: TrainingConfig, tokenizer: Any) -> TrainingText:
    """Read, tokenize, truncate and split the texts of ``data_path``.

    With a teacher every token counts, as with ``train_on_inputs``.

    Raises:
        InputError: no such text, no rows, unknown or missing fields, no answer within ``cutoff_len``, too few rows to
            hold out, or a tokenizer without an end-of-text token or, for rows, without offsets.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            expected="a tokenizer with an end-of-text token", got="one without", remedy="set eos_token in its files"
        )
    whole = [_read_part(config, place, tokenizer) for place in range(len(config.data_paths))]
    parts = whole
    if len(whole) > 1:
        shortest = min(part.num_tokens for part in whole)
        parts = [part.at_most(shortest) for part in whole]
    train = [sample for part in parts for sample in part.train]
    held_out = [sample for part in parts for sample in part.held_out]
    num_samples = len(train) + len(held_out)
    if config.probe_learning_rates and not held_out:
        raise InputError(
            expected="rows to hold out, which judge --probe_learning_rates",
            got=f"none of {num_samples}",
            remedy="set --val_size, or give a --learning_rate",
        )
    if config.packing:
        train, held_out = pack(train, config.cutoff_len), pack(held_out, config.cutoff_len)
    notes = sum((part.notes for part in parts), Counter[str]())
    description = {
        "source": " + ".join(part.source for part in parts),
        "samples": num_samples,
        "empty_samples": notes["empty"],
        "cut_samples": notes["cut"],
        "dropped_samples": notes["dropped"],
        "train_sequences": len(train),
        "held_out_sequences": len(held_out),
        "train_tokens": sum(len(sample.input_ids) for sample in train),
        "train_learned_tokens": sum(sample.num_learned for sample in train),
        "cutoff_len": config.cutoff_len,
        "packed": config.packing,
        "learned": _learned(parts),
        "unused_fields": dict(sum((part.unused for part in parts), Counter[str]()).most_common(MAX_UNUSED_FIELDS)),
        "template_prints_date": any(part.prints_date for part in parts),
        "texts": [
            {
                "source": used.source,
                "train_samples": len(used.train),
                "train_tokens": used.num_tokens,
                "left_out_samples": len(all_of_it.train) - len(used.train),
            }
            for used, all_of_it in zip(parts, whole, strict=True)
        ],
    }
    found = TrainingText(tuple(train), tuple(held_out), description, tuple(part.text for part in parts))
    for warning in found.warnings:
        LOG.warning("%s", warning)
    return found


def _learned(parts: Sequence[_Part]) -> str:
    everything = {part.learns_everything for part in parts}
    if everything == {True, False}:
        return "answers, and every token of plain texts"
    return "every token" if everything == {True} else "answers"


def _read_part(config: TrainingConfig, place: int, tokenizer: Any) -> _Part:
    """Read the source at one place of ``data_paths``."""
    name = config.data_paths[place]
    read = _read_plain_text if _is_plain_text(name) else _read_rows
    part = read(name, config, place, tokenizer)
    _refuse_empty(part, config)
    return part


def _read_plain_text(name: str, config: TrainingConfig, place: int, tokenizer: Any) -> _Part:
    """Cut a plain text into windows that are learned whole."""
    text = load_text(name, CALIBRATE, config.data_dir)
    windows = windows_of_text(text, config.cutoff_len, tokenizer)
    if not windows:
        raise InputError(
            expected=f"a text of at least one window of {config.cutoff_len} tokens (--cutoff_len)",
            got=f"a shorter one in {name}",
            remedy="lower --cutoff_len or use a longer text",
        )
    return _Part(name, text, *_split(windows, config, place), learns_everything=True, notes=Counter())


def _read_rows(name: str, config: TrainingConfig, place: int, tokenizer: Any) -> _Part:
    """Tokenize rows that have an answer; their prompts are learned too with a teacher or ``train_on_inputs``."""
    if not tokenizer.is_fast:
        raise InputError(
            expected="a fast tokenizer, which returns the offsets of tokens",
            got=type(tokenizer).__name__,
            remedy="add the fast tokenizer (tokenizer.json) to the model, or train on a text file",
        )
    everything = config.train_on_inputs or config.distill_from is not None
    passages = [passage_of(row, tokenizer) for row in load_rows(name)]
    answered = [passage for passage in passages if passage.answers]
    (train, cut), (held_out, held_out_cut) = (
        tokenize_passages(part, tokenizer, config.cutoff_len, everything=everything)
        for part in _split(answered, config, place)
    )
    return _Part(
        name,
        Text(name, "train", name, repr("\n\n"), "\n\n".join(passage.text for passage in passages)),
        train,
        held_out,
        learns_everything=everything,
        notes=Counter(empty=len(passages) - len(answered)) + cut + held_out_cut,
        unused=Counter(field for passage in passages for field in passage.unused),
        prints_date=prints_date(tokenizer) and any(passage.has_special_tokens for passage in passages),
    )


def _is_plain_text(name: str) -> bool:
    return name in DATASET_CHOICES or (kind_of(name) == "file" and is_plain(Path(name)))


def _refuse_empty(part: _Part, config: TrainingConfig) -> None:
    notes = part.notes
    if not part.train:
        raise InputError(
            expected=f"samples with an answer to learn in {part.name}",
            got=f"none: {notes['empty']} with an empty answer, {notes['dropped']} without one within --cutoff_len "
            f"{config.cutoff_len}",
            remedy="raise --cutoff_len or use other rows",
        )
    if notes["cut"]:
        LOG.info(
            "%d samples of %s truncated to --cutoff_len %d, %d of them dropped: no answer left",
            notes["cut"],
            part.source,
            config.cutoff_len,
            notes["dropped"],
        )


def _split(items: Sequence[Item], config: TrainingConfig, place: int) -> tuple[list[Item], list[Item]]:
    """Split one source into training and validation items by seed; ``val_size`` is shared among the sources."""
    num_sources = len(config.data_paths)
    if config.val_size is None:
        size = min(MAX_VALIDATION_ROWS // num_sources, int(len(items) * VALIDATION_SHARE))
    else:
        size = len(range(place, config.val_size, num_sources))
    if size >= len(items) > 0:
        raise InputError(
            expected=f"--val_size below the number of samples, {len(items)} in {config.data_paths[place]}",
            got=str(config.val_size),
            remedy="lower --val_size",
        )
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(config.seed)).tolist()
    shuffled = [items[index] for index in order]
    return shuffled[size:], shuffled[:size]
