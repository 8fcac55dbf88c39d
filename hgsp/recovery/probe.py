"""Short runs from the same start that tell which learning rate is best."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hgsp.console.state_files import read_state, write_state
from hgsp.errors import NumericalError
from hgsp.recovery.resume import KIND

LOG = logging.getLogger(__name__)

#: File of an unfinished run with the rates that were tried.
PROBES = "learning_rates.json"


@dataclass(frozen=True)
class Probe:
    """A learning rate and the held-out loss after a few steps, in nats per token; None if it was not finite."""

    learning_rate: float
    held_out_loss: float | None


def known_probes(work_dir: Path) -> tuple[Probe, ...]:
    """Return the rates that an interrupted run tried; none if it did not finish."""
    known = read_state(work_dir / PROBES, KIND, dict[str, list[Probe]])
    return () if known is None else tuple(known["probes"])


def probe(
    model: Any, rates: Sequence[float], trainer_of: Callable[[float], Trainer], work_dir: Path
) -> tuple[Probe, ...]:
    """Try learning rates, and write their losses for a run that resumes.

    Args:
        model: its trained parameters are put back after each run.
        trainer_of: returns the Trainer of a short run, which evaluates and saves nothing by itself.

    Raises:
        NumericalError: no rate has a finite loss.
    """
    start = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    found = []
    for rate in rates:
        found.append(Probe(rate, _held_out_loss(trainer_of(rate))))
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, weight in start.items():
                model.get_parameter(name).copy_(weight)
    if all(tried.held_out_loss is None for tried in found):
        raise NumericalError(f"no learning rate of {', '.join(f'{rate:g}' for rate in rates)} gives a finite loss")
    write_state(work_dir / PROBES, KIND, {"probes": [asdict(tried) for tried in found]})
    return tuple(found)


def best_rate(probes: Sequence[Probe]) -> float:
    """Return the learning rate with the lowest held-out loss, the first of equals."""
    return min(probes, key=lambda tried: math.inf if tried.held_out_loss is None else tried.held_out_loss).learning_rate


def _held_out_loss(trainer: Trainer) -> float | None:
    try:
        trainer.train()
        return float(trainer.evaluate()["eval_loss"])
    except NumericalError as error:
        LOG.warning("%s", error)
        return None
    finally:
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # or the next one wraps its forward
        trainer.accelerator.free_memory()
