"""Dense models by hub id, folder or .gguf file, checked before their weights are loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from hgsp.errors import InputError, one_line
from hgsp.models.dtypes import DTYPE_NAMES
from hgsp.models.families import check_prunable, family_of
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.models.gguf_files import gguf_config, load_gguf
from hgsp.models.hub import HUB_ID, with_revision
from hgsp.models.weight_checks import (
    incomplete,
    refuse_adapter,
    refuse_incomplete_weights,
    refuse_missing_weights,
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
        return self.name.endswith(".gguf")


def inspect_model(name: str, dtype: str | None = None) -> ModelSource:
    """Read config and geometry without weights; of a .gguf file, the header.

    Args:
        name: hub id (also ``id@revision``), folder or .gguf file.
        dtype: key of ``DTYPES`` that the weights will be used in; float16 for bfloat16 weights is a warning.

    Raises:
        InputError: not found, or a model that cannot be pruned (see ``check_prunable``).
    """
    raw, config = _read_config(name)
    warnings = []
    if not name.endswith(".gguf") and raw.get("num_key_value_heads") is None:
        warnings.append("config.json has no num_key_value_heads: taken as multi-head attention (GQA ratio 1)")
    if not family_of(config).prunes_kv_groups:
        warnings.append(
            "queries and keys are normalised over all heads, so that removing one would change the others: KV groups "
            "stay, MLP channels are removed"
        )
    if dtype == "float16" and config.dtype == torch.bfloat16:
        warnings.append("weights stored in bfloat16 are used in float16, whose range is smaller: values may overflow")
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    skeleton.tie_weights()
    if any(layer.self_attn is None or layer.mlp is None for layer in skeleton.model.layers):
        raise InputError(
            expected="attention and MLP in every layer",
            got="a pruned model with layers that lack one",
            remedy="start from the dense model",
        )
    return ModelSource(name, config, skeleton, geometry_of(skeleton), tuple(warnings))


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
        InputError: files are missing or do not hold the model's weights.
    """
    kwargs: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if device == "auto":
        kwargs["device_map"] = "auto"
    if source.is_gguf:
        return load_gguf(Path(source.name), DTYPES[dtype]).to(single_device(device))
    try:
        model = load_complete(source.name, **kwargs)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            expected=f"weights of '{source.name}'", got=one_line(error), remedy="check that the download is complete"
        ) from error
    return model.eval() if device == "auto" else model.to(single_device(device)).eval()


def load_complete(name: str | Path, **kwargs: Any) -> Any:
    """Call ``AutoModelForCausalLM.from_pretrained`` and refuse missing and unused weights.

    Raises:
        InputError: an adapter is in the folder, a file is broken, or a weight is missing, not in memory, of the wrong
            shape, or has no parameter in the model.
    """
    refuse_adapter(name, ask_hub=True)
    try:
        plain, revision = with_revision(name)
        model, report = AutoModelForCausalLM.from_pretrained(plain, output_loading_info=True, **revision, **kwargs)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise refusal_of_files(Path(name), error) from error
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):
            raise refusal_of_files(Path(name), error) from error
        if "mismatch" not in str(error):
            raise
        raise incomplete(name, "some of another shape than config.json says") from error
    refuse_incomplete_weights(name, report, model.config)
    refuse_missing_weights(model)
    refuse_own_head(model)
    return model


def single_device(device: str | torch.device | None) -> torch.device:
    """Return the device, the CPU for None and ``"auto"``."""
    return torch.device("cpu" if device in (None, "auto") else device)  # type: ignore[arg-type]


def _read_config(name: str) -> tuple[dict[str, Any], Any]:
    """Return the raw config.json and the config object; models that cannot be pruned are refused before it is built."""
    try:
        if name.endswith(".gguf"):
            config = gguf_config(_existing(Path(name)))
            raw = config.to_dict()
            check_prunable(raw)
            return raw, config
        if not HUB_ID.fullmatch(name):
            _existing(Path(name))
        refuse_adapter(name)
        plain, revision = with_revision(name)
        raw, _ = PretrainedConfig.get_config_dict(plain, **revision)
        if not raw:
            raise OSError("no config.json")
        check_prunable(raw)
        config = AutoConfig.from_pretrained(plain, **revision)
        check_prunable(config.to_dict())  # with the class's own defaults: Mistral's has a sliding window
        return raw, config
    except InputError:
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(
            expected="a model as hub id, local folder with config.json, or .gguf file",
            got=f"'{name}' ({one_line(error)})",
            remedy="check the path, or log in and go online for a hub id",
        ) from error


def _existing(path: Path) -> Path:
    if not path.exists():
        raise OSError("no such file or folder")
    return path
