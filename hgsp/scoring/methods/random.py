"""Random: the control that every method must beat.

What it scores
    Nothing; every group gets a seeded uniform score.
Formula and source
    ``importance = cost * u``, u uniform in [0, 1), so that the score, importance over cost, is uniform over both kinds
    of group.
Shapes and sums
    float64 [G], drawn for one layer and kind at a time.
What it needs
    A seed.
Cost
    None.
When it misleads
    Always; that is its use.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from hgsp.scoring.methods.types import GroupMethod


def groups(num_groups: int, cost_params: int, generator: Generator) -> Tensor:
    """Return uniform random importances, float64 [G]."""
    return torch.rand(num_groups, generator=generator, dtype=torch.float64) * cost_params


RANDOM = GroupMethod("random", groups)
