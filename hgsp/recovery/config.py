"""Options of training, as a validated dataclass whose fields are also flags. Importing this file costs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from hgsp.console.flags import nearest_multiples, option, require, require_counts, require_positive
from hgsp.data.config import TextConfig
from hgsp.data.texts import dataset_names
from hgsp.environment import install_command, launched_processes
from hgsp.errors import InputError
from hgsp.models.dtypes import DTYPE_NAMES
from hgsp.models.places import is_gguf

METHODS = ("lora", "full")
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS = (*ATTENTION_PROJECTIONS, "gate_proj", "up_proj", "down_proj")
REPORTERS = ("none", "tensorboard", "wandb", "trackio")
DEFAULT_INSTRUCTIONS = "yahma/alpaca-cleaned"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TextConfig):
    """Options of training a pruned model. Raises InputError for invalid values."""

    GROUP: ClassVar[str] = "training"

    data_path: str = option(
        DEFAULT_INSTRUCTIONS,
        help="hub id or json/jsonl/csv/parquet file with instruction, messages or text rows; also a plain text file, "
        "wikitext2, ptb, c4 or builtin; a comma list contributes equally many tokens of each",
    )
    method: str = option("lora", help="train low-rank adapters, or all parameters", choices=METHODS)
    num_epochs: float = option(3, help="passes over the data", type=float, range="above 0")
    max_steps: int | None = option(
        None, help="number of optimizer steps; overrides --num_epochs", type=int, range="at least 1"
    )
    learning_rate: float = option(3e-4, help="peak learning rate of the cosine schedule", type=float, range="above 0")
    probe_learning_rates: tuple[float, ...] | None = option(
        None,
        help="learning rates to try first, for --probe_steps each; the one with the lowest held-out loss replaces "
        "--learning_rate",
        type=float,
        nargs="+",
        range="above 0",
    )
    probe_steps: int = option(20, help="optimizer steps of each learning rate tried", type=int, range="at least 1")
    warmup_ratio: float = option(0.05, help="fraction of the steps with linear warmup", type=float, range="in [0, 1)")
    weight_decay: float = option(0.0, help="AdamW weight decay", type=float, range="at least 0")
    max_grad_norm: float = option(1.0, help="gradient clipping norm", type=float, range="above 0")
    batch_size: int = option(128, help="sequences per optimizer step, over all processes", type=int, range="at least 1")
    micro_batch_size: int = option(4, help="sequences per process and forward pass", type=int, range="at least 1")
    cutoff_len: int = option(
        256, help="maximum sequence length in tokens; longer sequences are truncated", type=int, range="at least 2"
    )
    packing: bool = option(
        False, help="pack several samples into a sequence of cutoff_len tokens, without attention across samples"
    )
    train_on_inputs: bool = option(False, help="train on instructions too, not only on answers")
    val_size: int | None = option(
        None,
        help="rows held out for the validation loss, 0 = none (unset: 5 %% of the rows, at most 128 of all texts)",
        type=int,
        range="at least 0",
    )
    eval_steps: int | None = option(
        None,
        help="steps between evaluations and saved states (unset: a tenth of all steps, more if there are few rows)",
        type=int,
        range="at least 1",
    )
    lora_r: int = option(8, help="LoRA rank", type=int, group="LoRA", range="at least 1")
    lora_alpha: int = option(16, help="LoRA alpha", type=int, group="LoRA", range="at least 1")
    lora_dropout: float = option(0.0, help="LoRA dropout", type=float, group="LoRA", range="in [0, 1)")
    lora_target_modules: tuple[str, ...] = option(
        PROJECTIONS, help="projections with an adapter", nargs="+", group="LoRA"
    )
    use_gradient_checkpointing: bool = option(
        False, help="recompute activations in the backward pass: less memory, more time", group="resources"
    )
    distill_from: str | None = option(
        None,
        help="dense teacher: match its distributions (KL) instead of the text, on every token",
        group="distillation",
    )
    distill_weight: float = option(
        1.0,
        help="weight of KL in the loss; the rest is cross-entropy",
        type=float,
        group="distillation",
        range="in (0, 1]",
    )
    distill_temperature: float = option(
        1.0, help="temperature of both distributions", type=float, group="distillation", range="above 0"
    )
    distill_top_k: int = option(
        0,
        help="use the teacher's top k tokens and the remaining mass as one more; 0 = all tokens",
        type=int,
        group="distillation",
        range="at least 0",
    )
    distill_device: str | None = option(
        None, help="device of the teacher (unset: that of the model)", group="distillation"
    )
    distill_offload: bool = option(
        False, help="read the teacher layer by layer from its safetensors files", group="distillation"
    )
    distill_cache: bool = option(
        False, help="run the teacher once before training and cache its top k on disk", group="distillation"
    )
    report_to: str = option("none", help="experiment tracker", choices=REPORTERS, group="output")
    dtype: str | None = option(
        None, help="dtype of weights and result (unset: as stored)", choices=DTYPE_NAMES, group="resources"
    )
    seed: int = option(42, help="seed of adapters, data order and held-out rows", type=int)

    @property
    def data_paths(self) -> tuple[str, ...]:
        """The texts of ``data_path``."""
        return dataset_names(self.data_path)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_target_modules", tuple(self.lora_target_modules))
        object.__setattr__(self, "probe_learning_rates", tuple(self.probe_learning_rates or ()) or None)
        for name, choices in (("method", METHODS), ("report_to", REPORTERS), ("dtype", (None, *DTYPE_NAMES))):
            expected = f"one of {', '.join(map(str, choices))}"
            require(getattr(self, name) in choices, f"--{name}", expected, getattr(self, name))
        require(all(self.data_paths), "--data_path", "names separated by single commas", self.data_path)
        require_counts(self, "batch_size", "micro_batch_size", "lora_r", "lora_alpha", "probe_steps")
        require_positive(self, "num_epochs", "learning_rate", "max_grad_norm", "distill_temperature")
        require(self.cutoff_len >= 2, "--cutoff_len", "at least 2", self.cutoff_len)
        for name in ("max_steps", "eval_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name}", "at least 1", value)
        for name in ("warmup_ratio", "lora_dropout"):
            require(0 <= getattr(self, name) < 1, f"--{name}", "in [0, 1)", getattr(self, name))
        require(0 <= self.weight_decay < 1e6, "--weight_decay", "a finite number >= 0", self.weight_decay)
        require((self.val_size or 0) >= 0, "--val_size", "at least 0", self.val_size)
        strange = sorted(set(self.lora_target_modules) - set(PROJECTIONS))
        require(not strange, "--lora_target_modules", f"some of {', '.join(PROJECTIONS)}", " ".join(strange))
        self._check_probe()
        self._check_distillation()
        steps_per_update(self, launched_processes())

    def _check_probe(self) -> None:
        rates = self.probe_learning_rates or ()
        usable = all(math.isfinite(rate) and rate > 0 for rate in rates)
        require(usable, "--probe_learning_rates", "finite numbers > 0", " ".join(f"{rate:g}" for rate in rates))
        if rates:
            require(self.val_size != 0, "--val_size", "at least 1 with --probe_learning_rates", self.val_size)
            alone = launched_processes() == 1
            remedy = "try them in one process, and give its choice as --learning_rate"
            require(alone, "--probe_learning_rates", "absent with several processes", launched_processes(), remedy)

    def _check_distillation(self) -> None:
        require(0 < self.distill_weight <= 1, "--distill_weight", "in (0, 1]", self.distill_weight)
        require(self.distill_top_k >= 0, "--distill_top_k", "at least 0", self.distill_top_k)
        cached = self.distill_top_k > 0 or not self.distill_cache
        require(cached, "--distill_top_k", "at least 1 with --distill_cache", self.distill_top_k, "64 is usual")
        alone = [name for name in ("distill_cache", "distill_offload") if getattr(self, name)]
        given = self.distill_from is not None or not alone
        require(given, "--distill_from", "given with " + " and ".join(f"--{name}" for name in alone), None)
        offloads_gguf = self.distill_offload and is_gguf(str(self.distill_from))
        require(not offloads_gguf, "--distill_from", "a safetensors folder with --distill_offload", self.distill_from)


def require_packages(*packages: str) -> None:
    """Refuse missing packages.

    Raises:
        InputError: names them and how to install them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(
            expected=f"the packages {', '.join(packages)} for recovery",
            got=f"no {', '.join(missing)}",
            remedy=install_command("finetune", *sorted(set(missing) & set(REPORTERS))),
        )


def steps_per_update(config: TrainingConfig, num_processes: int) -> int:
    """Return the forward passes of each process per optimizer step.

    Raises:
        InputError: the batch is not a multiple of the micro batch times processes; names the nearest ones.
    """
    at_once = config.micro_batch_size * num_processes
    if config.batch_size % at_once:
        raise InputError(
            expected=f"--batch_size to be a multiple of {at_once} (--micro_batch_size {config.micro_batch_size} on "
            f"{num_processes} process{'es' * (num_processes > 1)})",
            got=str(config.batch_size),
            remedy=nearest_multiples(config.batch_size, at_once),
        )
    return config.batch_size // at_once


def num_updates(num_sequences: int, config: TrainingConfig, processes: int) -> int:
    """Return the optimizer steps of the whole run: ``max_steps``, else those of the epochs."""
    if config.max_steps is not None:
        return config.max_steps
    batches = math.ceil(num_sequences / (config.micro_batch_size * processes))
    per_epoch = max(1, math.ceil(batches / steps_per_update(config, processes)))
    return max(1, math.ceil(per_epoch * config.num_epochs))
