"""Batches of training samples: padded, or packed with positions that restart.

B batch | T tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hgsp.recovery.samples import IGNORED, Sample


@dataclass(frozen=True)
class Collator:
    """Collate the samples of one forward pass into tensors [B, T], padded on the right.

    A packed batch has no mask but ``position_ids`` that restart with every sample, by which transformers prevents
    attention across samples.
    """

    pad_token_id: int
    packed: bool

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        samples: list[Sample] = [row["sample"] for row in rows]
        length = max(len(sample.input_ids) for sample in samples)
        batch = {
            "input_ids": _padded([sample.input_ids for sample in samples], length, self.pad_token_id),
            "labels": _padded([sample.labels for sample in samples], length, IGNORED),
        }
        if self.packed:
            batch["position_ids"] = torch.stack([_positions(sample, length) for sample in samples])
        else:
            batch["attention_mask"] = _padded([np.ones_like(sample.input_ids) for sample in samples], length, 0)
        if "teacher" in rows[0]:
            batch["teacher_values"], batch["teacher_tokens"] = (
                torch.stack(
                    [
                        torch.nn.functional.pad(row["teacher"][part], (0, 0, 0, length - len(row["teacher"][part])))
                        for row in rows
                    ]
                )
                for part in (0, 1)
            )
        return batch


def _padded(arrays: Sequence[NDArray[np.int32]], length: int, value: int) -> torch.Tensor:
    padded = [np.pad(array, (0, length - len(array)), constant_values=value) for array in arrays]
    return torch.from_numpy(np.stack(padded)).long()


def _positions(sample: Sample, length: int) -> torch.Tensor:
    """Return positions [T] that restart with every packed sample and with the padding."""
    bounds = [*sample.starts, len(sample.input_ids), length]
    return torch.cat([torch.arange(end - start) for start, end in pairwise(bounds)])
