"""Train a pruned model with peft and the Trainer of transformers, resumably."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hgsp.console.progress import Progress, silent
from hgsp.environment import launched_processes
from hgsp.errors import InputError
from hgsp.models.experts import has_expert_layers
from hgsp.models.half_precision import emulated_dtypes, fp32_matmul_fallback
from hgsp.models.loading import ModelSource
from hgsp.recovery.callbacks import EvaluateLast, ProgressCallback, StopOnNonFinite
from hgsp.recovery.collator import Collator
from hgsp.recovery.config import ATTENTION_PROJECTIONS, TrainingConfig, num_updates, steps_per_update
from hgsp.recovery.losses import Objective
from hgsp.recovery.probe import Probe, best_rate, known_probes, probe
from hgsp.recovery.resume import TEACHER_CACHE
from hgsp.recovery.teacher import Teacher, teacher_outputs
from hgsp.recovery.trainer import RecoveryTrainer, Sequences
from hgsp.recovery.trainer_states import best_state, last_complete_state
from hgsp.recovery.training_text import TrainingText

LOG = logging.getLogger(__name__)

#: The variable by which accelerate chooses the device.
TRAINER_DEVICE = "ACCELERATE_TORCH_DEVICE"
#: Evaluations on held-out rows per run, unless they cost more than this share of the training sequences.
EVALUATIONS, EVALUATED_SHARE = 10, 0.2


@dataclass(frozen=True)
class Trained:
    """The folder of the best state (adapter or model), and the log with an entry per step or evaluation.

    ``parameters``: "model" and "trained" -> number of parameters. ``probes``: learning rates that were tried before.
    """

    checkpoint: Path
    history: tuple[Mapping[str, float], ...]
    kept_step: int
    steps: int
    parameters: Mapping[str, int]
    probes: tuple[Probe, ...] = ()


def trainable(model: Any, config: TrainingConfig) -> Any:
    """Prepare a model for training: only fresh adapters are trainable, or with ``full`` all parameters."""
    return add_adapters(model, config) if config.method == "lora" else model.requires_grad_(True)


def add_adapters(model: Any, config: TrainingConfig) -> Any:
    """Add float32 LoRA (arXiv:2106.09685) adapters, initially zero, to the chosen projections of frozen weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=adapter_targets(model, config.lora_target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora, autocast_adapter_dtype=True)


def adapter_targets(model: Any, chosen: Sequence[str]) -> list[str]:
    """Return the projections that get an adapter: in a mixture of experts those of attention, which are Linears.

    Raises:
        InputError: none of the chosen projections is left.
    """
    if not has_expert_layers(model):
        return list(chosen)
    attention = [name for name in chosen if name in ATTENTION_PROJECTIONS]
    if not attention:
        raise InputError(
            expected=f"--lora_target_modules with some of {', '.join(ATTENTION_PROJECTIONS)} for a mixture of experts",
            got=" ".join(chosen),
            remedy="experts are no Linears and get no adapters",
        )
    LOG.warning("experts get no adapters: %s of attention do", ", ".join(attention))
    return attention


