"""Families whose stock classes compute several projections in one Linear; our class has each of them.

The rows of a fused matrix are those of its parts, one part after the other; with a single part, it is a matrix of
another name. Dense models are unfused when they are loaded, whole or layer by layer, and fused again when they are
exported as the stock class.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hgsp.models.buffers import buffer_device, make_buffers
from hgsp.models.dispatch import dispatched_like
from hgsp.models.families import LAYER_PREFIX, family_named, is_pruned_type
from hgsp.models.layer_sizes import architecture_settings
from hgsp.models.prunable import beyond_family


def unfused(model: Any) -> Any:
    """Return a dense model as our class with every projection, on the same memory; itself if nothing is fused.

    Quantised models, and those with parts that their family lacks, are not for pruning and stay as they are too.

    Args:
        model: a causal LM of any family; its tensors may be on the meta device.
    """
    family = family_named(str(model.config.model_type))
    if family is None or not family.fused or is_pruned_type(model.config.model_type):
        return model
    if hasattr(model.config, "quantization_config") or beyond_family(model.config.to_dict(), family):
        return model
    with torch.device("meta"):
        own = AutoModelForCausalLM.from_config(
            _unfused_config(model.config, family.pruned_model_type),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
        )
    own.config.architectures, own.config.name_or_path = [type(own).__name__], model.config.name_or_path
    state = model.state_dict()
    for whole, parts in wholes_of(own).items():
        sizes = [own.get_parameter(part).shape[0] for part in parts]
        state |= zip(parts, state.pop(whole).split(sizes), strict=True)
    own.load_state_dict(state, assign=True)
    own.tie_weights()
    make_buffers(own, buffer_device(model))
    own.generation_config = copy.deepcopy(model.generation_config)
    return dispatched_like(model, own.train(model.training))


def _unfused_config(config: Any, model_type: str) -> Any:
    """Return the config of our class for a dense model: the head dimension no longer follows from other sizes."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    settings = {**architecture_settings(config), "head_dim": head_dim, "dtype": config.dtype}
    return AutoConfig.for_model(model_type, **settings, per_layer_config={})


def wholes_of(model: Any) -> dict[str, tuple[str, ...]]:
    """Return the matrices that the stock class fuses, each with the parameters of our class that are its parts.

    Args:
        model: as our class, or of a family without such matrices, which has none.
    """
    family = family_named(str(model.config.model_type))
    found: dict[str, tuple[str, ...]] = {}
    if family is None or not family.fused:
        return found
    for index, layer in enumerate(model.model.layers):
        own = {name for name, _ in layer.named_parameters()}
        for whole, parts in family.fused.items():
            if own.issuperset(f"{part}.weight" for part in parts):
                found[_in_layer(index, whole)] = tuple(_in_layer(index, part) for part in parts)
    return found


def stored_wholes(skeleton: Any, stored: Container[str]) -> dict[str, tuple[str, ...]]:
    """Return ``wholes_of`` a model whose files hold such matrices; our own checkpoints hold none.

    Args:
        stored: names of the tensors in the files.
    """
    wholes = wholes_of(skeleton)
    return wholes if any(whole in stored for whole in wholes) else {}


def _in_layer(index: int, linear: str) -> str:
    return f"{LAYER_PREFIX}{index}.{linear}.weight"


def rows_of_parts(
    wholes: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, range]]:
    """Return the fused matrix that every part is in, and its rows there.

    Args:
        wholes: as ``stored_wholes`` returns them.
        shapes: of the parts.
    """
    found = {}
    for whole, parts in wholes.items():
        edges = accumulate((shapes[part][0] for part in parts), initial=0)
        for part, (start, stop) in zip(parts, pairwise(edges), strict=True):
            found[part] = whole, range(start, stop)
    return found


def shapes_in_files(
    shapes: Mapping[str, tuple[int, ...]], wholes: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors in its files, from those of its parameters."""
    whole_of = {part: whole for whole, parts in wholes.items() for part in parts}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name in whole_of:
            whole = whole_of[name]
            shape = (found.get(whole, (0,))[0] + shape[0], *shape[1:])
        found[whole_of.get(name, name)] = shape
    return found
