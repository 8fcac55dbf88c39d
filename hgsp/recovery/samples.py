"""Training samples: token ids with labels, truncated, split, packed, and padded into batches.

A label is the token itself where it counts in the loss and ``IGNORED`` elsewhere. The end-of-text token is learned once
per sample, after its last answer, and never in a truncated sample.

B batch | T tokens
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hgsp.data.calibration import tokenize
from hgsp.data.chat_templates import prints_date
from hgsp.data.fields import name_of
from hgsp.data.files import kind_of
from hgsp.data.rows import is_plain
from hgsp.data.texts import CALIBRATE, DATASET_CHOICES, Text, canonical_name, load_text
from hgsp.errors import InputError
from hgsp.recovery.config import TrainingConfig
from hgsp.recovery.instructions import Passage, load_rows, passage_of

LOG = logging.getLogger(__name__)

IGNORED = -100
MAX_VALIDATION_ROWS, VALIDATION_SHARE = 128, 0.05
TOKENIZED_AT_ONCE = 1000
#: Fields of rows that a report names because the training text does not have them.
MAX_UNUSED_FIELDS = 20
Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """Token ids and labels, int32 [T] each; ``starts`` are the positions where packed samples begin."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    starts: tuple[int, ...] = (0,)

    @property
    def num_learned(self) -> int:
        """The number of tokens that count in the loss."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class TrainingText:
    """Samples for training and validation, a description for the report, and the text they are made of."""

    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    description: dict[str, Any]
    text: Text

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


def load_training_text(config: TrainingConfig, tokenizer: Any) -> TrainingText:
    """Read, tokenize, truncate and split the text of ``data_path``.

    With a teacher every token counts, as with ``train_on_inputs``.

    Raises:
        InputError: no such text, no rows, unknown or missing fields, no answer within ``cutoff_len``, too few rows to
            hold out, or a tokenizer without an end-of-text token or, for rows, without offsets.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            expected="a tokenizer with an end-of-text token", got="one without", remedy="set eos_token in its files"
        )
    plain = _is_plain_text(config.data_path)
    everything = plain or config.train_on_inputs or config.distill_from is not None
    about_rows: dict[str, Any] = {}
    if plain:
        text, train, held_out, notes = _samples_of_text(config, tokenizer)
    else:
        text, train, held_out, notes, about_rows = _samples_of_rows(config, tokenizer, everything=everything)
    _refuse_empty(train, config, notes)
    num_samples = len(train) + len(held_out)
    if config.packing:
        train, held_out = pack(train, config.cutoff_len), pack(held_out, config.cutoff_len)
    description = {
        "source": Path(config.data_path).name if kind_of(config.data_path) else config.data_path,
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
        "learned": "every token" if everything else "answers",
        **about_rows,
    }
    found = TrainingText(tuple(train), tuple(held_out), description, text)
    for warning in found.warnings:
        LOG.warning("%s", warning)
    return found


def _samples_of_text(config: TrainingConfig, tokenizer: Any) -> tuple[Text, list[Sample], list[Sample], Counter[str]]:
    """Cut a plain text into windows that are learned whole; held-out windows are the second part of the result."""
    text = load_text(config.data_path, CALIBRATE, config.data_dir)
    windows = _windows(text, config.cutoff_len, tokenizer)
    if not windows:
        raise InputError(
            expected=f"a text of at least one window of {config.cutoff_len} tokens (--cutoff_len)",
            got=f"a shorter one in {config.data_path}",
            remedy="lower --cutoff_len or use a longer text",
        )
    train, held_out = _split(windows, config)
    return text, train, held_out, Counter[str]()


def _samples_of_rows(
    config: TrainingConfig, tokenizer: Any, *, everything: bool
) -> tuple[Text, list[Sample], list[Sample], Counter[str], dict[str, Any]]:
    """Tokenize rows that have an answer; ``everything`` learns their prompts too. The last part is for the report."""
    if not tokenizer.is_fast:
        raise InputError(
            expected="a fast tokenizer, which returns the offsets of tokens",
            got=type(tokenizer).__name__,
            remedy="add the fast tokenizer (tokenizer.json) to the model, or train on a text file",
        )
    passages = [passage_of(row, tokenizer) for row in load_rows(config.data_path)]
    content = "\n\n".join(passage.text for passage in passages)
    text = Text(config.data_path, "train", config.data_path, repr("\n\n"), content)
    answered = [passage for passage in passages if passage.answers]
    parts = [
        tokenize_passages(part, tokenizer, config.cutoff_len, everything=everything)
        for part in _split(answered, config)
    ]
    (train, held_out), notes = (samples for samples, _ in parts), Counter(empty=len(passages) - len(answered))
    about_rows = {
        "unused_fields": dict(
            Counter(field for passage in passages for field in passage.unused).most_common(MAX_UNUSED_FIELDS)
        ),
        "template_prints_date": prints_date(tokenizer) and any(passage.has_special_tokens for passage in passages),
    }
    return text, train, held_out, sum((counts for _, counts in parts), notes), about_rows


