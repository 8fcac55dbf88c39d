"""From what the user names (hub id, folder, .gguf file) to a dense model and tokenizer, refused early."""

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
from hgsp.models.families import check_prunable
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.models.gguf_files import gguf_config, load_gguf
from hgsp.models.weight_checks import (
    HUB_ID,
    incomplete,
    refuse_adapter,
    refuse_incomplete_weights,
    refuse_missing_weights,
    refuse_own_head,
)
from hgsp.models.weight_files import refusal_of_files

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ModelSource:
    """A prunable model that has been looked at but not loaded. ``skeleton`` is the model without data (meta device)."""

    name: str
    config: Any
    skeleton: nn.Module
    geometry: Geometry
    warnings: tuple[str, ...]

    @property
    def is_gguf(self) -> bool:
        return self.name.endswith(".gguf")


def inspect_model(name: str, dtype: str | None = None) -> ModelSource:
    """Read config and geometry; no weights are touched (a .gguf file's header is read).

    Args:
        name: hub id, folder or .gguf file.
        dtype: name of the one that weights will be used in; one that cannot hold them is a warning.

    Raises:
        InputError: not found, unsupported architecture, sliding window, mixture of experts, quantised weights.
    """
    raw, config = _read_config(name)
    warnings = []
    if not name.endswith(".gguf") and raw.get("num_key_value_heads") is None:
        warnings.append("config.json has no num_key_value_heads: taken as multi-head attention (GQA ratio 1)")
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
    """Refuse sequences in which the model would see positions it does not have; None fits.

    Raises:
        InputError: they are longer than its positions.
    """
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and seq_len is not None and seq_len > limit:
        raise InputError(
            expected=f"{flag} of at most {limit}, the model's positions", got=str(seq_len), remedy="use a smaller one"
        )


def load_dense(source: ModelSource, dtype: str, device: str | torch.device | None) -> Any:
    """The whole model in memory, eval mode. ``"auto"`` spreads it over what accelerate finds; None is the CPU.

    Raises:
        InputError: the files are missing or do not hold the model's weights.
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
    """``AutoModelForCausalLM.from_pretrained`` where no weight is ever made up and none is dropped.

    Raises:
        InputError: an adapter is in the folder, a file is broken, or a weight is missing, not in memory, not what
            config.json says, or has no place in the model.
    """
    refuse_adapter(name)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
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
    """The device named, the CPU if none is."""
    return torch.device("cpu" if device in (None, "auto") else device)  # type: ignore[arg-type]


def _read_config(name: str) -> tuple[dict[str, Any], Any]:
    """The raw config.json and the config object; what cannot be pruned is refused before its class is built."""
    try:
        if name.endswith(".gguf"):
            config = gguf_config(_existing(Path(name)))
            raw = config.to_dict()
            check_prunable(raw)
            return raw, config
        if not HUB_ID.fullmatch(name):
            _existing(Path(name))
        refuse_adapter(name)
        raw, _ = PretrainedConfig.get_config_dict(name)
        if not raw:
            raise OSError("no config.json")
        check_prunable(raw)
        config = AutoConfig.from_pretrained(name)
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
