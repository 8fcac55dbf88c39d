"""Ridge regression of a Linear's output error on its input, from their moments.

S inputs of the Linear, plus one for a bias | H outputs | O some of them, C of those at a time | B batch | T tokens
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Ridge strengths to choose from for every module, relative to the mean of A's diagonal.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: Outputs solved for at a time, which bounds the float64 copies of a wide module.
OUTPUTS_AT_A_TIME = 512
#: About as many outputs of a module choose its ridge; solving for all of them with every ridge would dominate the time.
JUDGED_OUTPUTS = 1024


class Moments:
    """A [S, S], G [S, H] and the energies of the error and of the dense block's output, summed over tokens.

    With ``bias_only``, the constant input of the bias is the only input.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, bias_only: bool = False) -> None:
        size = 1 if bias_only else linear.in_features + (linear.bias is not None)
        self._bias_only = bias_only
        self.A_SS = torch.zeros(size, size, device=linear.weight.device, dtype=dtype)
        self.G_SH = torch.zeros(size, linear.out_features, device=linear.weight.device, dtype=dtype)
        self.error = self.output = 0.0

    def add(
        self, input_BTI: Tensor, error_BTH: Tensor, output_BTH: Tensor, token_scale_BT1: Tensor | None = None
    ) -> None:
        """Add one batch. Products are float32, energies float64; ``A`` and ``G`` have the dtype of the moments.

        Args:
            token_scale_BT1: factor on the inputs of every token, the constant one too; error and output have theirs.
        """
        input_TS, error_TH = input_BTI.flatten(0, 1).float(), error_BTH.flatten(0, 1)
        if self._bias_only:
            input_TS = input_TS[:, :0]
        if len(self.A_SS) > input_TS.shape[1]:
            input_TS = torch.cat([input_TS, input_TS.new_ones(len(input_TS), 1)], dim=1)
        if token_scale_BT1 is not None:
            input_TS = input_TS * token_scale_BT1.flatten(0, 1)
        self.A_SS += input_TS.T @ input_TS
        self.G_SH += input_TS.T @ error_TH
        self.error += energy(error_TH)
        self.output += energy(output_BTH)

    def error_change(self, delta_SO: Tensor, outputs: slice) -> float:
        """Return the change of the error energy at some outputs if ``delta`` is added to the transposed weights."""
        delta_SO = delta_SO.to(self.A_SS)
        terms = delta_SO * (self.A_SS @ delta_SO - 2 * self.G_SH[:, outputs])
        return _total(terms)

    @property
    def are_finite(self) -> bool:
        return math.isfinite(self.error) and bool(self.A_SS.diagonal().isfinite().all())

    def relative(self, error: float) -> float | None:
        """Return the norm of an error energy relative to the dense block's output, None if that is zero."""
        return relative_norm(error, self.output)


def solve(old_HS: Tensor, fit: Moments, held_out: Moments) -> tuple[Tensor, float | None, float]:
    """Return the weights with the smallest held-out error energy: those of one of the ridges, or the old ones.

    An even choice of at most about ``JUDGED_OUTPUTS`` outputs selects the ridge; all outputs decide between its weights
    and the old ones. Solves in float64.

    Returns:
        The weights [H, S] in the dtype of ``old_HS``, the ridge (None for ``old_HS`` itself), and the energy.
    """
    A_SS, G_SH = _float64(fit.A_SS), _float64(fit.G_SH)
    scale = float(A_SS.diagonal().mean())
    if not (fit.error and scale):
        return old_HS, None, held_out.error

    def refitted(ridge: float, every: int) -> tuple[Tensor, float]:
        """Return new weights of one in ``every`` outputs, [O, S], and the change of their held-out energy."""
        factor_SS = A_SS.clone()
        factor_SS.diagonal().add_(ridge * scale)
        failed = torch.empty((), dtype=torch.int32, device=factor_SS.device)
        torch.linalg.cholesky_ex(factor_SS, out=(factor_SS, failed))
        if failed:  # with few tokens the moments are singular, and this ridge is lost in their rounding
            return old_HS[::every], math.inf
        chosen = range(0, len(old_HS), every)
        new_OS, change = torch.empty_like(old_HS[::every]), 0.0
        for start in range(0, len(chosen), OUTPUTS_AT_A_TIME):
            first = chosen[start]
            outputs = slice(first, first + every * OUTPUTS_AT_A_TIME, every)
            old_CS = old_HS[outputs].to(A_SS)
            new_CS = (old_CS + torch.cholesky_solve(G_SH[:, outputs], factor_SS).T).to(old_HS)
            new_OS[start : start + OUTPUTS_AT_A_TIME] = new_CS
            change += held_out.error_change((new_CS.to(A_SS) - old_CS).T, outputs)
        return new_OS, change

    every = max(1, len(old_HS) // JUDGED_OUTPUTS)
    changes = {ridge: refitted(ridge, every)[1] for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda ridge: changes[ridge])
    if not changes[ridge] < 0:
        return old_HS, None, held_out.error
    new_HS, change = refitted(ridge, 1)
    return (new_HS, ridge, held_out.error + change) if change < 0 else (old_HS, None, held_out.error)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _float64(tensor: Tensor) -> Tensor:
    """Return the tensor as float64, on the CPU if its device has none; no copy if it is float64 already."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def relative_norm(error: float, whole: float) -> float | None:
    """Return the norm of one energy relative to that of another, None if that is zero."""
    return math.sqrt(max(error, 0.0) / whole) if whole else None


def energy(values: Tensor) -> float:
    """Return the sum of squares, float64."""
    return _total(values.square())


def _total(values: Tensor) -> float:
    """Return the float64 sum, computed on the CPU if the device has none."""
    return float((values.cpu() if values.device.type == "mps" else values).sum(dtype=torch.float64))