def tokenize_passages(
    passages: Sequence[Passage], tokenizer: Any, cutoff_len: int, *, everything: bool
) -> tuple[list[Sample], Counter[str]]:
    """Return samples of at most ``cutoff_len`` tokens with a label, and how many were truncated and dropped."""
    samples: list[Sample] = []
    cut = 0
    for with_special in (False, True):
        group = [passage for passage in passages if passage.has_special_tokens is with_special]
        for start in range(0, len(group), TOKENIZED_AT_ONCE):
            part = group[start : start + TOKENIZED_AT_ONCE]
            encoded = tokenizer(
                [passage.text for passage in part],
                add_special_tokens=not with_special,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
            for passage, ids, offsets in zip(part, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                sample, length = _sample(passage, ids, offsets, tokenizer.eos_token_id, cutoff_len, everything)
                cut += length > cutoff_len
                samples.append(sample)
    kept = [sample for sample in samples if sample.num_learned]
    return kept, Counter(cut=cut, dropped=len(samples) - len(kept))


def pack(samples: Sequence[Sample], length: int) -> list[Sample]:
    """Join consecutive samples as long as they fit into ``length`` tokens."""
    packed: list[list[Sample]] = []
    room = 0
    for sample in samples:
        if not packed or len(sample.input_ids) > room:
            packed.append([])
            room = length
        packed[-1].append(sample)
        room -= len(sample.input_ids)
    return [_joined(part) for part in packed]


def _is_plain_text(data_path: str) -> bool:
    return canonical_name(data_path) in DATASET_CHOICES or (kind_of(data_path) == "file" and is_plain(Path(data_path)))


def _sample(
    passage: Passage, ids: list[int], offsets: list[tuple[int, int]], eos: int, cutoff_len: int, everything: bool
) -> tuple[Sample, int]:
    """Return one sample and its length before truncation. A token belongs to the answer in which it begins."""
    in_answer = [any(first <= start < end for first, end in passage.answers) for start, _ in offsets]
    ids, in_answer = _end_once(ids, in_answer, passage.text, offsets, eos)
    labels = [token if everything or counts else IGNORED for token, counts in zip(ids, in_answer, strict=True)]
    labels[0] = IGNORED  # no token predicts the first one
    kept, kept_labels = (np.array(values[:cutoff_len], dtype=np.int32) for values in (ids, labels))
    return Sample(kept, kept_labels), len(ids)


def _end_once(
    ids: list[int], in_answer: list[bool], text: str, offsets: list[tuple[int, int]], eos: int
) -> tuple[list[int], list[bool]]:
    """Keep exactly one end-of-text token after the last answer: that of the template or text, else an added one."""
    written = [at for at, token in enumerate(ids) if token == eos and offsets[at][1] > offsets[at][0]]
    if written and in_answer[written[-1]] and not text[offsets[written[-1]][1] :].strip():
        return ids[: written[-1] + 1], in_answer[: written[-1] + 1]
    while ids and ids[-1] == eos:  # added by the tokenizer
        ids, in_answer = ids[:-1], in_answer[:-1]
    return [*ids, eos], [*in_answer, True]


def _windows(text: Text, length: int, tokenizer: Any) -> list[Sample]:
    """Split a text into consecutive full windows in which every token counts."""
    ids = tokenize(text.content, tokenizer).to(torch.int32).split(length)
    full = [window.numpy() for window in ids if len(window) == length]
    return [Sample(window, np.concatenate([[IGNORED], window[1:]]).astype(np.int32)) for window in full]


def _refuse_empty(train: Sequence[Sample], config: TrainingConfig, notes: Mapping[str, int]) -> None:
    if not train:
        raise InputError(
            expected="samples with an answer to learn",
            got=f"none: {notes['empty']} with an empty answer, {notes['dropped']} without one within --cutoff_len "
            f"{config.cutoff_len}",
            remedy="raise --cutoff_len or use other rows",
        )
    if notes["cut"]:
        LOG.info(
            "%d samples truncated to --cutoff_len %d, %d of them dropped: no answer left",
            notes["cut"],
            config.cutoff_len,
            notes["dropped"],
        )


def _split(items: Sequence[Item], config: TrainingConfig) -> tuple[list[Item], list[Item]]:
    """Split into training and validation items by seed, whatever counts in the loss."""
    size = config.val_size
    if size is None:
        size = min(MAX_VALIDATION_ROWS, int(len(items) * VALIDATION_SHARE))
    if size >= len(items) > 0:
        raise InputError(
            expected=f"--val_size below the number of samples, {len(items)}", got=str(size), remedy="lower --val_size"
        )
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(config.seed)).tolist()
    shuffled = [items[index] for index in order]
    return shuffled[size:], shuffled[:size]


def _joined(samples: Sequence[Sample]) -> Sample:
    lengths = [len(sample.input_ids) for sample in samples]
    starts = tuple(np.cumsum([0, *lengths[:-1]]).tolist())
    ids, labels = (np.concatenate([getattr(sample, name) for sample in samples]) for name in ("input_ids", "labels"))
    return Sample(ids, labels, starts)
