"""Tensors of an export, made of tensors of the checkpoint with zeros around them.

A padded query head, KV head or MLP channel has zero rows in its input projections and zero columns in the output
projection, so that the block computes the same.

K kept KV groups | R query heads per KV head | N query heads and G KV heads of the export | D head dim
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Part:
    """A tensor of the checkpoint and the place of its rows (``dim`` 0) or columns (1) in a tensor of the export."""

    source: str
    dim: int
    positions: Sequence[int]


@dataclass(frozen=True)
class PaddedTensor:
    """A tensor of the export; places that no part takes hold ``fill``."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    fill: float = 0.0

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    def build(self, read: Read, dtype: torch.dtype) -> Tensor:
        """Return the tensor, in the dtype of its parts.

        Args:
            read: returns a tensor of the checkpoint by name.
            dtype: of a tensor without parts.
        """
        sources = [read(part.source) for part in self.parts]
        padded = torch.full(self.shape, self.fill, dtype=sources[0].dtype if sources else dtype)
        for part, source in zip(self.parts, sources, strict=True):
            padded.index_copy_(part.dim, torch.tensor(part.positions), source)
        return padded

    def holds(self, written: Tensor, read: Read) -> bool:
        """Return whether ``written``, without its padding, equals the checkpoint, and the padding holds ``fill``."""
        if tuple(written.shape) != self.shape:
            return False
        padding = torch.ones(self.shape, dtype=torch.bool)
        for part in self.parts:
            positions = torch.tensor(part.positions)
            if not torch.equal(written.index_select(part.dim, positions), read(part.source)):
                return False
            padding.index_fill_(part.dim, positions, False)
        return bool((written[padding] == self.fill).all())


class HeadLayout(NamedTuple):
    """Query heads N and KV heads G of one layer of an export; every N/G query heads share a KV head."""

    num_queries: int
    num_kv: int

    @property
    def queries_per_kv(self) -> int:
        return self.num_queries // self.num_kv

    def query_positions(self, kept: int, queries_per_kv: int, head_dim: int) -> list[int]:
        """Return the rows [K*R*D] of the kept query heads: the first R heads of each of the first K groups."""
        heads = (k * self.queries_per_kv + r for k in range(kept) for r in range(queries_per_kv))
        return [head * head_dim + d for head in heads for d in range(head_dim)]


def smallest_layout(kept: int, queries_per_kv: int, num_queries: int) -> HeadLayout | None:
    """Return the layout with the fewest KV heads that has place for K groups of R query heads; None if there is none.

    A layer without attention gets one KV head.
    """
    for num_kv in range(max(kept, 1), num_queries + 1):
        if num_queries % num_kv == 0 and num_queries // num_kv >= queries_per_kv * (kept > 0):
            return HeadLayout(num_queries, num_kv)
    return None


def cheapest_num_queries(kept: Sequence[int], queries_per_kv: int, preferred: int) -> int:
    """Return N, the same in every layer, for which padding adds the fewest parameters.

    Args:
        kept: K of every layer; 0 where the attention has no heads in the export.
        preferred: N among several that add equally few.
    """
    least = max(kept) * queries_per_kv

    def heads(num_queries: int) -> tuple[int, bool]:
        layouts = [smallest_layout(k, queries_per_kv, num_queries) for k in kept if k]
        # q_proj and o_proj, and k_proj and v_proj, have two matrices of head_dim * hidden_size per head
        return sum(num_queries + layout.num_kv for layout in layouts if layout), num_queries != preferred

    # an N above twice the least has more query heads than the least N has query and KV heads together
    fitting = (n for n in range(least, 2 * least + 1) if all(smallest_layout(k, queries_per_kv, n) for k in kept))
    return min(fitting, key=heads)


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