@fp32_matmul_fallback()
def train(
    model: Any,
    text: TrainingText,
    config: TrainingConfig,
    collator: Collator,
    device: str,
    work_dir: Path,
    *,
    resume: bool = False,
    teacher: ModelSource | Teacher | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train a ``trainable`` model and keep the state with the lowest held-out loss.

    States, and the teacher's cache if requested, are written to ``work_dir``; ``resume`` continues from the last
    complete state there.

    Raises:
        NumericalError: the loss or a gradient is not finite; names the step. Earlier states are kept.
    """
    folder = work_dir / "states"
    steps = num_updates(len(text.train), config, launched_processes())
    last = last_complete_state(folder) if resume else None
    if resume:
        LOG.info("resuming from %s", last.name if last else "the beginning: no state was saved")
    state = None if last is None else TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
    probes = known_probes(work_dir)
    if state is None or state.global_step < steps:
        with _trainer_on(device):
            run = _run(model, text, config, collator, device, work_dir, teacher, progress)
            if config.probe_learning_rates and not probes:
                probes = probe(model, config.probe_learning_rates, run.short_trainer, work_dir)
            trainer = run.trainer(best_rate(probes) if probes else config.learning_rate, steps)
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        state = trainer.state
    best = state.best_model_checkpoint
    checkpoint = best_state(folder, best) if best else folder / f"checkpoint-{state.global_step}"
    kept_step = int(checkpoint.name.rpartition("-")[2])
    parameters = count_parameters(model, config)
    return Trained(checkpoint, tuple(state.log_history), kept_step, state.global_step, parameters, probes)


@contextmanager
def _trainer_on(device: str) -> Iterator[None]:
    """Make the Trainer use this GPU instead of the first one; several processes have their own already."""
    before = os.environ.get(TRAINER_DEVICE)
    if launched_processes() == 1 and device.startswith("cuda"):
        os.environ[TRAINER_DEVICE] = device
    try:
        yield
    finally:
        os.environ.pop(TRAINER_DEVICE, None)
        if before is not None:
            os.environ[TRAINER_DEVICE] = before


def count_parameters(model: Any, config: TrainingConfig) -> dict[str, int]:
    """Count the parameters of a ``trainable`` model without adapters, and the trained ones."""
    everything = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"model": everything - trained if config.method == "lora" else everything, "trained": trained}


@dataclass(frozen=True)
class _Run:
    """The parts shared by the Trainers of one run: a short one for every rate tried, and the long one."""

    model: Any
    train_set: Sequences
    held_out: Sequences
    teacher: Teacher | None
    config: TrainingConfig
    collator: Collator
    device: str
    folder: Path
    progress: Progress

    def trainer(self, learning_rate: float, steps: int) -> RecoveryTrainer:
        """Return the Trainer of the run, which keeps states and evaluates them."""
        return self._trainer(self._arguments(learning_rate, steps))

    def short_trainer(self, learning_rate: float) -> RecoveryTrainer:
        """Return the Trainer of a probe."""
        LOG.info("trying a learning rate of %g for %d steps", learning_rate, self.config.probe_steps)
        arguments = self._arguments(learning_rate, self.config.probe_steps)
        arguments.eval_strategy, arguments.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
        arguments.eval_on_start, arguments.report_to = False, []
        return self._trainer(arguments)

    def _arguments(self, learning_rate: float, steps: int) -> TrainingArguments:
        config = replace(self.config, learning_rate=learning_rate)
        return training_arguments(config, self.folder, steps, len(self.held_out), self.device)

    def _trainer(self, arguments: TrainingArguments) -> RecoveryTrainer:
        objective = Objective(
            self.config.distill_weight if self.config.distill_from else 0.0, self.config.distill_temperature
        )
        trainer = RecoveryTrainer(
            model=self.model,
            args=arguments,
            train_dataset=self.train_set,
            eval_dataset=self.held_out if self.held_out.samples else None,
            data_collator=self.collator,
            callbacks=[StopOnNonFinite(), ProgressCallback(self.progress), EvaluateLast()],
            objective=objective,
            teacher=self.teacher,
        )
        trainer.remove_callback(PrinterCallback)  # replaced by our ProgressCallback
        return trainer


def _run(
    model: Any,
    text: TrainingText,
    config: TrainingConfig,
    collator: Collator,
    device: str,
    work_dir: Path,
    teacher: ModelSource | Teacher | None,
    progress: Progress,
) -> _Run:
    loaded, caches = teacher_outputs(
        config, teacher, (text.train, text.held_out), collator, device, work_dir / TEACHER_CACHE, progress
    )
    train_set, held_out = (Sequences(*pair) for pair in zip((text.train, text.held_out), caches, strict=True))
    return _Run(model, train_set, held_out, loaded, config, collator, device, work_dir / "states", progress)


def training_arguments(
    config: TrainingConfig, folder: Path, steps: int, num_held_out: int, device: str
) -> TrainingArguments:
    """Translate the options into those of transformers."""
    every = config.eval_steps or steps_between_evaluations(steps, config.batch_size, num_held_out)
    evaluates = num_held_out > 0
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch_size,
        per_device_eval_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=steps_per_update(config, launched_processes()),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        bf16=config.method == "full" and config.dtype != "float32" and not (device == "cpu" and emulated_dtypes()),
        **(checkpointing_arguments() if config.use_gradient_checkpointing else {}),
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every if evaluates else None,
        eval_on_start=evaluates,
        prediction_loss_only=True,
        save_steps=every,
        save_total_limit=2,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        report_to=config.report_to,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=config.seed,
        data_seed=config.seed,
        disable_tqdm=True,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device.startswith("cuda"),
        ddp_find_unused_parameters=False,
    )
    if launched_processes() == 1:
        arguments._n_gpu = min(1, arguments.n_gpu)  # no DataParallel over all visible GPUs
    return arguments


def steps_between_evaluations(steps: int, batch_size: int, num_held_out: int) -> int:
    """Return a tenth of the steps, or more if evaluation costs too much; states are saved as often."""
    affordable = int(EVALUATED_SHARE * steps * batch_size / num_held_out) if num_held_out else EVALUATIONS
    return max(1, math.ceil(steps / max(1, min(EVALUATIONS, affordable))))


def checkpointing_arguments() -> dict[str, Any]:
    """Return the options of gradient checkpointing, whose name depends on the version of transformers.

    Reentrant checkpointing gives no gradients to adapters over frozen inputs.
    """
    names = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}
