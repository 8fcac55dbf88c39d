"""The tensors that a checkpoint must hold, and their copies in an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hgsp.errors import InputError, one_line
from hgsp.exports.padding import PaddedTensor, Part
from hgsp.exports.source import ExportSource
from hgsp.models.families import check_prunable
from hgsp.models.weight_checks import incomplete, refuse_unplaced_weights

Tensors = Mapping[str, PaddedTensor]


def skeleton_of(source: ExportSource) -> Any:
    """Return the model on the meta device, after a check that the files hold exactly its tensors.

    Raises:
        InputError: a model that transformers cannot build, sliding-window attention, or tensors that are missing, of
            another shape, or without a parameter in the model.
    """
    try:
        config = AutoConfig.from_pretrained(source.folder)
        check_prunable(config.to_dict())
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            expected=f"a model that transformers can build from {source.folder / 'config.json'}",
            got=one_line(error),
            remedy="check the file",
        ) from error
    skeleton.tie_weights()
    shapes, stored = shapes_of(skeleton), source.tensors.shapes
    if missing := sorted(shapes.keys() - stored.keys()):
        raise incomplete(source.folder, f"{len(missing)} missing, such as {missing[0]}")
    if wrong := [name for name, shape in shapes.items() if stored[name] != shape]:
        raise incomplete(source.folder, f"{wrong[0]} of shape {list(stored[wrong[0]])}")
    refuse_unplaced_weights(source.folder, stored.keys() - shapes.keys(), config)
    return skeleton


def shapes_of(skeleton: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that are stored for a model: without a head that is tied to the embedding."""
    tied = skeleton.config.tie_word_embeddings
    return {
        name: tuple(tensor.shape)
        for name, tensor in skeleton.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def copied(name: str, shape: tuple[int, ...]) -> PaddedTensor:
    """Return a tensor of the export that is one of the checkpoint's, unchanged."""
    return PaddedTensor(shape, (Part(name, 0, range(shape[0])),))


def num_params(tensors: Tensors) -> int:
    return sum(tensor.numel for tensor in tensors.values())
