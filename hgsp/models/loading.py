"""Dense models by hub id, folder or .gguf file, checked before their weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Mxfp4Config

from hgsp.errors import InputError
from hgsp.models.configs import describe
from hgsp.models.dtypes import DTYPE_NAMES
from hgsp.models.families import family_of
from hgsp.models.fusion import unfused
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.models.gguf_files import load_gguf
from hgsp.models.hub import with_revision
from hgsp.models.mxfp4 import is_mxfp4
from hgsp.models.places import is_bin, is_gguf
from hgsp.models.prunable import check_prunable
from hgsp.models.refusals import refusing
from hgsp.models.stored_tensors import check_stored
from hgsp.models.weight_checks import (
    refuse_adapter,
    refuse_incomplete_weights,
    refuse_missing_weights,
    refuse_not_finite,
    refuse_own_head,
)
from hgsp.models.weight_files import refusal_of_files

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True)
class ModelSource:
    """A prunable model whose weights are not loaded; ``skeleton`` is the model on the meta device."""

    name: str
    config: Any
    skeleton: nn.Module
    geometry: Geometry
    warnings: tuple[str, ...]

    @property
    def is_gguf(self) -> bool:
        return is_gguf(self.name)


def inspect_model(name: str, dtype: str | None = None, *, dequantize: bool = False) -> ModelSource:
    """Read config and geometry without weights; of a .gguf file, the header.

    Args:
        name: hub id (also ``id@revision``), folder or .gguf file.
        dtype: key of ``DTYPES`` that the weights will be used in; float16 for bfloat16 weights is a warning.
        dequantize: accept a checkpoint in MXFP4, whose weights are then used in ``dtype``.

    Raises:
        InputError: not found, or a model that cannot be pruned (see ``check_prunable``).
    """
    if is_bin(name):
        raise InputError(
            expected="a model as hub id, folder or .gguf file",
            got=f"'{name}', a single file of weights",
            remedy="pass the folder that it was written into",
        )
    found = describe(name, partial(check_prunable, dequantize=dequantize))
    warnings = []
    if not is_gguf(name) and found.raw.get("num_key_value_heads") is None:
        warnings.append("config.json has no num_key_value_heads: taken as multi-head attention (GQA ratio 1)")
    if not family_of(found.config).prunes_kv_groups:
        warnings.append(
            "queries and keys are normalised over all heads, so that removing one would change the others: KV groups "
            "stay, MLP channels are removed"
        )
    if dtype == "float16" and found.config.dtype == torch.bfloat16:
        warnings.append("weights stored in bfloat16 are used in float16, whose range is smaller: values may overflow")
    shapes = geometry_of(found.skeleton).shapes
    if any(not (shape.num_kv_groups or shape.linear_attention) or not shape.block_sizes[1] for shape in shapes):
        raise InputError(
            expected="attention and MLP in every layer",
            got="a pruned model with layers that lack one",
            remedy="start from the dense model",
        )
    return ModelSource(name, found.config, found.skeleton, geometry_of(found.skeleton), tuple(warnings))


def check_positions(model_config: Any, flag: str, seq_len: int | None) -> None:
    """Refuse sequences longer than the model's ``max_position_embeddings``; None is accepted.

    Raises:
        InputError: with the name of the flag.
    """
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and seq_len is not None and seq_len > limit:
        raise InputError(
            expected=f"{flag} of at most {limit}, the model's positions", got=str(seq_len), remedy="use a smaller one"
        )


def load_dense(source: ModelSource, dtype: str, device: str | torch.device | None) -> Any:
    """Load all weights, in eval mode.

    Args:
        dtype: key of ``DTYPES``.
        device: None is the CPU; ``"auto"`` spreads the model over the devices that accelerate finds.

    Raises:
        InputError: an adapter is beside the weights, files are missing or do not hold the model's weights, or a weight
            is not finite.
    """
    if source.is_gguf:
        return load_gguf(Path(source.name), DTYPES[dtype]).to(single_device(device))
    refuse_adapter(source.name, ask_hub=True)
    spread = {"device_map": "auto"} if device == "auto" else {}
    plain = {"quantization_config": Mxfp4Config(dequantize=True)} if is_mxfp4(source.config) else {}
    model = load_complete(source.name, source.config, source.skeleton, dtype=DTYPES[dtype], **spread, **plain)
    for parameter in model.parameters():  # transformers keeps norms of GPT-OSS in float32 beside float16
        parameter.data = parameter.data.to(DTYPES[dtype])
    return model.eval() if spread else model.to(single_device(device)).eval()


def load_complete(name: str | Path, config: Any, skeleton: Any, **kwargs: Any) -> Any:
    """Call ``AutoModelForCausalLM.from_pretrained`` with a config that has been read already.

    Args:
        skeleton: the model on the meta device; it says which tensors the files must hold.

    Returns:
        The model, unfused where its class fuses projections.

    Raises:
        InputError: a file is broken, or a weight is missing, not in memory, not finite, of the wrong shape or type, or
            has no parameter in the model.
    """
    with refusing(lambda error: refusal_of_files(Path(name), error)):
        check_stored(name, skeleton)
        plain, revision = with_revision(name)
        model, report = AutoModelForCausalLM.from_pretrained(
            plain, config=config, output_loading_info=True, trust_remote_code=False, **revision, **kwargs
        )
    refuse_incomplete_weights(name, report, model.config)
    refuse_missing_weights(model)
    refuse_own_head(model)
    refuse_not_finite(f"'{name}'", model.named_parameters())
    return unfused(model)


def single_device(device: str | torch.device | None) -> torch.device:
    """Return the device, the CPU for None and ``"auto"``."""
    return torch.device("cpu" if device in (None, "auto") else device)  # type: ignore[arg-type]
