"""What is minimised: next-token cross-entropy, and the distance to the dense parent's distributions.

B batch | T tokens | N = B*T positions | V vocab | k tokens kept of the parent
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hgsp.recovery.samples import IGNORED

#: Logits turned into float32 at a time, in values. On a CPU 16 MiB: larger temporaries go back to the system each time.
FLOAT_LOGITS_ON_CPU, FLOAT_LOGITS = 1 << 22, 1 << 26


@dataclass(frozen=True)
class TeacherTopK:
    """The parent's ``k`` likeliest tokens at every position, [B, T, k] each: log-probabilities, and ids."""

    values: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Objective:
    """``weight`` parts KL(parent || student) at ``temperature`` (times its square), the rest cross-entropy."""

    weight: float = 0.0
    temperature: float = 1.0

    def summed(self, logits_BTV: Tensor, labels_BT: Tensor, parent: Tensor | TeacherTopK | None = None) -> Tensor:
        """The loss in nats, float32, summed over the positions whose next token has a label.

        ``parent`` is its logits [B, T, V] or their top; needed if ``weight`` is not 0. Logits become float32 a chunk at
        a time, so that only their own dtype is held for the whole batch.
        """
        shifted = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)  # the position that predicts it
        inputs = [logits_BTV.flatten(0, 1), shifted.flatten()]
        if isinstance(parent, TeacherTopK):
            inputs += [parent.values.flatten(0, 1), parent.tokens.flatten(0, 1)]
        elif parent is not None:
            inputs.append(parent.flatten(0, 1))
        return _SumOverPieces.apply(self.piece, *inputs)

    def piece(self, logits_NV: Tensor, targets_N: Tensor, *parent: Tensor) -> Tensor:
        """The same for some positions, all at once."""
        loss = logits_NV.new_zeros((), dtype=torch.float32)
        if self.weight < 1:
            nll = cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORED, reduction="sum")
            loss = loss + (1 - self.weight) * nll
        if self.weight > 0:
            divergence_N = _divergence(logits_NV.float() / self.temperature, self.temperature, *parent)
            counts_N = targets_N != IGNORED
            loss = loss + self.weight * self.temperature**2 * (divergence_N * counts_N).sum()
        return loss


class _SumOverPieces(torch.autograd.Function):
    """Loss and gradient of one piece of the positions after another, in a single pass over the logits."""

    @staticmethod
    def forward(ctx: Any, piece: Callable[..., Tensor], logits_NV: Tensor, *others: Tensor) -> Tensor:
        at_once = FLOAT_LOGITS_ON_CPU if logits_NV.device.type == "cpu" else FLOAT_LOGITS
        rows = max(1, at_once // logits_NV.shape[-1])
        total = logits_NV.new_zeros((), dtype=torch.float32)
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[1] else None
        start = 0
        for part, *rest in zip(*(values.split(rows) for values in (logits_NV, *others)), strict=True):
            if gradient_NV is None:
                total += piece(part, *rest)
                continue
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = piece(part, *rest)
            (gradient_NV[start : start + len(part)],) = torch.autograd.grad(loss, part)
            start += len(part)
            total += loss.detach()
        ctx.gradient_NV = gradient_NV
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradient_NV = ctx.gradient_NV.mul_(upstream[0])  # in place: as large as the logits, and needed once
        del ctx.gradient_NV
        return None, gradient_NV, *[None] * (len(ctx.needs_input_grad) - 2)


def top_of(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (float32) and ids of the ``k`` likeliest tokens along the last dimension."""
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    values, tokens = log_probs.topk(k, dim=-1)
    return values, tokens


def _divergence(scaled_NV: Tensor, temperature: float, parent: Tensor, tokens_Nk: Tensor | None = None) -> Tensor:
    """KL of every position [N]. With only the parent's top, everything else is one more outcome on both sides."""
    log_q = torch.log_softmax(scaled_NV, dim=-1)
    if tokens_Nk is None:
        log_p = torch.log_softmax(parent.float() / temperature, dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    log_p, log_q = _with_rest(parent.float()), _with_rest(log_q.gather(-1, tokens_Nk))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _with_rest(log_probs_Nk: Tensor) -> Tensor:
    """Append the log-probability of all other tokens together, kept above the rounding of float32."""
    rest = torch.log1p(-log_probs_Nk.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([log_probs_Nk, rest], dim=-1)
