"""Common divisors of head counts and widths, and the tensor-parallel degrees that they allow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hgsp.exports.source import ExportSource

#: Degrees of tensor parallelism that servers offer, and group sizes of quantisers.
DEGREES = (2, 4, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Divisibility:
    """Numbers that divide the sizes of all layers.

    Args:
        kv_heads, mlp_widths: greatest common divisors, over the layers that have the block; 0 if none has.
        tensor_parallel: degrees that split the query heads, channels and KV heads of every layer. Fewer KV heads than
            the degree are copied, and must divide it.
        group_sizes: of quantisation, that divide the columns of every matrix.
    """

    kv_heads: int
    mlp_widths: int
    tensor_parallel: tuple[int, ...]
    group_sizes: tuple[int, ...]


def divisibility_of(source: ExportSource) -> Divisibility:
    """Compute the divisors of a checkpoint's sizes."""
    kv_heads = [shape.num_kv_groups for shape in source.shapes if shape.num_kv_groups]
    widths = [shape.mlp_width for shape in source.shapes if shape.mlp_width]
    per_group = source.queries_per_kv * source.head_dim
    columns = math.gcd(source.hidden_size, *widths, *(count * per_group for count in kv_heads))

    def splits(degree: int) -> bool:
        queries = math.gcd(*kv_heads) * source.queries_per_kv
        evenly = all(count % degree == 0 or degree % count == 0 for count in kv_heads)
        return evenly and queries % degree == 0 and math.gcd(*widths) % degree == 0

    return Divisibility(
        math.gcd(*kv_heads),
        math.gcd(*widths),
        tuple(degree for degree in DEGREES if splits(degree)),
        tuple(size for size in GROUP_SIZES if columns % size == 0),
    )
