"""Buffers that checkpoints do not store: rotary frequencies and the scale of the embedding."""

from __future__ import annotations

from typing import Any

import torch

from hgsp.models.families import family_of


def make_buffers(model: Any, device: torch.device | str) -> None:
    """Compute the buffers of a model that was built on the meta device; frequencies are float32."""
    family, decoder = family_of(model.config), model.model
    if decoder.rotary_emb is not None:
        decoder.rotary_emb = type(decoder.rotary_emb)(config=model.config).to(device)
    if family.scales_embedding:
        embedding = model.get_submodule(family.embedding)
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale, device=device)


def buffer_device(model: Any) -> torch.device:
    """Return the device of a model's rotary frequencies; without any, that of its embedding."""
    rotary = model.model.rotary_emb
    found: torch.Tensor = model.get_input_embeddings().weight if rotary is None else next(rotary.buffers())
    return found.device
