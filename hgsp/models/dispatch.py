"""Models that accelerate has spread over several devices."""

from __future__ import annotations

from itertools import chain
from typing import Any

from hgsp.models.families import LAYER_PREFIX, family_of


def dispatched_like(model: Any, other: Any) -> Any:
    """Let accelerate move inputs between the devices of another model if it does so for the first; return the other."""
    if not any(hasattr(module, "_hf_hook") for module in model.modules()):
        return other
    from accelerate import dispatch_model

    family = family_of(other.config)
    parts = {family.head: other.get_submodule(family.head)}
    parts |= {f"model.{name}": part for name, part in other.model.named_children() if name != "layers"}
    parts |= {f"{LAYER_PREFIX}{index}": layer for index, layer in enumerate(other.model.layers)}
    placed = {name: next(chain(part.parameters(), part.buffers())).device for name, part in parts.items()}
    return dispatch_model(
        other,
        device_map=placed,
        skip_keys=other._skip_keys_device_placement,
        main_device=placed[family.embedding],
        force_hooks=True,
    )
