"""Export of a uniform checkpoint as a plain model of its family, or of one that computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hgsp.errors import InputError
from hgsp.exports.folder_check import check_log_probs, check_tensors
from hgsp.exports.hf_folder import check_tokenizer, shared_settings, write_folder
from hgsp.exports.inventory import Tensors, copied, shapes_of, skeleton_of
from hgsp.exports.padding import PaddedTensor, Part
from hgsp.exports.result import Exported, ExportOptions
from hgsp.exports.source import ExportSource
from hgsp.exports.uniform import cost_of, largest_shape, nearest_uniform, sizes_of_mixture
from hgsp.models.blocks import ATTENTION_INPUTS, ATTENTION_OUTPUT, MLP_INPUTS, MLP_OUTPUT
from hgsp.models.configs import describe
from hgsp.models.families import FAMILIES, LAYER_PREFIX, SLIDING, Family
from hgsp.models.fusion import rows_of_parts, shapes_in_files, wholes_of
from hgsp.models.geometry import geometry_of
from hgsp.models.layer_sizes import layer_sizes, stored_keys

#: Keys of ``config.json`` that describe our class, or sizes that the export writes anew.
_OWN_KEYS = ("auto_map", "per_layer_config", "writer_bias", "transformers_version", "dtype", "torch_dtype")
_ATTENTION, _MLP = {*ATTENTION_INPUTS, ATTENTION_OUTPUT}, {*MLP_INPUTS, MLP_OUTPUT}


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
    tensors = _stored(source) if source.has_experts else _tensors(source, shapes, config)
    if FAMILIES[config["model_type"]].fused:
        tensors = _fused(shapes, wholes_of(skeleton))
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
    shape, family = source.shapes[0], source.family
    num_queries = shape.num_kv_groups * source.queries_per_kv
    _check_factors(source, num_queries)
    biased = {
        name.removeprefix(f"{LAYER_PREFIX}0.").removesuffix(".bias")
        for name in shapes
        if name.startswith(f"{LAYER_PREFIX}0.") and name.endswith(".bias")
    }
    is_llama_block = not (source.beyond_llama or family.qk_norm)
    others = [FAMILIES[name] for name in ("llama", "mistral") if is_llama_block]
    divides = source.hidden_size % num_queries == 0
    architecture = next((other for other in (family, *others) if _has_place(other, biased, divides)), None)
    if architecture is None:
        step, most = source.queries_per_kv, source.hidden_size // source.head_dim
        fitting = [str(number) for number in range(step, most + 1, step) if source.hidden_size % number == 0]
        divide = any(other.heads_divide_hidden for other in (family, *others))
        heads = f"{' or '.join(fitting)} query heads in every layer, " if divide else ""
        raise InputError(
            expected="tensors that a stock architecture has a place for",
            got=f"{family.model_type} with biases of {', '.join(sorted(biased))} and {num_queries} query heads",
            remedy=f"use another target, {heads}or a refit that adds no biases",
        )
    has_bias = {"attention": bool(biased & _ATTENTION), "mlp": bool(biased & _MLP)}
    config = {
        **(own_settings(source) if source.beyond_llama or architecture.fused else shared_settings(source)),
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[architecture.model_type]],
        "model_type": architecture.model_type,
        **_sizes(source),
    }
    config |= {key: has_bias[kind] for kind, key in architecture.bias_keys.items()}
    if SLIDING in architecture.attention_types and not source.beyond_llama:
        config["sliding_window"] = None
    return config | (_rope_on_the_hub(source) if architecture.has_longrope else {})


def _sizes(source: ExportSource) -> dict[str, Any]:
    """Return the sizes of all layers, by the keys that the family's config stores them by."""
    width_key = source.family.experts.width if source.family.experts else None
    sizes = [layer_sizes(shape, source.queries_per_kv, width_key, source.family.width) for shape in set(source.shapes)]
    common = {key: value for of_layer in sizes for key, value in of_layer.items()}
    return stored_keys(CONFIG_MAPPING[source.family.model_type], common)


