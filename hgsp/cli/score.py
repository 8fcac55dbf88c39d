"""Score every group of a model once; ``hgsp cut`` then prunes to any ratio in seconds."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hgsp.console.exit_codes import quiet_libraries, run_guarded
from hgsp.console.flags import parse
from hgsp.console.settings_file import command_line, settings_beside, write_settings
from hgsp.pipeline.config import ScoreConfig

LOG = logging.getLogger("hgsp")


OPTIONS = ScoreConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp score") -> int:
    """Run the scoring command; exit code 0 done, 2 bad input (nothing written), 1 failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(OPTIONS, arguments, prog=prog, description=__doc__ or "")
        return score(config, command_line(prog, arguments, config))

    return run_guarded(run)


def score(config: ScoreConfig, command: str) -> int:
    """Score the model and write one file; the influence of layers and blocks is always measured."""
    quiet_libraries()
    from hgsp.console.disk import check_free_space
    from hgsp.console.progress import terminal
    from hgsp.console.result_folders import check_file_target, refuse_unwritable, reserved
    from hgsp.data.calibration import build_calibration
    from hgsp.data.texts import CALIBRATE, load_text
    from hgsp.models.devices import resolve_device
    from hgsp.models.loaded import load_for_pruning
    from hgsp.models.loading import check_positions, inspect_model
    from hgsp.models.processes import is_main_process, join_processes, leave_processes
    from hgsp.models.tokenizers import check_token_ids, load_own_tokenizer
    from hgsp.pipeline import forecast, stages
    from hgsp.pipeline.calibrations import Calibrations
    from hgsp.pipeline.disk import scores_bytes
    from hgsp.pipeline.experts import refuse_for_others

    target = Path(config.output)
    check_file_target(target, config.overwrite, "--output")
    spill_dir = Path(config.spill_dir) if config.spill_dir else None
    if spill_dir is not None:
        refuse_unwritable(spill_dir, "--spill_dir")
    device = resolve_device(config.device)
    source = inspect_model(config.base_model, dequantize=config.dequantize)
    geometry = source.geometry.with_expert_channels(config.expert_channels)
    if not geometry.experts_per_token:
        refuse_for_others(config)
    check_positions(source.config, "--seq_len", config.seq_len)
    texts = [load_text(name, CALIBRATE, config.data_dir) for name in config.datasets]
    tokenizer, warnings = load_own_tokenizer(source)
    for warning in warnings:
        LOG.warning("%s", warning)
    calibration = build_calibration(texts, tokenizer, config.nsamples, config.seq_len, config.seed)
    check_token_ids(int(calibration.input_ids.max()), source.config.vocab_size, tokenizer, calibration.source)
    check_free_space(target.parent, scores_bytes(geometry), "the scores", "choose another --output")
    forecast.check_spill(config, geometry, Calibrations(scoring=calibration))
    with reserved(target):
        join_processes(device)
        scores = stages.score(
            load_for_pruning(source, config.dtype, device, offload=config.offload),
            config.recipe,
            calibration,
            stages.Resources(config.batch_size, config.use_gradient_checkpointing, spill_dir),
            base_model=config.base_model,
            seed=config.seed,
            progress=terminal,
        )
        is_main = is_main_process()
        leave_processes()
        if is_main:
            write_settings(config, settings_beside(target), command)
            scores.write(target)
    if is_main:
        print(f"scores: {target}")
        made_from = shlex.join(["--base_model", config.base_model, "--scores", str(target)])
        print(f"next: hgsp cut {made_from} --pruning_ratio 0.2 --output_name NAME")
    return 0


if __name__ == "__main__":
    sys.exit(main())
