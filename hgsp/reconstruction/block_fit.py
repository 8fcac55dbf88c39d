"""Refit of a whole pruned block by gradient descent, after least squares on its output projection alone.

Least squares leaves the error outside the span of the kept groups. Adam (arXiv:1412.6980) changes the groups, on
the same inputs and towards the same target, the dense model's residual stream; BRECQ (arXiv:2102.05426) rebuilds the
blocks of a quantised model in this way. No gradient crosses blocks, so that memory is that of one block.

Attention sinks have thousands of times the energy of other tokens. The squared error of a token is therefore divided by
the energy of its target plus the median energy. Learning rates scale with the root of the relative error, because the
steps of Adam do not shrink with the gradient.

B sequences | T tokens | H hidden
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
    """Batches to fit a block on and to hold out.

    ``read(batch)`` returns inputs and float32 targets: [T, H] each, or [B, T, H] if tokens depend on earlier ones.
    """

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
    """A block as a function from its normed input to its summand of the residual stream.

    Args:
        arguments: of the block besides its input, from that input.
        finish: what follows the block, which is not trained.
    """

    def __init__(
        self, block: nn.Module, arguments: Callable[[Tensor], dict[str, Any]], finish: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.block = block
        self._arguments, self._finish = arguments, finish

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.block(inputs, **self._arguments(inputs))
        return self._finish(output[0] if isinstance(output, tuple) else output)


def fit_block(block: Any, batches: BlockBatches, seed: int) -> tuple[HeldOutError, HeldOutError]:
    """Refit all weights of a block in place if that lowers both held-out errors, rounded to the weights' dtype.

    Keeps the best state at the end of an epoch, in new parameters, because the old ones may be the dense model's own.
    Steps are float32, with bfloat16 matrix products on a GPU.

    Args:
        block: maps inputs to outputs of the same shape; its parameters need no gradient.
        seed: of the order of batches and of the tokens, or sequences, in each.

    Returns:
        The errors before and after, the same object if the old weights stay.
    """
    targets = (batches.read(batch)[1] for batch in batches.fit)
    energies, steps = zip(*((_energy(target).flatten().cpu(), _num_steps(target)) for target in targets), strict=True)
    median_energy, steps_per_epoch = float(torch.cat(energies).median()), sum(steps)
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
        for inputs, target in _shuffled(batches, generator):
            optimizer.zero_grad()
            with torch.enable_grad(), torch.autocast("cuda", torch.bfloat16, enabled=inputs.is_cuda):
                _relative_errors(trained(inputs.float()), target, median_energy).mean().backward()
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
        inputs, target = batches.read(batch)
        output = block(inputs)
        energy += float(_energy(output.float() - target).sum())
        relative += float(_relative_errors(output, target, median_energy).sum())
        tokens += _num_tokens(target)
    return HeldOutError(energy, relative / tokens)


def _relative_errors(output: Tensor, target: Tensor, median_energy: float) -> Tensor:
    """Return the squared error of every token over its target's energy plus the median one, in float32."""
    return _energy(output.float() - target) / (_energy(target) + median_energy)


def _energy(values: Tensor) -> Tensor:
    """Return the sum of squares of every token."""
    return values.square().sum(-1)


def _shuffled(batches: BlockBatches, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs and targets of every step of an epoch: batches and the rows of each in random order."""
    for index in torch.randperm(len(batches.fit), generator=generator).tolist():
        inputs, target = batches.read(batches.fit[index])
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for chosen in order.tensor_split(_num_steps(target)):
            yield inputs[chosen], target[chosen]


def _num_steps(target: Tensor) -> int:
    """Return the number of steps of a batch, at least one row each."""
    return min(len(target), math.ceil(_num_tokens(target) / STEP_TOKENS))


def _num_tokens(values: Tensor) -> int:
    return values.shape[:-1].numel()
