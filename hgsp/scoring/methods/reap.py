"""REAP: size of the output that a group adds to the residual stream, at the tokens that reach it.

What it scores
    The output of a whole group: of an expert, of the columns of ``o_proj`` of a KV group, of one channel.
Formula and source
    ``mean_t g_t * ||f(x_t)||`` over the tokens that the router sends to an expert, g the router's weight and f the
    expert (arXiv:2510.13999). Every token reaches a KV group or a channel, with weight 1. Experts that no calibration
    token reaches have importance 0.
Shapes and sums
    Outputs are float32 [N, H], of one group at a time; their norms are added in float32 [G].
What it needs
    One forward pass.
Cost
    Less than two plain forward passes: the experts and ``o_proj`` are computed twice.
When it misleads
    Output grows with depth and is no loss: large outputs of two groups may cancel. Groups are therefore ranked in their
    block by default. A rarely used expert counts as much as one that every token uses.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import OutputMethod


def groups(statistics: Mapping[str, Tensor]) -> Tensor:
    """Return the importance of the groups of one block, float32 [G]."""
    reached = statistics["reached"]
    return (statistics["output_norm"] / reached).where(reached > 0, 0.0)


REAP = OutputMethod("reap", frozenset({"output_norm", "reached"}), groups, normalization="rank")
