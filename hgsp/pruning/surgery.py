"""Surgery: the tensors and the config of the pruned model that a plan makes of a dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hgsp.errors import InputError
from hgsp.models.blocks import ATTENTION_OUTPUT, MLP_OUTPUT
from hgsp.models.buffers import buffer_device, make_buffers
from hgsp.models.dispatch import dispatched_like
from hgsp.models.families import LAYER_PREFIX, Family, family_of
from hgsp.models.geometry import Geometry, LayerShape, geometry_of
from hgsp.models.layer_sizes import architecture_settings, layer_sizes, stored_keys
from hgsp.models.weight_checks import refuse_missing_weights, refuse_own_head
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.slices import LayerSlices, is_written


class Surgery:
    """The tensors of a pruned model by name, sliced from the dense model on demand.

    ``skeleton`` is the pruned model on the meta device, built from the config it is saved with.

    Args:
        model: the dense model; its weights may be on the meta device if ``read`` is given.
        read: returns a dense tensor by its name; default: the parameters of ``model``.
        replaced: tensors of the pruned model by name, such as reconstructed ones, used instead of slices.

    Raises:
        InputError: the plan is for a model of another size.
    """

    def __init__(
        self,
        model: Any,
        plan: PrunePlan,
        *,
        read: Callable[[str], Tensor] | None = None,
        replaced: Mapping[str, Tensor] | None = None,
    ) -> None:
        config, geometry = model.config, geometry_of(model)
        self.plan = plan
        self.skeleton: Any = pruned_skeleton(config, plan, geometry)
        self._read = read or (lambda name: model.get_parameter(name).detach())
        self.replaced: Mapping[str, Tensor] = {} if replaced is None else replaced
        self._slices = {
            new_index: (old_index, LayerSlices(plan.layers[old_index], geometry))
            for new_index, old_index in enumerate(surviving_layers(plan))
        }
        bias_keys = {ATTENTION_OUTPUT: "attention_bias", MLP_OUTPUT: "mlp_bias"}
        adds_biases = plan.writer_bias and not getattr(config, "writer_bias", False)
        #: Names in a layer of the biases that the plan adds: zero unless replaced.
        self.added_biases = [
            f"{name}.bias" for name, key in bias_keys.items() if adds_biases and not getattr(config, key, False)
        ]
        self._new_index_of = {old_index: new_index for new_index, (old_index, _) in self._slices.items()}

    def replacing(self, tensors: Mapping[str, Tensor]) -> Surgery:
        """Return the same surgery with these tensors of the pruned model as ``replaced``."""
        other = copy.copy(self)
        other.replaced = tensors
        return other

    def tensor(self, name: str) -> Tensor:
        """Return one tensor of the pruned model, a contiguous copy if it is sliced."""
        if name in self.replaced:
            return self.replaced[name]
        if not name.startswith(LAYER_PREFIX):
            return self._read(name)
        if any(name.endswith(f".{bias}") for bias in self.added_biases):
            return torch.zeros(self.skeleton.config.hidden_size, dtype=self.skeleton.dtype)
        new_index, _, inner = name.removeprefix(LAYER_PREFIX).partition(".")
        old_index, slices = self._slices[int(new_index)]
        return slices.take(inner, self._read(f"{LAYER_PREFIX}{old_index}.{inner}"))

    def zero_padded(self, old_index: int, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the matrices of one layer of the pruned model in their dense shapes, with zeros for dropped groups.

        They are zero throughout in removed layers and blocks, and include the biases that the plan adds.

        Args:
            dense: the tensors of the dense layer, by their names in it.
        """
        new_index = self._new_index_of.get(old_index)
        linears = {name: tensor for name, tensor in dense.items() if is_written(name)}
        weights = {name: dense.get(name.replace(".bias", ".weight")) for name in self.added_biases}
        linears |= {name: weight[:, 0] * 0 for name, weight in weights.items() if weight is not None}
        if new_index is None:
            return {name: torch.zeros_like(tensor) for name, tensor in linears.items()}
        slices, prefix = self._slices[new_index][1], f"{LAYER_PREFIX}{new_index}."
        return {name: slices.padded(name, tensor, self.replaced.get(prefix + name)) for name, tensor in linears.items()}


def apply_plan(
    model: Any, plan: PrunePlan, replaced: Mapping[str, Tensor] | None = None, *, inplace: bool = True
) -> Any:
    """Return the pruned model; its class and config describe exactly its tensors, which are contiguous copies.

    Consumes the dense model unless ``inplace`` is False: its layers are emptied one by one, so that never more than
    one layer exists twice, and its embeddings are taken over. Layers of equal shape everywhere give a stock model,
    others one of ``modeling_hgsp``. dtype, devices, attention implementation, generation config and tied embeddings
    stay; a model that accelerate had spread over devices is spread again. ``replaced`` holds tensors of the pruned
    model that are taken as they are (see ``reconstruct``).

    Raises:
        InputError: the plan was made for a model of another size, or some weights are not in memory or not what the
            config says.
    """
    refuse_missing_weights(model)
    refuse_own_head(model)
    surgery = Surgery(model, plan, replaced=replaced)
    pruned = surgery.skeleton
    names = list(pruned.state_dict())
    shared = set() if inplace else {parameter.data_ptr() for parameter in model.parameters()}

    def tensor(name: str) -> Tensor:
        own = surgery.tensor(name)
        return own.clone() if own.data_ptr() in shared else own

    state = {name: tensor(name) for name in names if not name.startswith(LAYER_PREFIX)}
    for new_index, old_index in enumerate(surviving_layers(plan)):
        prefix = f"{LAYER_PREFIX}{new_index}."
        device = next(model.model.layers[old_index].parameters()).device
        state |= {name: tensor(name).to(device) for name in names if name.startswith(prefix)}
        if inplace:
            model.model.layers[old_index].to("meta")
    pruned.load_state_dict(state, assign=True)
    pruned.config.dtype = pruned.dtype
    pruned.tie_weights()
    make_buffers(pruned, buffer_device(model))
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.requires_grad_(False).eval()
    return dispatched_like(model, pruned)


