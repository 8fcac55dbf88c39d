"""Export to one ``nemotron-nas`` folder for vLLM and TensorRT-LLM, and for MLX where its head counts allow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from hgsp.exports.folder_check import check_log_probs, check_tensors
from hgsp.exports.hf_folder import check_tokenizer, write_folder
from hgsp.exports.inventory import shapes_of, skeleton_of
from hgsp.exports.nemotron_nas import NemotronNas, check_nemotron_nas, nemotron_nas
from hgsp.exports.padding import cheapest_num_queries
from hgsp.exports.result import Exported, ExportOptions
from hgsp.exports.source import ExportSource
from hgsp.models import configuration_decilm
from hgsp.models.configuration_decilm import DeciLMConfig


def export_decilm(source: ExportSource, folder: Path, options: ExportOptions) -> Exported:
    """Write a padded copy with the number of query heads that costs the fewest parameters.

    Raises:
        InputError: a model that the layout cannot hold, or no tokenizer.
        NumericalError: the self-check fails.
    """
    check_tokenizer(source)
    check_nemotron_nas(source)
    shapes = shapes_of(skeleton_of(source))
    kept = [shape.num_kv_groups for shape in source.shapes]
    layout = nemotron_nas(
        source, shapes, cheapest_num_queries(kept, source.queries_per_kv, source.hidden_size // source.head_dim)
    )
    tensors = layout.tensors()
    config_file = Path(configuration_decilm.__file__)
    auto_map = {"AutoConfig": f"{config_file.stem}.{DeciLMConfig.__name__}"}
    shutil.copyfile(config_file, folder / config_file.name)
    files = write_folder(folder, source, tensors, layout.config() | {"auto_map": auto_map})
    checks = [check_tensors(folder, tensors, source)] if options.self_check else []
    in_mlx = layout.mlx_reads
    if options.self_check:
        engines = ("vllm", "mlx_lm") if in_mlx else ("vllm",)
        checks += check_log_probs(source, folder, padded_config(layout), engines)
    serve = ["vllm serve {folder} --trust-remote-code"]
    if not (layout.attention_bias or layout.mlp_bias):
        serve.append("trtllm-serve {folder} --trust_remote_code")
    if in_mlx:
        serve.append("mlx_lm.generate --model {folder} --prompt 'Once upon a time'")
    return Exported(files, tuple(serve), (*layout.notes(tensors), *engine_notes(layout)), tuple(checks))


def padded_config(layout: NemotronNas) -> Any:
    """Return the config with which our own Llama reads the padded tensors; the check of the layout uses it."""
    settings = layout.config()
    per_layer = {}
    for index, (heads, width) in enumerate(zip(layout.heads, layout.widths, strict=True)):
        sizes: dict[str, Any] = {"intermediate_size": width} if width else {}
        if heads:
            sizes |= {"num_attention_heads": heads.num_queries, "num_key_value_heads": heads.num_kv}
        skipped = [block for block, there in (("attention", heads), ("mlp", width)) if not there]
        per_layer[index] = sizes | ({"skip": skipped} if skipped else {})
    dropped = ("model_type", "architectures", "block_configs", "rope_theta", "rope_scaling")
    settings = {key: value for key, value in settings.items() if key not in dropped}
    return AutoConfig.for_model("hgsp_llama", **settings, per_layer_config=per_layer)


def engine_notes(layout: NemotronNas) -> tuple[str, ...]:
    """Return which engines read the folder, and why others do not."""
    biased = layout.attention_bias or layout.mlp_bias
    groups = {heads.num_kv if heads else 0 for heads in layout.heads}
    tensorrt = "no, it gives this architecture no biases" if biased else "yes by its source; not run"
    mlx = "yes" if layout.mlx_reads else "no, it wants heads times head_dim equal to the hidden size; use --to mlx"
    sglang = "yes by its source; not run"
    if layout.mlp_bias or len(groups) > 1:
        sglang = "no, it wants " + ("an MLP without biases" if layout.mlp_bias else "equal KV heads in every layer")
    return (f"vLLM: yes; TensorRT-LLM: {tensorrt}; MLX: {mlx}; SGLang: {sglang}",)