def _check_factors(source: ExportSource, num_queries: int) -> None:
    """Refuse rotary factors that the stock config would count by a number of heads that is no longer theirs."""
    if source.has_longrope and source.hidden_size // num_queries != source.head_dim:
        all_groups = source.hidden_size // source.head_dim // source.queries_per_kv
        raise InputError(
            expected="all query heads, by whose number the stock class counts its rotary factors",
            got=f"{num_queries} query heads of {source.head_dim} for a hidden size of {source.hidden_size}",
            remedy=f"prune with --min_kv_groups {all_groups}, or serve the folder itself with Transformers",
        )


def _rope_on_the_hub(source: ExportSource) -> dict[str, Any]:
    """Return rotary settings by the keys that transformers 4 and engines know from such models on the hub."""
    rope = source.rope
    factors = {key: rope[key] for key in ("short_factor", "long_factor") if key in rope}
    return {
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": source.rotated_part,
        "rope_scaling": {"type": rope["rope_type"], **factors} if source.has_longrope else None,
    }


def own_settings(source: ExportSource) -> dict[str, Any]:
    """Return the keys of ``config.json`` that the checkpoint's family has beyond those of a Llama, and the others."""
    kept = {key: value for key, value in source.config.items() if key not in _OWN_KEYS}
    return {**kept, "dtype": str(source.dtype).removeprefix("torch."), "head_dim": source.head_dim}


def _has_place(family: Family, biased: set[str], divides: bool) -> bool:
    """Return whether a stock class has biases where there are some, and takes the number of heads."""
    if family.heads_divide_hidden and not divides:
        return False
    if family.input_biases:
        return biased == set(ATTENTION_INPUTS)
    kinds = {"attention" for _ in biased & _ATTENTION} | {"mlp" for _ in biased & _MLP}
    return kinds <= family.bias_keys.keys()


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


def _stored(source: ExportSource) -> Tensors:
    """Return the tensors of a mixture of experts as they are stored, which is as the stock class stores them."""
    tied = {"lm_head.weight"} if source.ties_embeddings else set()
    return {name: copied(name, shape) for name, shape in source.tensors.shapes.items() if name not in tied}


def _fused(shapes: dict[str, tuple[int, ...]], wholes: Mapping[str, tuple[str, ...]]) -> Tensors:
    """Return the checkpoint's tensors, projections as parts of the matrices that the stock class has for them."""
    rows = rows_of_parts(wholes, shapes)
    return {
        name: PaddedTensor(shape, tuple(Part(part, 0, rows[part][1]) for part in wholes[name]))
        if name in wholes
        else copied(name, shape)
        for name, shape in shapes_in_files(shapes, wholes).items()
    }


def _serve(config: dict[str, Any]) -> tuple[str, ...]:
    """Return command lines. Qwen2 of vLLM and of mlx-lm computes the head dimension from the hidden size.

    Engines were not tried with mixtures of experts.
    """
    if FAMILIES[config["model_type"]].experts:
        load = "from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}')"
        return (f'python -c "{load}"',)
    heads_fill_hidden = config["num_attention_heads"] * config["head_dim"] == config["hidden_size"]
    if FAMILIES[config["model_type"]].implied_head_dim and not heads_fill_hidden:
        return ("vllm serve {folder} --model-impl transformers",)
    return ("vllm serve {folder}", "mlx_lm.generate --model {folder} --prompt 'Once upon a time'")


def _not_uniform(source: ExportSource, skeleton: Any) -> InputError:
    """Return the error with the nearest uniform plan, and with the cost of zero padding to the largest layer.

    No padding gives a router experts that it never chooses. ``--uniform`` has no plan for a mixture in which some
    layers have no experts.
    """
    groups = [shape.num_kv_groups for shape in source.shapes]
    widths = [shape.mlp_width for shape in source.shapes]
    sizes = f"{min(groups)} to {max(groups)} KV groups and {min(widths)} to {max(widths)} MLP channels"
    if source.has_experts:
        sizes = sizes_of_mixture(source.shapes)
    geometry = geometry_of(skeleton)
    if len({bool(shape.num_experts) for shape in source.shapes}) > 1:
        remedy = "load the folder itself with Transformers; --uniform needs experts in all layers or in none"
    else:
        remedy = f"prune again with --uniform: {cost_of(geometry, nearest_uniform(geometry))} are nearest"
        if not source.has_experts:
            remedy += f"; zero padding to the largest sizes would make {cost_of(geometry, largest_shape(geometry))}"
    return InputError(
        expected="the same sizes in every layer, which stock architectures need",
        got=sizes,
        remedy=remedy,
    )
