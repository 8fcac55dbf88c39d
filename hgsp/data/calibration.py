"""Calibration: distinct windows of real tokens, no padding.

N sequences | T tokens of a sequence
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgsp.data.texts import Text
from hgsp.errors import InputError


@dataclass(frozen=True, repr=False)
class Calibration:
    """Token windows ``input_ids``, int64 [N, T], distinct and unpadded; text, tokenizer and seed determine the hash.

    ``texts`` names the texts the windows were drawn from; ``source`` describes them for the report.
    """

    input_ids: Tensor
    source: str
    seed: int
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.input_ids.dtype == torch.int64
        assert self.input_ids.ndim == 2

    def __repr__(self) -> str:
        return f"Calibration({self.summary}, seed {self.seed})"

    @property
    def summary(self) -> str:
        """The number and length of the sequences, and their texts, in words."""
        num_sequences, seq_len = self.input_ids.shape
        return f"{num_sequences} sequences of {seq_len} tokens, {', '.join(self.texts) or self.source}"

    @property
    def sha256(self) -> str:
        """SHA-256 of the token ids, in hex."""
        return hashlib.sha256(self.input_ids.numpy().tobytes()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the report's entry for the calibration text."""
        num_sequences, seq_len = self.input_ids.shape
        return {
            "texts": list(self.texts),
            "source": self.source,
            "sequences": num_sequences,
            "seq_len": seq_len,
            "seed": self.seed,
            "sha256": self.sha256,
        }


def tokenize(text: str, tokenizer: Any) -> Tensor:
    """Return the token ids of a whole text, int64 [tokens], without special tokens."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


def build_calibration(
    texts: Text | Sequence[Text],
    tokenizer: Any,
    num_sequences: int,
    seq_len: int,
    seed: int,
    *,
    at_most: bool = False,
) -> Calibration:
    """Draw ``num_sequences`` distinct non-overlapping windows of ``seq_len`` tokens: ``input_ids`` [N, T].

    Several texts contribute equally, in shuffled order; any remainder goes to the first ones. With ``at_most``, a text
    that is too short contributes all its windows instead of being refused.

    Raises:
        InputError: a text is too short, two texts share a window, or there are more texts than sequences.
    """
    texts = [texts] if isinstance(texts, Text) else list(texts)
    each, more = divmod(num_sequences, len(texts))
    if not each:
        raise InputError(
            expected=f"at least one sequence from each of {len(texts)} calibration texts",
            got=f"{num_sequences} sequences",
            remedy="ask for more sequences or fewer texts",
        )
    drawn = [
        _draw(text, tokenizer, each + (place < more), seq_len, seed, at_most, len(texts))
        for place, text in enumerate(texts)
    ]
    rows = torch.cat(drawn)
    if len(texts) > 1:
        if len(torch.unique(rows, dim=0)) < len(rows):
            raise InputError(
                expected="calibration texts that do not repeat one another",
                got=f"the same windows in {' and '.join(text.name for text in texts)}",
                remedy="name each text once",
            )
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    source = " + ".join(f"{text.name}, {text.split}, {text.source}" for text in texts)
    return Calibration(rows.contiguous(), source, seed, tuple(text.name for text in texts))


def _draw(
    text: Text, tokenizer: Any, num_sequences: int, seq_len: int, seed: int, at_most: bool, num_texts: int
) -> Tensor:
    """Draw windows from one of ``num_texts`` texts, int64 [N, T]."""
    ids = tokenize(text.content, tokenizer)
    available = len(ids) // seq_len
    windows = ids[: available * seq_len].view(available, seq_len)
    windows = torch.unique(windows, dim=0) if available else windows  # a text can repeat itself
    if len(windows) < (min(num_sequences, 1) if at_most else num_sequences):
        hint = f"use --nsamples {len(windows) * num_texts}, " if len(windows) else "use "
        raise InputError(
            expected=f"text for {num_sequences} different windows of {seq_len} tokens",
            got=f"{len(windows)} in {text.name} ({len(ids)} tokens)",
            remedy=f"{hint}a smaller --seq_len or a longer text",
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:num_sequences]
    return windows[order]
