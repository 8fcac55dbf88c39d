"""Export for mlx-lm: its ``openelm`` layout, which needs no padding, or ``nemotron-nas`` where that has no place."""

from __future__ import annotations

from pathlib import Path

from hgsp.errors import InputError
from hgsp.exports.folder_check import check_log_probs, check_tensors
from hgsp.exports.hf_folder import check_tokenizer, write_folder
from hgsp.exports.inventory import shapes_of, skeleton_of
from hgsp.exports.nemotron_nas import check_nemotron_nas, nemotron_nas
from hgsp.exports.openelm import openelm_config, openelm_tensors, reason_against
from hgsp.exports.result import Exported, ExportOptions
from hgsp.exports.source import ExportSource


def export_mlx(source: ExportSource, folder: Path, options: ExportOptions) -> Exported:
    """Write the layout of mlx-lm that costs the fewest parameters.

    Raises:
        InputError: neither layout holds the model, or no tokenizer.
        NumericalError: the self-check fails.
    """
    check_tokenizer(source)
    shapes = shapes_of(skeleton_of(source))
    notes: tuple[str, ...]
    if (reason := reason_against(source, shapes)) is None:
        tensors, config = openelm_tensors(source, shapes), openelm_config(source)
        empty = sum(shape.num_kv_groups == 0 for shape in source.shapes)
        notes = ("layout openelm: no padding",)
        if empty:
            notes = (f"layout openelm: each of {empty} layers without attention gets one head of zeros",)
    else:
        check_nemotron_nas(source)
        num_queries, rest = divmod(source.hidden_size, source.head_dim)
        if rest:
            raise InputError(
                expected="a head dimension that divides the hidden size, or a model without " + reason,
                got=f"head dimension {source.head_dim}, hidden size {source.hidden_size}",
                remedy="use --to gguf",
            )
        layout = nemotron_nas(source, shapes, num_queries)
        tensors, config = layout.tensors(), layout.config()
        notes = (f"layout nemotron-nas, for openelm has no {reason}", *layout.notes(tensors))
    files = write_folder(folder, source, tensors, config)
    checks = []
    if options.self_check:
        checks = [check_tensors(folder, tensors, source), *check_log_probs(source, folder, None, ("mlx_lm",))]
    serve = ("mlx_lm.generate --model {folder} --prompt 'Once upon a time'", "mlx_lm.server --model {folder}")
    return Exported(files, serve, notes, tuple(checks))
