"""A whole pruned SwiGLU block refitted: where ``down_proj`` alone cannot, ``gate_proj`` and ``up_proj`` help.

What least squares on the writer leave is what the kept channels, as they are, do not span. Gradient steps (Adam,
arXiv:1412.6980) move the channels themselves, on the same inputs and towards the same target, the dense model's
residual stream; the blocks of a quantised model are rebuilt in this way by BRECQ (arXiv:2102.05426). No error passes
from one block to another, so that memory is that of one block.

Attention sinks write thousands of times the energy of other tokens. A token's squared error is therefore divided by its
target's energy plus the median one: every token counts for how much of it is wrong. Steps are relative to a matrix's
own size and to the root of what is wrong, since Adam's would be as large where next to nothing is.

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

#: The text is gone through until so many steps are taken, but not more often than that; and tokens of a step.
MIN_STEPS, MAX_EPOCHS, STEP_TOKENS = 384, 3, 512
#: Of a step, relative to the RMS of a matrix and the root of the error's share; and steps until it has that size.
STEP_SIZE, WARMUP_STEPS = 0.04, 10


@dataclass(frozen=True)
class BlockText:
    """Inputs [T, H] of a block and what it should write [T, H] in float32, by batch; some fit, others judge."""

    read: Callable[[slice], tuple[Tensor, Tensor]]
    fitting: Sequence[slice]
    judging: Sequence[slice]


@dataclass(frozen=True)
class HeldOut:
    """Errors on the tokens that judge: ``energy`` is the sum of squares, ``share`` the mean of what the fit lowers."""

    energy: float
    share: float

    def is_below(self, other: HeldOut) -> bool:
        return self.energy < other.energy and self.share < other.share


def fit_block(block: Any, text: BlockText, seed: int) -> tuple[HeldOut, HeldOut]:
    """Refit all weights of a block where that lowers both held-out errors, rounding to the weights' dtype included.

    What stays is the best state that an epoch ended with, in new parameters: the old ones may be the dense model's own.
    Steps are taken in float32, beside a GPU with products in bfloat16; errors are float32 sums over H.

    Args:
        block: from [T, H] to [T, H]; its parameters need no gradient.
        seed: of the order of the text.

    Returns:
        The errors before and after, the same object where the old weights stay.
    """
    energies = [_energy(text.read(batch)[1]).cpu() for batch in text.fitting]
    floor = float(torch.cat(energies).median())
    steps_each = sum(_steps_of(len(energy_T)) for energy_T in energies)
    epochs = num_epochs(steps_each)
    best = before = _held_out(block, text, floor)
    if not (floor and before.energy):
        return before, before
    moving = copy.deepcopy(block).float().requires_grad_(True)
    size = STEP_SIZE * math.sqrt(before.share)
    groups = [
        {"params": [weight], "lr": size * float(weight.detach().square().mean().sqrt())}
        for weight in moving.parameters()
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / (epochs * steps_each))
    )
    for _ in range(epochs):
        for inputs_TH, wanted_TH in _shuffled(text, generator):
            optimizer.zero_grad()
            with torch.enable_grad(), torch.autocast("cuda", torch.bfloat16, enabled=inputs_TH.is_cuda):
                _error_shares(moving(inputs_TH.float()), wanted_TH, floor).mean().backward()
            optimizer.step()
            schedule.step()
        rounded = copy.deepcopy(block)
        rounded.load_state_dict(moving.state_dict())
        found = _held_out(rounded, text, floor)
        if found.is_below(best):
            best, kept = found, dict(rounded.named_parameters())
    if best is not before:
        for name, weight in kept.items():
            owner, _, own_name = name.rpartition(".")
            setattr(block.get_submodule(owner), own_name, weight)
    return before, best


def num_epochs(steps_each: int) -> int:
    """How often a text that makes so many steps is gone through."""
    return min(MAX_EPOCHS, math.ceil(MIN_STEPS / steps_each))


def _held_out(block: nn.Module, text: BlockText, floor: float) -> HeldOut:
    energy, share, tokens = 0.0, 0.0, 0
    for batch in text.judging:
        inputs_TH, wanted_TH = text.read(batch)
        written_TH = block(inputs_TH)
        energy += float(_energy(written_TH.float() - wanted_TH).sum())
        share += float(_error_shares(written_TH, wanted_TH, floor).sum())
        tokens += len(wanted_TH)
    return HeldOut(energy, share / tokens)


def _error_shares(written_TH: Tensor, wanted_TH: Tensor, floor: float) -> Tensor:
    """Of every token, [T] float32."""
    return _energy(written_TH.float() - wanted_TH) / (_energy(wanted_TH) + floor)


def _energy(values_TH: Tensor) -> Tensor:
    """Of every token, [T]."""
    return values_TH.square().sum(-1)


def _shuffled(text: BlockText, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The text of the fit in steps: batches in random order, the tokens of each in random order."""
    for place in torch.randperm(len(text.fitting), generator=generator).tolist():
        inputs_TH, wanted_TH = text.read(text.fitting[place])
        order_T = torch.randperm(len(inputs_TH), generator=generator).to(inputs_TH.device)
        for chosen in order_T.tensor_split(_steps_of(len(order_T))):
            yield inputs_TH[chosen], wanted_TH[chosen]


def _steps_of(num_tokens: int) -> int:
    return math.ceil(num_tokens / STEP_TOKENS)
