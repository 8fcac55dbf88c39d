"""Train a model in memory from Python: ``recover(model, tokenizer, data_path)``."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

from hgsp.console.progress import Progress, silent
from hgsp.console.scratch import ScratchFolder
from hgsp.models.checkpoint import load_pruned
from hgsp.models.fusion import unfused
from hgsp.models.loading import ModelSource, check_positions
from hgsp.models.tokenizers import check_token_ids, check_vocabulary
from hgsp.recovery import outputs, training
from hgsp.recovery.collator import Collator
from hgsp.recovery.config import TrainingConfig, require_packages
from hgsp.recovery.teacher import Teacher, check_same_vocabulary, inspect_teacher
from hgsp.recovery.training_text import TrainingText, load_training_text

LOG = logging.getLogger(__name__)


def recover(
    model: Any,
    tokenizer: Any,
    data_path: str,
    *,
    num_epochs: float = 3,
    max_steps: int | None = None,
    learning_rate: float = 3e-4,
    probe_learning_rates: Sequence[float] | None = None,
    batch_size: int = 128,
    micro_batch_size: int = 4,
    cutoff_len: int = 256,
    lora_r: int = 8,
    lora_alpha: int = 16,
    method: str = "lora",
    distill_from: Any = None,
    seed: int = 42,
    inplace: bool = False,
    progress: Progress = silent,
) -> Any:
    """Train a pruned model as ``finetune_lora.py`` does and return it with the adapter merged, in its own dtype.

    Args:
        data_path: hub id or file of instruction, messages or text rows; also a text file, wikitext2, ptb, c4 or
            builtin; a comma list contributes equally many tokens of each.
        num_epochs: passes over the data, unless ``max_steps`` ends training earlier or later.
        probe_learning_rates: rates to try for 20 steps each; the best on held-out rows replaces ``learning_rate``.
        batch_size: sequences per optimizer step, ``micro_batch_size`` of them per forward pass.
        cutoff_len: longest sequence in tokens.
        method: ``lora`` trains adapters on all seven projections, ``full`` all parameters in float32.
        distill_from: a teacher, by name or in memory: match its distributions instead of the text.
        inplace: train ``model`` itself, not a copy; saves memory, but on failure it is left with adapters.

    Raises:
        InputError: no such data, a batch that cannot be divided, sequences too long, a teacher with another vocabulary.
        NumericalError: the loss or a gradient is not finite.
    """
    require_packages("peft", "accelerate")
    config = TrainingConfig(
        data_path=data_path,
        num_epochs=num_epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        probe_learning_rates=tuple(probe_learning_rates or ()),
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        cutoff_len=cutoff_len,
        lora_r=lora_r,
        lora_alpha=lora_alpha,
        method=method,
        distill_from=distill_from if isinstance(distill_from, (str, type(None))) else "a model in memory",
        seed=seed,
    )
    teacher = _teacher(distill_from, config, model.config.vocab_size)
    text = _checked_text(config, model, tokenizer)
    student = unfused(model if inplace else copy.deepcopy(model))
    return _trained(student, tokenizer, text, config, teacher, progress)


def _checked_text(config: TrainingConfig, model: Any, tokenizer: Any) -> TrainingText:
    """Read the training text and check that the model has a row and a position for each of its tokens."""
    for warning in check_vocabulary(model.config.vocab_size, tokenizer):
        LOG.warning("%s", warning)
    check_positions(model.config, "cutoff_len", config.cutoff_len)
    text = load_training_text(config, tokenizer)
    check_token_ids(text.largest_id, model.config.vocab_size, tokenizer, config.data_path)
    return text


def _trained(
    student: Any,
    tokenizer: Any,
    text: TrainingText,
    config: TrainingConfig,
    teacher: ModelSource | Teacher | None,
    progress: Progress,
) -> Any:
    """Train a model and return it merged, with its device, dtype and config as before."""
    device, dtype, use_cache = str(student.device), student.dtype, student.config.use_cache
    collator = Collator(outputs.padding_token(tokenizer, student.config.vocab_size), packed=False)
    student = training.trainable(student.float() if config.method == "full" else student, config)
    with ScratchFolder() as folder:
        trained = training.train(student, text, config, collator, device, folder, teacher=teacher, progress=progress)
        if config.method == "full":
            recovered = load_pruned(trained.checkpoint, device=device, dtype=dtype)
        else:
            recovered = outputs.merged_in_memory(student, trained)
    recovered.config.use_cache = use_cache
    return recovered


def _teacher(distill_from: Any, config: TrainingConfig, vocabulary: int) -> ModelSource | Teacher | None:
    if isinstance(distill_from, (str, type(None))):
        return inspect_teacher(config, vocabulary)
    check_same_vocabulary(distill_from.config.vocab_size, vocabulary, "the teacher")
    return Teacher(distill_from, config.distill_top_k, config.distill_temperature)
