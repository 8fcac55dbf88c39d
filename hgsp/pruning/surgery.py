"""Makes a model smaller according to a plan: new tensors, new config, never a mask.

K kv groups | R query heads per kv group | D head dim | M mlp width
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hgsp.errors import InputError
from hgsp.models.decoder import refuse_missing_weights
from hgsp.models.families import (
    ATTENTION_INPUTS,
    ATTENTION_OUTPUT,
    LAYER_PREFIX,
    LINEARS,
    MLP_INPUTS,
    MLP_OUTPUT,
    family_of,
)
from hgsp.models.geometry import Geometry, LayerShape, geometry_of
from hgsp.models.loading import refuse_own_head
from hgsp.pruning.plan import LayerKeep, PrunePlan

#: Config keys that describe the dense checkpoint rather than the architecture.
_STALE_KEYS = ("model_type", "architectures", "auto_map", "per_layer_config", "transformers_version", "_name_or_path")


class Surgery:
    """The tensors of a pruned model by name, cut from the dense model's when asked for.

    Args:
        model: the dense model; its weights may be on the meta device if ``read`` gives them.
        read: returns a dense tensor by its name; default: the parameters of ``model``.
        replaced: tensors of the pruned model, by name, that are taken instead of being cut (reconstructed weights).

    ``skeleton`` is the pruned model without data (meta device), built from the config it will be saved with.

    Raises:
        InputError: the plan was made for a model of another size.
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
        self._cuts = {
            new_index: (old_index, _cuts(plan.layers[old_index], geometry))
            for new_index, old_index in enumerate(surviving_layers(plan))
        }
        own = {ATTENTION_OUTPUT: "attention_bias", MLP_OUTPUT: "mlp_bias"}
        #: Biases that the plan asks for and the dense model has not: zero unless replaced.
        adds_biases = plan.writer_bias and not getattr(config, "writer_bias", False)
        self.added_biases = [
            f"{writer}.bias" for writer, key in own.items() if adds_biases and not getattr(config, key, False)
        ]
        self._new_index_of = {old_index: new_index for new_index, (old_index, _) in self._cuts.items()}

    def replacing(self, tensors: Mapping[str, Tensor]) -> Surgery:
        """Return the same surgery with these tensors of the pruned model in place of those it would cut."""
        other = copy.copy(self)
        other.replaced = tensors
        return other

    def tensor(self, name: str) -> Tensor:
        """One tensor of the pruned model, a contiguous copy where it was cut."""
        if name in self.replaced:
            return self.replaced[name]
        if not name.startswith(LAYER_PREFIX):
            return self._read(name)
        if any(name.endswith(f".{bias}") for bias in self.added_biases):
            return torch.zeros(self.skeleton.config.hidden_size, dtype=self.skeleton.dtype)
        new_index, _, inner = name.removeprefix(LAYER_PREFIX).partition(".")
        old_index, cuts = self._cuts[int(new_index)]
        tensor = self._read(f"{LAYER_PREFIX}{old_index}.{inner}")
        dim, indices = cuts.get(inner.rpartition(".")[0], (None, None))
        if dim is None or indices is None or dim >= tensor.ndim:  # norms, and a writer's bias, which has no columns
            return tensor
        return tensor.index_select(dim, indices.to(tensor.device))

    def widened(self, old_index: int, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The Linears of one dense layer as the plan leaves them, in their dense shapes: what is dropped is zero.

        ``dense`` gives the layer's tensors by their names in it. A layer or block that is gone is zero throughout;
        biases that the plan adds are there too.
        """
        new_index = self._new_index_of.get(old_index)
        own = {name: tensor for name, tensor in dense.items() if name.rpartition(".")[0] in LINEARS}
        own |= {name: dense[name.replace(".bias", ".weight")][:, 0] * 0 for name in self.added_biases}
        return {name: self._widened(new_index, name, tensor) for name, tensor in own.items()}

    def _widened(self, new_index: int | None, name: str, dense: Tensor) -> Tensor:
        linear = name.rpartition(".")[0]
        wide = torch.zeros_like(dense)
        if new_index is None:
            return wide
        dim, indices = self._cuts[new_index][1][linear]
        if not len(indices):
            return wide
        indices = indices.to(dense.device)
        kept = self.replaced.get(f"{LAYER_PREFIX}{new_index}.{name}")
        if dim >= dense.ndim:  # a writer's bias has no columns
            return dense if kept is None else kept.to(dense)
        return wide.index_copy_(dim, indices, dense.index_select(dim, indices) if kept is None else kept.to(dense))


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
        found = surgery.tensor(name)
        return found.clone() if found.data_ptr() in shared else found

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
    rotary = model.model.rotary_emb
    pruned.model.rotary_emb = type(rotary)(config=pruned.config).to(rotary.inv_freq.device)
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.requires_grad_(False).eval()
    return _dispatched_like(model, pruned)


def _dispatched_like(model: Any, pruned: Any) -> Any:
    """Let accelerate move inputs between the devices of the pruned model if it did so for the dense one."""
    if not any(hasattr(module, "_hf_hook") for module in model.modules()):
        return pruned
    from accelerate import dispatch_model

    family = family_of(pruned.config)
    parts = {family.head: pruned.get_submodule(family.head)}
    parts |= {f"model.{name}": part for name, part in pruned.model.named_children() if name != "layers"}
    parts |= {f"{LAYER_PREFIX}{index}": layer for index, layer in enumerate(pruned.model.layers)}
    placed = {name: next(chain(part.parameters(), part.buffers())).device for name, part in parts.items()}
    return dispatch_model(
        pruned,
        device_map=placed,
        skip_keys=pruned._skip_keys_device_placement,
        main_device=placed[family.embedding],
        force_hooks=True,
    )


def pruned_skeleton(config: Any, plan: PrunePlan, geometry: Geometry) -> nn.Module:
    """The pruned model without data (meta device), built from the config it will be saved with."""
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
    """The config of the pruned model: stock where all layers are alike and the stock class takes the sizes."""
    _check_fits(plan, geometry)
    shapes = [plan.layers[index].shape for index in surviving_layers(plan)]
    settings = {key: value for key, value in config.to_dict().items() if key not in _STALE_KEYS}
    settings |= {"num_hidden_layers": len(shapes), "head_dim": geometry.head_dim, "dtype": config.dtype}
    if settings.get("layer_types"):
        settings["layer_types"] = [settings["layer_types"][index] for index in surviving_layers(plan)]
    queries = geometry.queries_per_kv
    family = family_of(config)
    if plan.writer_bias:
        settings["writer_bias"] = True
    is_uniform = len(set(shapes)) == 1 and shapes[0].num_kv_groups and shapes[0].mlp_width
    if is_uniform and not settings.get("writer_bias"):
        settings |= _sizes(shapes[0], queries)
        stock = _stock_type(family.model_type, settings)
        if stock == "mistral":
            settings.setdefault("sliding_window", None)  # its config class would bring one
        if stock is not None:
            return AutoConfig.for_model(stock, **settings)
    settings["per_layer_config"] = {index: _sizes(shape, queries) for index, shape in enumerate(shapes)}
    return AutoConfig.for_model(family.pruned_model_type, **settings)


def surviving_layers(plan: PrunePlan) -> list[int]:
    """Dense indices of the layers that stay, in order; the position is the new index."""
    return [index for index in range(len(plan.layers)) if index not in plan.removed_layers]


def _cuts(keep: LayerKeep, geometry: Geometry) -> dict[str, tuple[int, Tensor]]:
    """Which dimension of each Linear is cut, and the indices it keeps: rows of readers, columns of writers."""
    per_kv, per_query = geometry.head_dim, geometry.columns_per_group("attention")
    query_rows, kv_rows = _spans(keep.kv_groups, per_query), _spans(keep.kv_groups, per_kv)
    channels = torch.tensor(keep.mlp_channels, dtype=torch.int64)
    query, key, value = ATTENTION_INPUTS
    return {
        query: (0, query_rows),
        key: (0, kv_rows),
        value: (0, kv_rows),
        ATTENTION_OUTPUT: (1, query_rows),
        **dict.fromkeys(MLP_INPUTS, (0, channels)),
        MLP_OUTPUT: (1, channels),
    }


def _spans(groups: tuple[int, ...], width: int) -> Tensor:
    """Indices of ``width`` contiguous rows per group: group k owns k*width ... (k+1)*width-1."""
    starts = torch.tensor(groups, dtype=torch.int64).view(-1, 1) * width
    return (starts + torch.arange(width)).flatten()


def _sizes(shape: LayerShape, queries_per_kv: int) -> dict[str, Any]:
    """What a config says about one layer of this shape."""
    sizes: dict[str, Any] = {}
    if shape.num_kv_groups:
        sizes["num_attention_heads"] = shape.num_kv_groups * queries_per_kv
        sizes["num_key_value_heads"] = shape.num_kv_groups
    if shape.mlp_width:
        sizes["intermediate_size"] = shape.mlp_width
    skipped = [block for block, size in (("attention", shape.num_kv_groups), ("mlp", shape.mlp_width)) if not size]
    return sizes | ({"skip": skipped} if skipped else {})


def _stock_type(model_type: str, settings: dict[str, Any]) -> str | None:
    """The stock architecture that takes these uniform sizes.

    ``LlamaConfig`` refuses head counts that do not divide the hidden size even when head_dim is given; Mistral computes
    the same and does not, but has no biases.
    """
    if model_type != "llama" or settings["hidden_size"] % settings["num_attention_heads"] == 0:
        return model_type
    return None if settings.get("attention_bias") or settings.get("mlp_bias") else "mistral"


def _check_fits(plan: PrunePlan, geometry: Geometry) -> None:
    wrong = len(plan.layers) != geometry.num_layers or any(
        (keep.kv_groups and keep.kv_groups[-1] >= shape.num_kv_groups)
        or (keep.mlp_channels and keep.mlp_channels[-1] >= shape.mlp_width)
        for keep, shape in zip(plan.layers, geometry.shapes, strict=False)
    )
    if wrong or not surviving_layers(plan):
        raise InputError(
            expected=f"a plan for {geometry.num_layers} layers like {geometry.shapes[0]} that keeps at least one",
            got=f"a plan for {len(plan.layers)} layers",
            remedy="apply the plan to the model it was made from",
        )
