"""The tensors that a checkpoint must hold, and their copies in an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hgsp.exports.padding import PaddedTensor, Part
from hgsp.exports.source import ExportSource
from hgsp.models.configs import describe
from hgsp.models.families import check_prunable
from hgsp.models.stored_tensors import refuse_other_tensors

Tensors = Mapping[str, PaddedTensor]


def skeleton_of(source: ExportSource) -> Any:
    """Return the model on the meta device, after a check that the files hold exactly its tensors.

    Raises:
        InputError: a model that transformers cannot build, sliding-window attention, or tensors that are missing, of
            another shape, or without a parameter in the model.
    """
    skeleton = describe(source.folder, check_prunable).skeleton
    refuse_other_tensors(source.folder, skeleton, source.tensors.tensors)
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
