"""Callbacks of the Trainer: stop on NaN, report progress, evaluate the last state."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

from hgsp.console.progress import Progress
from hgsp.errors import NumericalError

LOG = logging.getLogger(__name__)


class StopOnNonFinite(TrainerCallback):
    """Stop before an optimizer step with a NaN or infinite gradient, or after such a held-out loss."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        sums = [parameter.grad.float().sum() for parameter in model.parameters() if parameter.grad is not None]
        if not torch.stack([value.to(sums[0].device) for value in sums]).isfinite().all():
            raise NumericalError(
                f"the loss or a gradient of step {state.global_step + 1} is not finite; states saved before are "
                "kept. Lower --learning_rate, use --dtype bfloat16, or look for unusual rows in the data"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise NumericalError(
                f"the held-out loss after step {state.global_step} is {loss}; states saved before are kept. Lower "
                "--learning_rate, use --dtype bfloat16, or look for unusual rows in the data"
            )


class ProgressCallback(TrainerCallback):
    """Advance the progress bar, which shows the loss; log held-out losses, and all other numbers to the file only."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._steps: Iterator[int] | None = None
        self._loss: float | None = None

    def _label(self) -> str:
        return "recovery" if self._loss is None else f"recovery, loss {self._loss:.3f}"

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._steps is None and state.is_world_process_zero:
            left = state.max_steps - state.global_step
            self._steps = self._progress(range(left), self._label, left)
            next(self._steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        next(self._steps or iter(()), None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        if "eval_loss" in logs:
            LOG.info("step %d of %d: held-out loss %.4f", state.global_step, state.max_steps, logs["eval_loss"])
        elif "loss" in logs:
            self._loss = logs["loss"]
            LOG.info(
                "step %d of %d: loss %.4f, gradient norm %.3f, learning rate %.2e",
                state.global_step,
                state.max_steps,
                logs["loss"],
                logs["grad_norm"],
                logs["learning_rate"],
                extra={"file_only": True},
            )


class EvaluateLast(TrainerCallback):
    """Evaluate the last state, whatever the interval."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
