"""Checkpoints with experts in MXFP4, as GPT-OSS has them: blocks of 32 values of 4 bits that share a scale.

E experts | I inputs | O outputs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from hgsp.models.stored_tensors import StoredTensor

BLOCKS, SCALES = "_blocks", "_scales"


def is_mxfp4(model_config: Any) -> bool:
    """Return whether the weights of a model are stored in MXFP4, by its config."""
    quantisation = getattr(model_config, "quantization_config", None)
    return isinstance(quantisation, Mapping) and quantisation.get("quant_method") == "mxfp4"


def forget_quantisation(model_config: Any) -> None:
    """Remove the quantisation of the files from the config of a model with plain weights."""
    vars(model_config).pop("quantization_config", None)


def quantised_names(stored: Mapping[str, StoredTensor]) -> set[str]:
    """Return the parameters whose blocks [E, O, I/32, 16] and scales [E, O, I/32] are stored, as bytes."""
    return {
        name
        for name in (tensor.removesuffix(BLOCKS) for tensor in stored if tensor.endswith(BLOCKS))
        if name not in stored
        and name + SCALES in stored
        and len(stored[name + BLOCKS].shape) == 4
        and stored[name + BLOCKS].shape[-1] == 16
        and stored[name + BLOCKS].shape[:-1] == stored[name + SCALES].shape
        and stored[name + BLOCKS].is_bytes
        and stored[name + SCALES].is_bytes
    }


def dequantised_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a model that stored ones are: parameters [E, I, O] in bfloat16 instead of their parts."""
    names = quantised_names(stored)
    parts = {name + part for name in names for part in (BLOCKS, SCALES)}
    plain = {name: tensor for name, tensor in stored.items() if name not in parts}
    for name in names:
        blocks = stored[name + BLOCKS]
        num_experts, outputs, groups, _ = blocks.shape
        plain[name] = replace(blocks, shape=(num_experts, 32 * groups, outputs), dtype=torch.bfloat16)
    return plain
