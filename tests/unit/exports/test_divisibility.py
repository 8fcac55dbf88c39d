"""Common divisors, tensor-parallel degrees and group sizes."""

import pytest

from hgsp.exports.divisibility import divisibility_of
from sources import DENSE, source_of


@pytest.mark.parametrize(
    ("shapes", "kv_heads", "mlp_widths", "degrees", "groups"),
    [
        (DENSE, 8, 14336, (2, 4, 8), (32, 64, 128)),
        (((6, 14336), (4, 13312)), 2, 1024, (2,), (32, 64, 128)),  # a degree of 4 does not split 6 KV heads
        (((7, 14336), (8, 13312)), 1, 1024, (), (32, 64, 128)),
        (((1, 14336), (2, 14336)), 1, 14336, (2, 4), (32, 64, 128)),  # fewer KV heads than processes are copied
        (((8, 14336), (8, 13345)), 8, 1, (), ()),
        (((8, 14336), (0, 14304)), 8, 32, (2, 4, 8), (32,)),
        (((8, 0), (8, 14336)), 8, 14336, (2, 4, 8), (32, 64, 128)),
    ],
)
def test_divisors(shapes, kv_heads, mlp_widths, degrees, groups):
    found = divisibility_of(source_of(shapes))
    assert (found.kv_heads, found.mlp_widths) == (kv_heads, mlp_widths)
    assert (found.tensor_parallel, found.group_sizes) == (degrees, groups)
