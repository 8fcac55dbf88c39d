"""Training losses: next-token cross-entropy and KL to the teacher's distributions (arXiv:1503.02531).

B batch | T tokens | N = B*T positions | V vocab | k top tokens of the teacher
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hgsp.recovery.samples import IGNORED

#: Logits cast to float32 at a time. On a CPU 16 MiB: larger temporaries go back to the system each time.
FLOAT_LOGITS_ON_CPU, FLOAT_LOGITS = 1 << 22, 1 << 26


@dataclass(frozen=True)
class TeacherTopK:
    """The teacher's top ``k`` tokens at every position: log-probabilities and ids, [B, T, k] each."""

    values: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Objective:
    """``weight`` * T^2 * KL(teacher || student) at temperature T, plus (1 - ``weight``) * cross-entropy."""

    weight: float = 0.0
    temperature: float = 1.0

    def summed(self, logits_BTV: Tensor, labels_BT: Tensor, teacher: Tensor | TeacherTopK | None = None) -> Tensor:
        """Return the loss in nats, a float32 scalar summed over the positions whose next token has a label.

        ``teacher``: logits [B, T, V] or their top k; required if ``weight`` > 0. Logits are cast to float32 a chunk at
        a time, so that the whole batch exists in its own dtype only.
        """
        shifted = torch.nn.functional.pad(
            labels_BT[:, 1:], (0, 1), value=IGNORED
        )  # aligned with the position that predicts it
        inputs = [logits_BTV.flatten(0, 1), shifted.flatten()]
        if isinstance(teacher, TeacherTopK):
            inputs += [teacher.values.flatten(0, 1), teacher.tokens.flatten(0, 1)]
        elif teacher is not None:
            inputs.append(teacher.flatten(0, 1))
        return _SumOverChunks.apply(self.chunk, *inputs)

    def chunk(self, logits_NV: Tensor, targets_N: Tensor, *teacher: Tensor) -> Tensor:
        """Return the summed loss of some positions at once."""
        loss = logits_NV.new_zeros((), dtype=torch.float32)
        if self.weight < 1:
            nll = cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORED, reduction="sum")
            loss = loss + (1 - self.weight) * nll
        if self.weight > 0:
            divergence_N = _divergence(logits_NV.float() / self.temperature, self.temperature, *teacher)
            counts_N = targets_N != IGNORED
            loss = loss + self.weight * self.temperature**2 * (divergence_N * counts_N).sum()
        return loss


class _SumOverChunks(torch.autograd.Function):
    """Loss and gradient, one chunk of the positions at a time, in a single pass over the logits."""

    @staticmethod
    def forward(ctx: Any, chunk_loss: Callable[..., Tensor], logits_NV: Tensor, *others: Tensor) -> Tensor:
        at_once = FLOAT_LOGITS_ON_CPU if logits_NV.device.type == "cpu" else FLOAT_LOGITS
        rows = max(1, at_once // logits_NV.shape[-1])
        total = logits_NV.new_zeros((), dtype=torch.float32)
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[1] else None
        start = 0
        for part, *rest in zip(*(values.split(rows) for values in (logits_NV, *others)), strict=True):
            if gradient_NV is None:
                total += chunk_loss(part, *rest)
                continue
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = chunk_loss(part, *rest)
            (gradient_NV[start : start + len(part)],) = torch.autograd.grad(loss, part)
            start += len(part)
            total += loss.detach()
        ctx.gradient_NV = gradient_NV
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradient_NV = ctx.gradient_NV.mul_(upstream[0])  # in place: it is as large as the logits and needed once
        del ctx.gradient_NV
        return None, gradient_NV, *[None] * (len(ctx.needs_input_grad) - 2)


def top_of(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (float32) and ids [..., k] of the top ``k`` tokens of logits [..., V]."""
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    values, tokens = log_probs.topk(k, dim=-1)
    return values, tokens


def _divergence(scaled_NV: Tensor, temperature: float, teacher: Tensor, tokens_Nk: Tensor | None = None) -> Tensor:
    """Return KL per position [N]. With the teacher's top k, the rest is one more outcome of both distributions."""
    log_q = torch.log_softmax(scaled_NV, dim=-1)
    if tokens_Nk is None:
        log_p = torch.log_softmax(teacher.float() / temperature, dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    log_p, log_q = _with_rest(teacher.float()), _with_rest(log_q.gather(-1, tokens_Nk))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _with_rest(log_probs_Nk: Tensor) -> Tensor:
    """Append the log-probability of all other tokens together, clamped above float32 rounding: [N, k + 1]."""
    rest = torch.log1p(-log_probs_Nk.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([log_probs_Nk, rest], dim=-1)
