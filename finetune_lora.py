#!/usr/bin/env python3
"""Bring the quality of a pruned model back: train it on instructions or on its dense parent, and save it merged."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgsp.cli.main import quiet_libraries, run_guarded
from hgsp.console.flags import arguments_of, parse
from hgsp.errors import InputError
from hgsp.pipeline.config import PruneConfig
from hgsp.recovery.config import RecoveryConfig, recovery_after_pruning

if TYPE_CHECKING:
    from hgsp.pipeline.request import Request
    from hgsp.recovery.samples import TrainingText

LOG = logging.getLogger("hgsp")

INTERRUPTED = "interrupted; go on with --resume, without it if nothing was saved yet"
OUT_OF_MEMORY = (
    "go on with --resume --use_gradient_checkpointing, without --resume if nothing was saved yet. If that is not "
    "enough, start over with a smaller --micro_batch_size (--batch_size may stay), a smaller --cutoff_len, "
    "--distill_cache --distill_top_k 64, --distill_offload, or a smaller --lora_r"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; exit code 0 done, 2 bad input (nothing written), 1 failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(RecoveryConfig, arguments, prog="finetune_lora.py", description=__doc__ or "")
        return finetune(config, shlex.join(["finetune_lora.py", *arguments]))

    return run_guarded(run, OUT_OF_MEMORY, INTERRUPTED)


def finetune(config: RecoveryConfig, command: str, text: TrainingText | None = None) -> int:
    """The whole recipe for one configuration: check, measure, train, merge, measure, write.

    ``text`` is what ``--data_path`` holds, where it has been read already.
    """
    quiet_libraries()
    import torch

    from hgsp.console.log_file import LogFile
    from hgsp.console.progress import Timings, terminal
    from hgsp.console.result_folders import new_folder
    from hgsp.evaluation.models import own_device
    from hgsp.evaluation.pre_post import PrePostEvaluation
    from hgsp.layerwise.distributed import is_main_process, leave_processes, wait_for_all
    from hgsp.models.checkpoint import load_pruned
    from hgsp.models.tokenizers import check_token_ids
    from hgsp.recovery import outputs as outcome
    from hgsp.recovery import training
    from hgsp.recovery.resume import resumable_run
    from hgsp.recovery.samples import Collator, load_training_text
    from hgsp.recovery.teacher import inspect_teacher

    tokenizer, model_config = check_request(config)
    text = text or load_training_text(config, tokenizer)
    check_token_ids(text.largest_id, model_config.vocab_size, tokenizer, config.data_path)
    teacher_source = inspect_teacher(config, model_config.vocab_size)
    measure = PrePostEvaluation(config, offloaded=False)
    measure.check(model_config, tokenizer)
    device = own_device(config.device)
    dtype = outcome.stored_dtype(config, model_config)
    is_main = is_main_process()
    timings = Timings()
    with (
        resumable_run(config) if is_main else nullcontext(),
        LogFile(config.work_dir / "training.log") if is_main else nullcontext() as log,
    ):
        wait_for_all()
        LOG.info("command: %s\ntraining text: %s", command, text.description)
        with timings.stage("load"):
            model = load_pruned(
                config.pruned_model, device=device, dtype=torch.float32 if config.method == "full" else dtype
            )
        with timings.stage("evaluate"):
            if is_main:
                measure.before(model, tokenizer)
            wait_for_all()
        with timings.stage("train"):
            collator = Collator(outcome.padding_token(tokenizer, model_config.vocab_size), config.packing)
            trained = training.train(model, text, config, collator, device, teacher_source, terminal)
        del model
        leave_processes()
        if not is_main:
            return 0

        with new_folder(Path(config.output_dir), config.overwrite) as folder:
            with timings.stage("save"):
                recovered = outcome.recovered_model(config, trained, dtype, device)
                outcome.write_result(recovered, tokenizer, config, trained, folder)
            with timings.stage("evaluate"):
                measure.after(recovered, tokenizer)
            content = outcome.analysis(
                config,
                trained,
                command=command,
                text=text.description,
                evaluation=measure.results,
                samples=measure.samples,
                timings_s=timings,
                device=device,
                dtype=str(dtype).removeprefix("torch."),
                warnings=text.warnings
                + measure.overlap_warnings(text.text, "trained")
                + measure.warnings
                + outcome.warnings_about(measure.results, trained, config),
            )
            outcome.write_analysis(content, config.pruned_model, folder)
            outcome.tell(content, config)
            assert log is not None
            log.copy_to(folder / "logs" / "training.log")
    return 0


def check_request(config: RecoveryConfig) -> tuple[Any, Any]:
    """Refuse what cannot work before anything is loaded; returns the tokenizer and the model's config.

    Raises:
        InputError: missing packages, no model, weights or tokenizer, one that does not fit, sequences too long for the
            model, results in the way, no GPU.
    """
    from hgsp.evaluation.models import refuse_missing
    from hgsp.models.checkpoint import config_of, load_tokenizer_of
    from hgsp.models.devices import resolve_device
    from hgsp.models.loading import check_positions
    from hgsp.models.tokenizers import check_vocabulary

    check_surroundings(config)
    for device in (config.device, config.distill_device):
        resolve_device(device)
    model_config = config_of(config.pruned_model)
    check_positions(model_config, "--cutoff_len", config.cutoff_len)
    check_positions(model_config, "--eval_seq_len", config.eval_seq_len)
    for model in (config.pruned_model, config.distill_from):
        if model is not None:
            refuse_missing(model)
    tokenizer = load_tokenizer_of(config.base_model or config.pruned_model)
    for warning in check_vocabulary(model_config.vocab_size, tokenizer):
        LOG.warning("%s", warning)
    return tokenizer, model_config


def check_surroundings(config: RecoveryConfig) -> None:
    """Refuse missing packages and an output that is there already or cannot be written.

    Raises:
        InputError: says which.
    """
    from hgsp.console.result_folders import check_target
    from hgsp.recovery.resume import check_work_dir

    config.require_packages()
    reads = (config.pruned_model, config.base_model, config.distill_from, config.data_path, config.data_dir)
    check_target(Path(config.output_dir), config.overwrite, "--output_dir", reads + config.evaluation_texts)
    check_work_dir(config)


def prepare_after_pruning(
    config: PruneConfig, request: Request, tokenizer: Any
) -> list[tuple[RecoveryConfig, TrainingText]]:
    """What ``--finetune`` will do with every result, refused before pruning begins if it cannot be done.

    Raises:
        InputError: as ``check_surroundings`` and ``load_training_text``; several processes; a model with few positions.
    """
    from hgsp.layerwise.distributed import launched_processes
    from hgsp.models.loading import check_positions
    from hgsp.models.tokenizers import check_token_ids
    from hgsp.recovery.samples import load_training_text

    if launched_processes() > 1:
        raise InputError(
            expected="one process with --finetune",
            got=str(launched_processes()),
            remedy="prune first, then start finetune_lora.py with accelerate launch",
        )
    recoveries = [recovery_after_pruning(config, request.folder(ratio)) for ratio in config.pruning_ratio]
    for recovery in recoveries:
        check_surroundings(recovery)
        check_positions(request.source.config, "--cutoff_len", recovery.cutoff_len)
    text = load_training_text(recoveries[0], tokenizer)
    check_token_ids(text.largest_id, request.source.config.vocab_size, tokenizer, recoveries[0].data_path)
    return [(recovery, text) for recovery in recoveries]


def recover_all(recoveries: Sequence[tuple[RecoveryConfig, TrainingText]], command: str) -> int:
    """Recover every pruned model in turn; its report gains a recovery section. Returns the exit code.

    One that fails ends it, and the user is told how to go on: what is pruned is there and stays.
    """
    for config, text in recoveries:
        code = run_guarded(partial(finetune, config, command, text), OUT_OF_MEMORY, INTERRUPTED)
        if code:
            alone = shlex.join(["python", "finetune_lora.py", *arguments_of(config)])
            print(f"{config.pruned_model} is complete; its recovery by itself: {alone}", file=sys.stderr)
            return code
        from hgsp.recovery.outputs import add_to_report

        add_to_report(Path(config.pruned_model), Path(config.output_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