def pruned_skeleton(config: Any, plan: PrunePlan, geometry: Geometry) -> nn.Module:
    """Return the pruned model on the meta device, built from the config it is saved with."""
    _check_fits(plan, geometry)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(
            pruned_config(config, plan, geometry),
            dtype=config.dtype,
            attn_implementation=getattr(config, "_attn_implementation", None),
        )
    skeleton.config.architectures = [type(skeleton).__name__]
    return skeleton


def pruned_config(config: Any, plan: PrunePlan, geometry: Geometry) -> Any:
    """Return the config of the pruned model, a stock one if all layers have one shape that a stock class accepts."""
    _check_fits(plan, geometry)
    shapes = [_whole(plan.layers[index].shape, geometry.shapes[index]) for index in surviving_layers(plan)]
    settings = architecture_settings(config)
    settings |= {"num_hidden_layers": len(shapes), "head_dim": geometry.head_dim, "dtype": config.dtype}
    queries, family = geometry.queries_per_kv, family_of(config)
    for key in family.per_layer_lists:
        if settings.get(key):
            settings[key] = _of_surviving_layers(settings[key], plan)
    if "mlp_only_layers" in settings:
        dense = [not geometry.shapes[index].num_experts for index in surviving_layers(plan)]
        settings |= {
            "mlp_only_layers": [index for index in range(len(shapes)) if dense[index]],
            "decoder_sparse_step": 1,
        }
    if plan.writer_bias:
        settings["writer_bias"] = True
    width_key = family.experts.width if family.experts else None
    if {shape.expert_width for shape in shapes if shape.num_experts} <= {settings.get(str(width_key))}:
        width_key = None
    sizes = [stored_keys(config, layer_sizes(shape, queries, width_key, family.width)) for shape in shapes]
    common = {key: value for of_layer in sizes for key, value in of_layer.items()}
    is_uniform = "skip" not in common and all(of_layer.items() <= common.items() for of_layer in sizes)
    if is_uniform and not settings.get("writer_bias"):
        settings |= common
        stock = _stock_type(family, settings)
        if stock == "mistral":
            settings.setdefault("sliding_window", None)  # the default of MistralConfig is 4096
        if stock is not None:
            return AutoConfig.for_model(stock, **settings)
    if "output_router_logits" in settings:
        settings["output_router_logits"] = False  # the loss that it adds is defined for equal numbers of experts
    settings["per_layer_config"] = dict(enumerate(sizes))
    return AutoConfig.for_model(family.pruned_model_type, **settings)


def _whole(kept: LayerShape, dense: LayerShape) -> LayerShape:
    """Return a shape whose experts have their width in the dense model where the plan names none."""
    return replace(kept, expert_width=kept.expert_width or dense.expert_width if kept.num_experts else 0)


def surviving_layers(plan: PrunePlan) -> list[int]:
    """Return the dense indices of the layers that are not removed; the position is the index in the pruned model."""
    return [index for index in range(len(plan.layers)) if index not in plan.removed_layers]


def _of_surviving_layers(values: Sequence[Any], plan: PrunePlan) -> list[Any]:
    """Return a list with one value per layer for the layers that are left.

    A layer without attention takes the value of the next one with it, so that the first slot of a KV cache, by which
    transformers counts tokens, is of a type that some layer has.
    """
    left = surviving_layers(plan)
    attends = [index for index in left if plan.layers[index].kv_groups or plan.layers[index].linear_attention] or left
    return [values[next((other for other in attends if other >= index), attends[-1])] for index in left]


def _stock_type(family: Family, settings: dict[str, Any]) -> str | None:
    """Return the stock architecture that accepts these uniform sizes, None if there is none.

    Our class stays where the stock one fuses projections: adapters for one do not fit the other.
    """
    if family.fused:
        return None
    if not family.heads_divide_hidden or settings["hidden_size"] % settings["num_attention_heads"] == 0:
        return family.model_type
    return None if settings.get("attention_bias") or settings.get("mlp_bias") else family.twin


def _check_fits(plan: PrunePlan, geometry: Geometry) -> None:
    left = surviving_layers(plan)
    differs = len(plan.layers) != geometry.num_layers or any(
        (indices and indices[-1] >= shape.size_of(kind))
        or (kind == "attention" and not geometry.prunes_kv_groups and len(indices) not in (0, shape.size_of(kind)))
        or (kind == "expert_channel" and not _names_channels(keep, shape))
        for keep, shape in zip(plan.layers, geometry.shapes, strict=False)
        for kind, indices in keep.groups.items()
    )
    differs = differs or any(
        plan.layers[index].linear_attention != geometry.shapes[index].linear_attention for index in left
    )
    if differs or not left:
        kept = "at least one" + ("" if geometry.prunes_kv_groups else ", with all KV groups of a block or none")
        raise InputError(
            expected=f"a plan for {geometry.num_layers} layers like {geometry.shapes[0]} that keeps {kept}",
            got=f"a plan for {len(plan.layers)} layers",
            remedy="apply the plan to the model it was made from",
        )


def _names_channels(keep: LayerKeep, dense: LayerShape) -> bool:
    """Return whether a plan says which channels its experts keep, if not all of them; plans in reports do not."""
    if not keep.expert_channels:
        return len(keep.expert_slots) in (0, dense.expert_width)
    return max(channels[-1] for channels in keep.expert_channels) < dense.expert_width
