"""Ridge regression on what a Linear should add to its output, from moments of its input and its output's error.

S inputs of the Linear, plus one for a bias | H outputs | O some of them, C of those at a time | T tokens
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Ridge strengths tried for every module, relative to the mean of A's diagonal.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: Outputs solved for at a time: bounds the float64 copies of a wide module.
OUTPUTS_AT_A_TIME = 512
#: About this many outputs of a module choose its ridge: solving for all with every ridge would be most of the work.
JUDGED_OUTPUTS = 1024


class Moments:
    """A [S, S], G [S, H] and the energies of e and of what the dense block writes, summed over tokens.

    With ``bias_only`` nothing but the bias is to be fitted: its input of 1 is all there is.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, bias_only: bool = False) -> None:
        size = 1 if bias_only else linear.in_features + (linear.bias is not None)
        self._bias_only = bias_only
        self.A_SS = torch.zeros(size, size, device=linear.weight.device, dtype=dtype)
        self.G_SH = torch.zeros(size, linear.out_features, device=linear.weight.device, dtype=dtype)
        self.error = self.written = 0.0

    def add(self, input_BTI: Tensor, error_BTH: Tensor, written_BTH: Tensor) -> None:
        """Add one batch; products are float32."""
        input_TS, error_TH = input_BTI.flatten(0, 1).float(), error_BTH.flatten(0, 1)
        if self._bias_only:
            input_TS = input_TS[:, :0]
        if len(self.A_SS) > input_TS.shape[1]:
            input_TS = torch.cat([input_TS, input_TS.new_ones(len(input_TS), 1)], dim=1)
        self.A_SS += input_TS.T @ input_TS
        self.G_SH += input_TS.T @ error_TH
        self.error += _energy(error_TH)
        self.written += _energy(written_BTH)

    def error_change(self, delta_SO: Tensor, outputs: slice) -> float:
        """How much the energy of e at some outputs changes when ``delta`` is added to the transposed weights."""
        delta_SO = delta_SO.to(self.A_SS)
        terms = delta_SO * (self.A_SS @ delta_SO - 2 * self.G_SH[:, outputs])
        return _total(terms)

    @property
    def are_finite(self) -> bool:
        return math.isfinite(self.error) and bool(self.A_SS.diagonal().isfinite().all())

    def relative(self, error: float) -> float | None:
        return math.sqrt(max(error, 0.0) / self.written) if self.written else None


def solve(old_HS: Tensor, fit: Moments, held: Moments) -> tuple[Tensor, float | None, float]:
    """The weights, of those of every ridge and the old ones, that leave the smallest held-out energy of e.

    Some outputs, evenly spread, choose the ridge where there are many; whether it is better than the old weights is
    judged by all. Returns the weights in the dtype of ``old_HS``, the ridge (None: the old ones themselves) and that
    energy.
    """
    A_SS, G_SH = _widest(fit.A_SS), _widest(fit.G_SH)
    scale = float(A_SS.diagonal().mean())
    if not (fit.error and scale):
        return old_HS, None, held.error

    def refitted(ridge: float, every: int) -> tuple[Tensor, float]:
        """New weights of one in ``every`` outputs, [O, S], and by how much their held-out energy changes."""
        factor_SS = A_SS.clone()
        factor_SS.diagonal().add_(ridge * scale)
        torch.linalg.cholesky(factor_SS, out=factor_SS)
        chosen = range(0, len(old_HS), every)
        new_OS, change = torch.empty_like(old_HS[::every]), 0.0
        for start in range(0, len(chosen), OUTPUTS_AT_A_TIME):
            first = chosen[start]
            outputs = slice(first, first + every * OUTPUTS_AT_A_TIME, every)
            old_CS = old_HS[outputs].to(A_SS)
            new_CS = (old_CS + torch.cholesky_solve(G_SH[:, outputs], factor_SS).T).to(old_HS)
            new_OS[start : start + OUTPUTS_AT_A_TIME] = new_CS
            change += held.error_change((new_CS.to(A_SS) - old_CS).T, outputs)
        return new_OS, change

    every = max(1, len(old_HS) // JUDGED_OUTPUTS)
    changes = {ridge: refitted(ridge, every)[1] for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda ridge: changes[ridge])
    if not changes[ridge] < 0:
        return old_HS, None, held.error
    new_HS, change = refitted(ridge, 1)
    return (new_HS, ridge, held.error + change) if change < 0 else (old_HS, None, held.error)


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, except on the one backend that has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def _widest(tensor: Tensor) -> Tensor:
    """In float64, on the CPU if the tensor's device has none. The tensor itself where it is that already."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def _energy(values: Tensor) -> float:
    return _total(values.square())


def _total(values: Tensor) -> float:
    """Sum in float64, on the CPU if the tensor's device has none."""
    return float((values.cpu() if values.device.type == "mps" else values).sum(dtype=torch.float64))
