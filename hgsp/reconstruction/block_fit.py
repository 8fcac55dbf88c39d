"""Refit of a whole pruned SwiGLU block by gradient descent, after least squares on ``down_proj`` alone.

Least squares leaves the error outside the span of the kept channels. Adam (arXiv:1412.6980) changes the channels, on
the same inputs and towards the same target, the dense model's residual stream; BRECQ (arXiv:2102.05426) rebuilds the
blocks of a quantised model in this way. No gradient crosses blocks, so that memory is that of one block.

Attention sinks have thousands of times the energy of other tokens. The squared error of a token is therefore divided by
the energy of its target plus the median energy. Learning rates scale with the root of the relative error, because the
steps of Adam do not shrink with the gradient.

T tokens | H hidden
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: As many epochs as give at least MIN_STEPS steps of STEP_TOKENS tokens, but not more than MAX_EPOCHS.
MIN_STEPS, MAX_EPOCHS, STEP_TOKENS = 384, 3, 512
#: Learning rate, as a multiple of weight RMS * sqrt(relative error); linear warmup over WARMUP_STEPS.
STEP_SIZE, WARMUP_STEPS = 0.04, 10


@dataclass(frozen=True)
class BlockBatches:
    """Batches to fit a block on and to hold out; ``read(batch)`` returns inputs [T, H] and float32 targets [T, H]."""

    read: Callable[[slice], tuple[Tensor, Tensor]]
    fit: Sequence[slice]
    held_out: Sequence[slice]


@dataclass(frozen=True)
class HeldOutError:
    """Errors on held-out tokens: the sum of squares, and the mean relative error, which the fit minimizes."""

    energy: float
    relative: float

    def is_below(self, other: HeldOutError) -> bool:
        return self.energy < other.energy and self.relative < other.relative


class Branch(nn.Module):
    """A block and a fixed function of its output, which is not trained: the summand of the residual stream."""

    def __init__(self, block: nn.Module, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block = block
        self._finish = finish

    def forward(self, input_TH: Tensor) -> Tensor:
        return self._finish(self.block(input_TH))


def fit_block(block: Any, batches: BlockBatches, seed: int) -> tuple[HeldOutError, HeldOutError]:
    """Refit all weights of a block in place if that lowers both held-out errors, rounded to the weights' dtype.

    Keeps the best state at the end of an epoch, in new parameters, because the old ones may be the dense model's own.
    Steps are float32, with bfloat16 matrix products on a GPU.

    Args:
        block: maps [T, H] to [T, H]; its parameters need no gradient.
        seed: of the order of batches and tokens.

    Returns:
        The errors before and after, the same object if the old weights stay.
    """
    energies = [_energy(batches.read(batch)[1]).cpu() for batch in batches.fit]
    median_energy = float(torch.cat(energies).median())
    steps_per_epoch = sum(_num_steps(len(energy_T)) for energy_T in energies)
    epochs = num_epochs(steps_per_epoch)
    best = before = _held_out_error(block, batches, median_energy)
    if not (median_energy and before.energy):
        return before, before
    trained = copy.deepcopy(block).float().requires_grad_(True)
    step_size = STEP_SIZE * math.sqrt(before.relative)
    groups = [
        {"params": [weight], "lr": step_size * float(weight.detach().square().mean().sqrt())}
        for weight in trained.parameters()
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / (epochs * steps_per_epoch))
    )
    for _ in range(epochs):
        for inputs_TH, target_TH in _shuffled(batches, generator):
            optimizer.zero_grad()
            with torch.enable_grad(), torch.autocast("cuda", torch.bfloat16, enabled=inputs_TH.is_cuda):
                _relative_errors(trained(inputs_TH.float()), target_TH, median_energy).mean().backward()
            optimizer.step()
            schedule.step()
        rounded = copy.deepcopy(block)
        rounded.load_state_dict(trained.state_dict())
        error = _held_out_error(rounded, batches, median_energy)
        if error.is_below(best):
            best, weights = error, dict(rounded.named_parameters())
    if best is not before:
        for name, weight in weights.items():
            owner, _, own_name = name.rpartition(".")
            setattr(block.get_submodule(owner), own_name, weight)
    return before, best


def num_epochs(steps_per_epoch: int) -> int:
    """Return the number of epochs of ``fit_block``."""
    return min(MAX_EPOCHS, math.ceil(MIN_STEPS / steps_per_epoch))


def _held_out_error(block: nn.Module, batches: BlockBatches, median_energy: float) -> HeldOutError:
    energy, relative, tokens = 0.0, 0.0, 0
    for batch in batches.held_out:
        inputs_TH, target_TH = batches.read(batch)
        output_TH = block(inputs_TH)
        energy += float(_energy(output_TH.float() - target_TH).sum())
        relative += float(_relative_errors(output_TH, target_TH, median_energy).sum())
        tokens += len(target_TH)
    return HeldOutError(energy, relative / tokens)


def _relative_errors(output_TH: Tensor, target_TH: Tensor, median_energy: float) -> Tensor:
    """Return the squared error of every token over its target's energy plus the median one, [T] float32."""
    return _energy(output_TH.float() - target_TH) / (_energy(target_TH) + median_energy)


def _energy(values_TH: Tensor) -> Tensor:
    """Return the sum of squares of every token, [T]."""
    return values_TH.square().sum(-1)


def _shuffled(batches: BlockBatches, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs and targets of every step of an epoch: batches and the tokens in each in random order."""
    for index in torch.randperm(len(batches.fit), generator=generator).tolist():
        inputs_TH, target_TH = batches.read(batches.fit[index])
        order_T = torch.randperm(len(inputs_TH), generator=generator).to(inputs_TH.device)
        for chosen in order_T.tensor_split(_num_steps(len(order_T))):
            yield inputs_TH[chosen], target_TH[chosen]


def _num_steps(num_tokens: int) -> int:
    return math.ceil(num_tokens / STEP_TOKENS)
