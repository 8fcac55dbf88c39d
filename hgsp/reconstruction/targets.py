"""Targets of an output projection: the error of its output in the space in which the block is linear in its weights.

Let d and p be the residual streams of the dense and the pruned model before a block, d' and p' after it, and
e = d' - p' the error to be removed. Where the stream is x + c y, with y the output of the projection and c a multiplier
(1 in most families), the error of y is e / c.

Where a norm N follows the projection, x + N(y) with N(y) = w * y / rms(y), the stream is no linear function of the
weights, and no y gives N(y) every value: its direction is free, its length is not. Two targets are linear:

- y of the dense block, which ignores the error d - p that the stream has when it enters the block;
- the y that N would turn into the missing summand d' - p if it divided by the RMS r of the DENSE y. It has the right
  direction, and N restores its length; but where a gain is near zero it asks for outputs without bound.

Both are used, the second as far as a gain allows it. Divided by r, the error of output h is

    (y_dense - y_pruned) / r + w_h (d - p)_h / (c (w_h^2 + s^2)),   s^2 = DAMPING * mean w^2,

fitted on inputs that are divided by r as well, so that every token counts as it does behind the norm.

B batch | T tokens | H hidden
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Weight of the dense block's own output in the target, relative to the mean square of the norm's gains.
DAMPING = 0.1


@dataclass(frozen=True)
class Streams:
    """The residual streams of both models before and after a block, [B, T, H] each."""

    dense: Tensor
    dense_after: Tensor
    pruned: Tensor
    pruned_after: Tensor


@dataclass(frozen=True)
class Target:
    """What one batch adds to the moments: error and dense output [B, T, H], and a scale of every token [B, T, 1]."""

    error: Tensor
    output: Tensor
    token_scale: Tensor | None = None


def residual_target(streams: Streams, multiplier: float | None) -> Target:
    """Return the target of a block whose output is added to the stream as it is or times a multiplier."""
    error = streams.dense_after.float() - streams.pruned_after.float()
    output = streams.dense_after.float() - streams.dense.float()
    return Target(error, output) if multiplier is None else Target(error / multiplier, output / multiplier)


def normed_target(streams: Streams, norm: Any, dense_output: Tensor, pruned_output: Tensor, factor: float) -> Target:
    """Return the target of a block whose output is normalised before it is added to the stream.

    Args:
        norm: an RMS norm.
        dense_output, pruned_output: of the output projections, [B, T, H].
        factor: the multiplier c.
    """
    dense = dense_output.float()
    scale = 1 / dense.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    gain_H = gains(norm).to(dense.device)
    inherited = (streams.dense.float() - streams.pruned.float()) / factor
    damped_H = gain_H / (gain_H.square() + DAMPING * gain_H.square().mean())
    return Target((dense - pruned_output.float()) * scale + damped_H * inherited, dense * scale, scale)


def gains(norm: Any) -> Tensor:
    """Return the gains of an RMS norm, float32 [H]; some families store them as they are, others minus one."""
    return norm(torch.ones_like(norm.weight)).float()
