"""Export of a uniform checkpoint as a plain Llama, Mistral, Qwen2 or Qwen3 model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hgsp.errors import InputError
from hgsp.exports.folder_check import check_log_probs, check_tensors
from hgsp.exports.hf_folder import check_tokenizer, shared_settings, write_folder
from hgsp.exports.inventory import Tensors, copied, shapes_of, skeleton_of
from hgsp.exports.padding import PaddedTensor
from hgsp.exports.result import Exported, ExportOptions
from hgsp.exports.source import ExportSource
from hgsp.exports.uniform import cost_of, largest_shape, nearest_uniform
from hgsp.models.configs import describe
from hgsp.models.families import ATTENTION_INPUTS, ATTENTION_OUTPUT, LAYER_PREFIX, MLP_INPUTS, MLP_OUTPUT
from hgsp.models.geometry import geometry_of

#: model_type -> class in transformers.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def export_stock(source: ExportSource, folder: Path, options: ExportOptions) -> Exported:
    """Write the same tensors under a stock config.

    Raises:
        InputError: layers of different sizes, tensors that no stock architecture has, or no tokenizer.
        NumericalError: the self-check fails.
    """
    check_tokenizer(source)
    skeleton = skeleton_of(source)
    if not source.is_uniform:
        raise _not_uniform(source, skeleton)
    shapes = shapes_of(skeleton)
    config = stock_config(source, shapes)
    tensors = _tensors(source, shapes, config)
    files = write_folder(folder, source, tensors, config)
    checks = []
    if options.self_check:
        stock = describe(folder).config
        checks = [check_tensors(folder, tensors, source), *check_log_probs(source, folder, stock, ())]
    renamed = config["model_type"] != source.family.model_type
    notes = (f"written as {config['model_type']}, which computes the same and has these sizes",) if renamed else ()
    return Exported(files, _serve(config), notes, tuple(checks))


def stock_config(source: ExportSource, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return ``config.json`` of the stock architecture that has a place for every tensor, the family's own first.

    Raises:
        InputError: there is none.
    """
    shape, family = source.shapes[0], source.family.model_type
    num_queries = shape.num_kv_groups * source.queries_per_kv
    biased = {
        name.removeprefix(f"{LAYER_PREFIX}0.").removesuffix(".bias")
        for name in shapes
        if name.startswith(f"{LAYER_PREFIX}0.") and name.endswith(".bias")
    }
    mlp_bias = bool(biased & {*MLP_INPUTS, MLP_OUTPUT})
    fits = {
        "llama": family != "qwen3" and source.hidden_size % num_queries == 0,  # a rule of LlamaConfig
        "mistral": family != "qwen3" and not biased,
        "qwen2": family == "qwen2" and biased == set(ATTENTION_INPUTS),
        "qwen3": family == "qwen3" and not mlp_bias,
    }
    architecture = next((name for name in (family, "llama", "mistral") if fits[name]), None)
    if architecture is None:
        step, most = source.queries_per_kv, source.hidden_size // source.head_dim
        fitting = [str(number) for number in range(step, most + 1, step) if source.hidden_size % number == 0]
        heads = "" if family == "qwen3" else f"{' or '.join(fitting)} query heads in every layer, "
        raise InputError(
            expected="tensors that a stock architecture has a place for",
            got=f"{family} with biases of {', '.join(sorted(biased))} and {num_queries} query heads",
            remedy=f"use another target, {heads}or a refit that adds no biases",
        )
    config = {
        **shared_settings(source),
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "num_attention_heads": num_queries,
        "num_key_value_heads": shape.num_kv_groups,
        "intermediate_size": shape.mlp_width,
    }
    if architecture in ("llama", "qwen3"):
        config["attention_bias"] = bool(biased & {*ATTENTION_INPUTS, ATTENTION_OUTPUT})
    return config | ({"mlp_bias": mlp_bias} if architecture == "llama" else {"sliding_window": None})


def _tensors(source: ExportSource, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> Tensors:
    """Return the checkpoint's tensors, with biases of zeros where the architecture has more of them."""
    tensors = {name: copied(name, shape) for name, shape in shapes.items()}
    biased = (*ATTENTION_INPUTS, ATTENTION_OUTPUT) if config.get("attention_bias") else ()
    biased += (*MLP_INPUTS, MLP_OUTPUT) if config.get("mlp_bias") else ()
    for index in range(len(source.shapes)):
        for linear in biased:
            name = f"{LAYER_PREFIX}{index}.{linear}"
            tensors.setdefault(f"{name}.bias", PaddedTensor(shapes[f"{name}.weight"][:1]))
    return tensors


def _serve(config: dict[str, Any]) -> tuple[str, ...]:
    """Return command lines. Qwen2 of vLLM and of mlx-lm computes the head dimension from the hidden size."""
    heads_fill_hidden = config["num_attention_heads"] * config["head_dim"] == config["hidden_size"]
    if config["model_type"] == "qwen2" and not heads_fill_hidden:
        return ("vllm serve {folder} --model-impl transformers",)
    return ("vllm serve {folder}", "mlx_lm.generate --model {folder} --prompt 'Once upon a time'")


def _not_uniform(source: ExportSource, skeleton: Any) -> InputError:
    """Return the error with the nearest uniform plan, and with the cost of zero padding to the largest layer."""
    groups = [shape.num_kv_groups for shape in source.shapes]
    widths = [shape.mlp_width for shape in source.shapes]
    geometry = geometry_of(skeleton)
    return InputError(
        expected="the same sizes in every layer, which stock architectures need",
        got=f"{min(groups)} to {max(groups)} KV groups and {min(widths)} to {max(widths)} MLP channels",
        remedy=f"prune again with --uniform: {cost_of(geometry, nearest_uniform(geometry))} are nearest; zero padding "
        f"to the largest sizes would make {cost_of(geometry, largest_shape(geometry))}",
    )
