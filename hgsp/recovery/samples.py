"""Training samples: token ids with labels, truncated and packed.

A label is the token itself where it counts in the loss and ``IGNORED`` elsewhere. The end-of-text token is learned once
per sample, after its last answer, and never in a truncated sample.

B batch | T tokens
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hgsp.data.calibration import tokenize
from hgsp.data.texts import Text
from hgsp.recovery.instructions import Passage

IGNORED = -100
TOKENIZED_AT_ONCE = 1000


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


def windows_of_text(text: Text, length: int, tokenizer: Any) -> list[Sample]:
    """Split a text into consecutive full windows in which every token but the first counts."""
    ids = tokenize(text.content, tokenizer).to(torch.int32).split(length)
    full = [window.numpy() for window in ids if len(window) == length]
    return [Sample(window, np.concatenate([[IGNORED], window[1:]]).astype(np.int32)) for window in full]


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


def _joined(samples: Sequence[Sample]) -> Sample:
    lengths = [len(sample.input_ids) for sample in samples]
    starts = tuple(np.cumsum([0, *lengths[:-1]]).tolist())
    ids, labels = (np.concatenate([getattr(sample, name) for sample in samples]) for name in ("input_ids", "labels"))
    return Sample(ids, labels, starts)
