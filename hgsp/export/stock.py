"""Export of a uniform checkpoint as a plain Llama, Mistral, Qwen2 or Qwen3 model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from hgsp.errors import InputError
from hgsp.export.folder_check import check_log_probs, check_tensors
from hgsp.export.hf_folder import check_tokenizer, shared_settings, write_folder
from hgsp.export.inventory import Tensors, copied, shapes_of, skeleton_of
from hgsp.export.padding import PaddedTensor
from hgsp.export.result import Exported, ExportOptions
from hgsp.export.source import ExportSource
from hgsp.models.families import ATTENTION_INPUTS, ATTENTION_OUTPUT, LAYER_PREFIX, MLP_INPUTS, MLP_OUTPUT
from hgsp.models.geometry import Geometry, LayerShape, geometry_of

#: Proposed widths are multiples of this.
PROPOSED_MULTIPLE = 64
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def export_stock(source: ExportSource, folder: Path, options: ExportOptions) -> Exported:
    """Write the same tensors under a stock config.

    Raises:
        InputError: layers of different sizes, biases that no stock architecture has, or no tokenizer.
        NumericalError: the self-check fails.
    """
    check_tokenizer(source)
    skeleton = skeleton_of(source)
    if not source.is_uniform:
        raise InputError(
            expected="the same sizes in every layer, which stock architectures need",
            got=_spread(source.shapes),
            remedy=_proposal(geometry_of(skeleton)),
        )
    shapes = shapes_of(skeleton)
    biased = tuple(
        any(block in name and name.endswith(".bias") for name in shapes if own_bias(source, name))
        for block in (".self_attn.", ".mlp.")
    )
    config = stock_config(source, *biased)
    tensors = _tensors(source, shapes, config)
    files = write_folder(folder, source, tensors, config)
    checks = []
    if options.self_check:
        loaded = AutoConfig.from_pretrained(folder)
        checks = [check_tensors(folder, tensors, source), *check_log_probs(source, folder, loaded, ())]
    return Exported(files, _serve(config), _notes(source, config), tuple(checks))


def own_bias(source: ExportSource, name: str) -> bool:
    """Return whether a tensor is a bias that the stock architecture of the family does not have by itself."""
    is_input_of_qwen2 = source.family.model_type == "qwen2" and any(f".{part}." in name for part in ATTENTION_INPUTS)
    return name.endswith(".bias") and not is_input_of_qwen2


def stock_config(source: ExportSource, attention_bias: bool, mlp_bias: bool) -> dict[str, Any]:
    """Return ``config.json`` of the stock architecture that has a place for every tensor.

    Args:
        attention_bias, mlp_bias: whether a block has biases beyond those of its family.

    Raises:
        InputError: there is none.
    """
    shape, family = source.shapes[0], source.family.model_type
    num_queries = shape.num_kv_groups * source.queries_per_kv
    divides = source.hidden_size % num_queries == 0
    architecture = family
    if attention_bias or mlp_bias:
        architecture = "llama" if divides and family != "qwen3" else ""
    elif family == "llama" and not divides:  # LlamaConfig refuses it, even with head_dim; Mistral computes the same
        architecture = "mistral"
    if family == "qwen3" and not mlp_bias:
        architecture = "qwen3"
    if not architecture:
        raise InputError(
            expected="weights that a stock architecture has a place for",
            got="biases of output projections"
            + ("" if divides else f" and {num_queries} heads, which do not divide the hidden size"),
            remedy="use another target, or prune with a recipe that adds no biases",
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
        config["attention_bias"] = attention_bias or (architecture == "llama" and family == "qwen2")
    if architecture == "llama":
        config["mlp_bias"] = mlp_bias
    else:
        config["sliding_window"] = None  # the default of MistralConfig is 4096
    return config


def _tensors(source: ExportSource, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> Tensors:
    """Return the checkpoint's tensors, with biases of zeros where the architecture wants more than it has."""
    tensors = {name: copied(name, shape) for name, shape in shapes.items()}
    wanted = (*ATTENTION_INPUTS, ATTENTION_OUTPUT) if config.get("attention_bias") else ()
    wanted = (*wanted, *MLP_INPUTS, MLP_OUTPUT) if config.get("mlp_bias") else wanted
    for index in range(len(source.shapes)):
        for linear in wanted:
            name = f"{LAYER_PREFIX}{index}.{linear}"
            tensors.setdefault(f"{name}.bias", PaddedTensor(shapes[f"{name}.weight"][:1]))
    return tensors


def _serve(config: dict[str, Any]) -> tuple[str, ...]:
    """Return command lines; vLLM's own Qwen2 computes the head dimension from the hidden size."""
    usual = config["num_attention_heads"] * config["head_dim"] == config["hidden_size"]
    vllm = "" if usual or config["model_type"] != "qwen2" else " --model-impl transformers"
    return (f"vllm serve {{folder}}{vllm}", "mlx_lm.generate --model {folder} --prompt 'Once upon a time'")


def _notes(source: ExportSource, config: dict[str, Any]) -> tuple[str, ...]:
    if config["model_type"] == source.family.model_type:
        return ()
    return (f"written as {config['model_type']}, which computes the same and accepts these sizes",)


def _spread(shapes: Sequence[LayerShape]) -> str:
    groups = [shape.num_kv_groups for shape in shapes]
    widths = [shape.mlp_width for shape in shapes]
    return f"{min(groups)} to {max(groups)} KV groups and {min(widths)} to {max(widths)} MLP channels"


def _proposal(geometry: Geometry) -> str:
    """Return the nearest uniform plan, and the cost of zero padding instead."""
    nearest, largest = nearest_uniform(geometry), largest_shape(geometry.shapes)
    return (
        f"prune again with --uniform, for example to {_cost(geometry, nearest)}; padding every layer to the largest, "
        f"{_cost(geometry, largest)}, is not worth it"
    )


def nearest_uniform(geometry: Geometry) -> LayerShape:
    """Return the shape that all layers could have at about the same number of parameters.

    KV groups are the mean, rounded; the width takes the rest, in multiples of ``PROPOSED_MULTIPLE`` for MLPs of 1,024
    channels or more.
    """
    shapes, num_layers = geometry.shapes, len(geometry.shapes)
    num_kv = max(1, round(sum(shape.num_kv_groups for shape in shapes) / num_layers))
    multiple = PROPOSED_MULTIPLE if max(shape.mlp_width for shape in shapes) >= 1024 else 1
    without = geometry.layer_params(LayerShape(num_kv, 0)) + geometry.mlp_extra_params
    width = (geometry.decoder_params / num_layers - without) / geometry.mlp_channel_params
    return LayerShape(num_kv, max(multiple, round(width / multiple) * multiple))


def largest_shape(shapes: Sequence[LayerShape]) -> LayerShape:
    """Return the most KV groups and the largest width that any layer has."""
    return LayerShape(max(s.num_kv_groups for s in shapes), max(s.mlp_width for s in shapes))


def _cost(geometry: Geometry, shape: LayerShape) -> str:
    params = geometry.total_params - geometry.decoder_params + geometry.num_layers * geometry.layer_params(shape)
    change = params / geometry.total_params - 1
    return (
        f"{shape.num_kv_groups} KV groups and {shape.mlp_width} channels in each of {geometry.num_layers} layers "
        f"({params / 1e6:.1f}M parameters, {change:+.1%})"
    )
