"""The recovery recipe: check the request, measure, train, merge, measure again, write."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hgsp.console.checksums import write_checksums
from hgsp.console.flags import arguments_of
from hgsp.console.log_file import LogFile
from hgsp.console.programs import program
from hgsp.console.progress import Timings, log_finished, terminal
from hgsp.console.result_folders import check_target, new_folder, reserved
from hgsp.console.settings_file import RUN_SETTINGS, write_settings
from hgsp.environment import launched_processes
from hgsp.errors import InputError
from hgsp.evaluation.models import refuse_missing
from hgsp.evaluation.pre_post import PrePostEvaluation
from hgsp.models.checkpoint import config_of, load_pruned, load_tokenizer_of
from hgsp.models.devices import bf16_warnings, resolve_device
from hgsp.models.hub_upload import check_upload, upload
from hgsp.models.identity import weights_identity
from hgsp.models.loading import DTYPES, ModelSource, check_positions
from hgsp.models.processes import is_main_process, join_with_own_device, leave_processes, wait_for_all
from hgsp.models.stored_tensors import stored_dtype
from hgsp.models.tokenizers import check_token_ids, check_vocabulary
from hgsp.pipeline import recovery_report as report
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.disk import recovery_disk_need
from hgsp.pipeline.hints import batch_hint
from hgsp.pipeline.recovery_config import INTERRUPTED, OUT_OF_MEMORY, RecoveryConfig, recovery_after_pruning
from hgsp.pipeline.request import Request
from hgsp.recovery import outputs, training
from hgsp.recovery.collator import Collator
from hgsp.recovery.config import num_updates, require_packages
from hgsp.recovery.resume import check_content, check_work_dir, resumable_run
from hgsp.recovery.teacher import inspect_teacher
from hgsp.recovery.training import Trained
from hgsp.recovery.training_text import TrainingText, load_training_text
from hgsp.report.model_card import write_model_card
from hgsp.report.page import write_report

LOG = logging.getLogger("hgsp")
TRAINING_LOG = Path("logs", "training.log")


@dataclass(frozen=True)
class _Recovery:
    """A checked request with everything that its steps share."""

    config: RecoveryConfig
    command: str
    tokenizer: Any
    text: TrainingText
    teacher: ModelSource | None
    evaluation: PrePostEvaluation
    device: str
    dtype: torch.dtype
    repo_id: str | None
    pruning_report: Mapping[str, Any]
    timings: Timings = field(default_factory=lambda: Timings(finished=log_finished))


def finetune(config: RecoveryConfig, command: str, text: TrainingText | None = None) -> int:
    """Run the recipe for one configuration. ``text`` is that of ``--data_path`` if it has been read already.

    Raises:
        InputError: as ``check_request`` and ``load_training_text``.
        NumericalError: a loss or gradient is not finite.
    """
    recovery, code = _prepare(config, command, text), 0
    is_main = is_main_process()
    with (
        reserved(Path(config.output_dir)),
        resumable_run(config.work_dir, config.resume_settings, resume=config.resume) if is_main else nullcontext(),
        LogFile(config.work_dir / "training.log") if is_main else nullcontext() as log,
    ):
        wait_for_all()
        LOG.info("command: %s", command)
        _log_start(recovery)
        trained = _train(recovery)
        leave_processes()
        if is_main:
            assert log is not None
            _write(recovery, trained, log)
            if recovery.repo_id is not None:
                code = upload(Path(config.output_dir), recovery.repo_id)
    return code


def _log_start(recovery: _Recovery) -> None:
    """Log the text that is trained on; its hash and settings go to the file only."""
    text, config = recovery.text.description, recovery.config
    sequences, processes = text["train_sequences"], launched_processes()
    steps = num_updates(sequences, config, processes)
    LOG.info(
        "training text: %s, %s sequences; %s steps of %s",
        text["source"],
        *(f"{n:,}" for n in (sequences, steps, config.batch_size)),
    )
    if advice := batch_hint(config, sequences, processes):
        LOG.info("%s", advice)
    LOG.info("training text: %s", text, extra={"file_only": True})


def _prepare(config: RecoveryConfig, command: str, text: TrainingText | None) -> _Recovery:
    tokenizer, model_config = check_request(config)
    repo_id = None if config.push_to_hub is None else check_upload(config.push_to_hub)
    text = text or load_training_text(config, tokenizer)
    check_token_ids(text.largest_id, model_config.vocab_size, tokenizer, config.data_path)
    teacher = inspect_teacher(config, model_config.vocab_size)
    evaluation = PrePostEvaluation(config, offloaded=False)
    evaluation.check(model_config, tokenizer)
    device = join_with_own_device(config.device)
    dtype = DTYPES[config.dtype] if config.dtype else stored_dtype(config.pruned_model, model_config.dtype)
    for warning in bf16_warnings(device, str(dtype).removeprefix("torch.")):
        LOG.warning("%s", warning)
    pruning_report = report.read_pruning_report(config.pruned_model)
    return _Recovery(config, command, tokenizer, text, teacher, evaluation, device, dtype, repo_id, pruning_report)


def _train(recovery: _Recovery) -> Trained:
    """Load and measure the pruned model, then train it in all processes."""
    config, device, timings = recovery.config, recovery.device, recovery.timings
    with timings.stage("load"):
        dtype = torch.float32 if config.method == "full" else recovery.dtype
        model = load_pruned(config.pruned_model, device=device, dtype=dtype)
        if is_main_process():
            check_content(config.work_dir, _content(recovery.text, model), resume=config.resume)
    with timings.stage("evaluate"):
        if is_main_process():
            recovery.evaluation.before(model, recovery.tokenizer)
        wait_for_all()
    with timings.stage("train"):
        if config.method == "lora":
            model.name_or_path = outputs.base_of_adapter(config.pruned_model)
        return training.train(
            training.trainable(model, config),
            recovery.text,
            config,
            Collator(outputs.padding_token(recovery.tokenizer, model.config.vocab_size), config.packing),
            device,
            config.work_dir,
            resume=config.resume,
            teacher=recovery.teacher,
            progress=terminal,
        )


def _content(text: TrainingText, model: Any) -> dict[str, str]:
    weights = dict(model.named_parameters())
    identity = weights_identity(weights, weights.__getitem__)
    return {"training text": text.sha256, "weights of the pruned model": identity.sha256}


def _write(recovery: _Recovery, trained: Trained, log: LogFile) -> None:
    """Merge, measure again and write the result folder."""
    config, text, evaluation, timings = recovery.config, recovery.text, recovery.evaluation, recovery.timings
    with new_folder(Path(config.output_dir), config.overwrite) as folder:
        with timings.stage("save"):
            model = outputs.recovered_model(
                config.pruned_model, config.method, trained, recovery.dtype, recovery.device
            )
            outputs.write_result(
                model,
                recovery.tokenizer,
                trained,
                folder,
                method=config.method,
                with_bin=not config.no_bin,
                title=report.curve_title(config, recovery.pruning_report),
            )
        with timings.stage("evaluate"):
            evaluation.after(model, recovery.tokenizer)
        content = report.analysis(
            config,
            trained,
            pruning_report=recovery.pruning_report,
            command=recovery.command,
            text=text.description,
            evaluation=evaluation.results,
            samples=evaluation.samples,
            timings_s=timings,
            device=recovery.device,
            dtype=str(recovery.dtype).removeprefix("torch."),
            warnings=text.warnings
            + [warning for used in text.texts for warning in evaluation.overlap_warnings(used, "trained")]
            + evaluation.warnings
            + report.warnings_about(evaluation.results, trained, config),
        )
        report.write_analysis(content, recovery.pruning_report, folder)
        write_model_card(folder, config.pruned_model, Path(config.output_dir), recovery.repo_id)
        write_settings(config, folder / RUN_SETTINGS, recovery.command)
        write_checksums(folder)
        log.copy_to(folder / TRAINING_LOG)  # without the lines below: nothing that they meet can lose the result
    write_report(Path(config.output_dir))
    report.show_report(content, config)
    log.append_to(Path(config.output_dir) / TRAINING_LOG)


def check_request(config: RecoveryConfig) -> tuple[Any, Any]:
    """Refuse everything that cannot work before a model is loaded; return the tokenizer and the model's config.

    Raises:
        InputError: missing packages, no model, weights or tokenizer, one that does not fit, sequences too long for the
            model, results in the way, no GPU, a disk too small for the result.
    """
    check_surroundings(config)
    for device in (config.device, config.distill_device):
        resolve_device(device)
    model_config = config_of(config.pruned_model)
    check_positions(model_config, "--cutoff_len", config.cutoff_len)
    check_positions(model_config, "--eval_seq_len", config.eval_seq_len)
    for model in (config.pruned_model, config.distill_from):
        if model is not None:
            refuse_missing(model)
    output = Path(config.output_dir)
    need = recovery_disk_need(
        Path(config.pruned_model), output, with_bin=not config.no_bin, trains_all=config.method == "full"
    )
    need.check(output, "--output_dir")
    tokenizer = load_tokenizer_of(config.base_model or config.pruned_model)
    for warning in check_vocabulary(model_config.vocab_size, tokenizer):
        LOG.warning("%s", warning)
    return tokenizer, model_config


def check_surroundings(config: RecoveryConfig) -> None:
    """Refuse missing packages, and an output that exists already or cannot be written.

    Raises:
        InputError: names the package or the folder.
    """
    reporter = () if config.report_to == "none" else (config.report_to,)
    require_packages("peft", "accelerate", "matplotlib", *reporter)
    reads = (config.pruned_model, config.base_model, config.distill_from, config.data_dir, *config.data_paths)
    check_target(Path(config.output_dir), config.overwrite, "--output_dir", reads + config.evaluation_texts)
    check_work_dir(config.work_dir, config.resume_settings, resume=config.resume, overwrite=config.overwrite)


def prepare_after_pruning(
    config: PruneConfig, request: Request, tokenizer: Any
) -> list[tuple[RecoveryConfig, TrainingText]]:
    """Return one recovery per ratio of ``--finetune``, refused before pruning begins if it cannot be done.

    Raises:
        InputError: as ``check_surroundings`` and ``load_training_text``; several processes; a model with few positions.
    """
    if launched_processes() > 1:
        raise InputError(
            expected="one process with --finetune",
            got=str(launched_processes()),
            remedy="prune first, then start finetune_lora.py with accelerate launch",
        )
    recoveries = [
        recovery_after_pruning(config, request.folder(ratio), config.suffix_for(ratio)) for ratio in config.ratios
    ]
    for recovery in recoveries:
        check_surroundings(recovery)
        check_positions(request.source.config, "--cutoff_len", recovery.cutoff_len)
    text = load_training_text(recoveries[0], tokenizer)
    check_token_ids(text.largest_id, request.source.config.vocab_size, tokenizer, recoveries[0].data_path)
    return [(recovery, text) for recovery in recoveries]


def recover_all(recoveries: Iterable[tuple[RecoveryConfig, TrainingText]], command: str) -> int:
    """Recover every pruned model in turn and add a recovery section to its report; return the exit code.

    The first failure ends it and says how to go on: the pruned models are complete.
    """
    from hgsp.console.exit_codes import run_guarded

    for config, text in recoveries:
        code = run_guarded(partial(finetune, config, command, text), OUT_OF_MEMORY, INTERRUPTED)
        if code:
            print(f"{config.pruned_model} is complete; its recovery by itself: {_command_of(config)}", file=sys.stderr)
            return code
        report.add_to_report(Path(config.pruned_model), Path(config.output_dir))
        write_report(Path(config.pruned_model))
    return 0


def _command_of(config: RecoveryConfig) -> str:
    return shlex.join([*program("finetune"), *arguments_of(config)])
