"""Options of ``finetune_lora.py``: training, measuring before and after, and where models are read and written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hgsp.console.flags import option, require
from hgsp.evaluation.config import MeasureConfig
from hgsp.models.hub import HubConfig, UploadConfig
from hgsp.pipeline.config import PruneConfig
from hgsp.recovery.config import TrainingConfig

INTERRUPTED = "interrupted; resume with --resume, or start again if nothing was saved yet"
OUT_OF_MEMORY = (
    "continue with --resume --use_gradient_checkpointing, without --resume if nothing was saved yet. If that is not "
    "enough, start over with a smaller --micro_batch_size (--batch_size may stay), a smaller --cutoff_len, "
    "--distill_cache --distill_top_k 64, --distill_offload, or a smaller --lora_r"
)
#: Options that a resumed run may change because they change no number.
FREE_TO_CHANGE = (
    "resume",
    "overwrite",
    "device",
    "use_gradient_checkpointing",
    "distill_device",
    "distill_offload",
    "report_to",
    "no_bin",
    "push_to_hub",
)


@dataclass(frozen=True, kw_only=True)
class _Models:
    """Models that a recovery reads and writes; a base class so that ``--help`` lists them first."""

    GROUP: ClassVar[str] = "models"

    pruned_model: str = option(help="pruned_model.bin, its folder, or any Hugging Face model folder or hub id")
    output_dir: str = option(help="folder of the recovered model")
    base_model: str | None = option(None, help="model whose tokenizer is used (unset: the pruned model)")


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig(TrainingConfig, MeasureConfig, HubConfig, UploadConfig, _Models):
    """All options of ``finetune_lora.py``. Raises InputError for invalid values."""

    resume: bool = option(False, help="resume an interrupted run of the same command", group="output", recorded=False)
    device: str | None = option(None, help="cuda:0, cpu, mps; unset = the best available", group="resources")
    overwrite: bool = option(
        False, help="replace an existing result, or an unfinished run", group="output", recorded=False
    )
    no_bin: bool = option(False, help="do not write pruned_model.bin beside the safetensors", group="output")

    def __post_init__(self) -> None:
        self.pin("pruned_model", "base_model", "distill_from")
        MeasureConfig.__post_init__(self)
        TrainingConfig.__post_init__(self)
        require(self.device != "auto", "--device", "one device", "auto", "start one process per GPU instead")

    @property
    def work_dir(self) -> Path:
        """The folder of an unfinished run's state, beside the result; removed when the result is written."""
        return Path(f"{Path(self.output_dir)}.training")

    @property
    def resume_settings(self) -> dict[str, Any]:
        """The options that a resumed run must share with the interrupted one, as JSON has them."""
        settings = {name: value for name, value in asdict(self).items() if name not in FREE_TO_CHANGE}
        return dict(json.loads(json.dumps(settings)))


def recovery_after_pruning(config: PruneConfig, folder: Path, suffix: str = "") -> RecoveryConfig:
    """Return the options of ``--finetune``: the model in ``folder`` goes to ``{folder}_finetuned``.

    Args:
        suffix: of the repository for the pruned model; that of the recovered one is named like its folder.

    Raises:
        InputError: as ``RecoveryConfig``.
    """
    return RecoveryConfig(
        pruned_model=str(folder),
        output_dir=f"{folder}_finetuned",
        data_path=config.finetune_data_path,
        num_epochs=config.finetune_epochs,
        learning_rate=config.finetune_lr,
        batch_size=config.finetune_batch_size,
        micro_batch_size=config.finetune_micro_batch_size,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        use_gradient_checkpointing=config.use_gradient_checkpointing,
        device=config.device,
        seed=config.seed,
        data_dir=config.data_dir,
        overwrite=config.overwrite,
        no_bin=config.no_bin,
        push_to_hub=None if config.push_to_hub is None else f"{config.push_to_hub}{suffix}_finetuned",
        skip_evaluation=config.skip_evaluation,
        eval_tasks=config.eval_tasks,
        eval_seq_len=config.eval_seq_len,
        eval_max_windows=config.eval_max_windows,
    )
