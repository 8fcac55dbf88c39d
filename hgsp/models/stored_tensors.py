"""Tensors in the files of a model by name: their shapes and types, read from headers and compared with the model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hgsp.errors import InputError
from hgsp.models.expert_parts import fused_tensors
from hgsp.models.families import experts_of, family_named
from hgsp.models.fusion import shapes_in_files, stored_wholes
from hgsp.models.mxfp4 import dequantised_tensors, is_mxfp4
from hgsp.models.places import is_bin, is_gguf
from hgsp.models.prunable import beyond_family
from hgsp.models.pruned_bin import read_bin
from hgsp.models.refusals import refusing
from hgsp.models.weight_checks import incomplete, refuse_unplaced_weights
from hgsp.models.weight_files import (
    open_weights,
    pickled_weight_files,
    unreadable,
    weight_files,
    weight_map_of,
    weights_folder,
)

#: Types of weights as safetensors names them; all others hold no plain numbers of a model.
FLOATING = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; ``dtype`` is None for a type that no torch weight has.

    ``is_bytes`` holds for parts of quantised weights, among others.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    is_bytes: bool = False

    def check_type(self, name: str) -> None:
        """Refuse a type that is not floating-point: integers are quantised weights without their scales.

        Raises:
            InputError: with the tensor's name.
        """
        if self.dtype not in FLOATING.values():
            raise InputError(
                expected=f"floating-point weights in {self.file}",
                got=f"{name} of another type",
                remedy="start from the bf16 checkpoint and quantise after pruning",
            )


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model's safetensors files by name; only headers are read.

    Raises:
        InputError: files are missing or broken, a tensor is in two of them, or not in the file that the index says.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        with open_weights(file) as tensors:
            for name in sorted(tensors.keys()):
                if name in found:
                    raise InputError(
                        expected=f"every tensor once in the files of {folder}",
                        got=f"{name} in {found[name].file.name} and {file.name}",
                        remedy="download the model again, or save it again",
                    )
                part = tensors.get_slice(name)
                stored_type = part.get_dtype()
                found[name] = StoredTensor(
                    file, tuple(part.get_shape()), FLOATING.get(stored_type), is_bytes=stored_type == "U8"
                )
    _check_index(folder, found)
    return found


def _check_index(folder: Path, found: Mapping[str, StoredTensor]) -> None:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return
    for name, file in weight_map_of(index).items():
        if name not in found or found[name].file.name != file:
            raise InputError(
                expected=f"{name:.200} in {file}, as {index} says",
                got="no such tensor in that file",
                remedy="check that the download is complete",
            )


def check_stored(name: str | Path, skeleton: Any) -> None:
    """Compare the files of a folder or hub id with the model, before any weight is loaded.

    Models that belong to no family and those quantised otherwise than in MXFP4 are left to transformers, which converts
    their tensors.

    Raises:
        InputError: as ``refuse_other_tensors``, or a file is missing or broken.
    """
    config, family = skeleton.config, family_named(str(skeleton.config.model_type))
    left_quantised = hasattr(config, "quantization_config") and not is_mxfp4(config)
    if family is None or left_quantised or beyond_family(config.to_dict(), family):
        return
    refuse_other_tensors(name, skeleton, _stored_in(name))


def _stored_in(name: str | Path) -> Mapping[str, StoredTensor]:
    """Return the tensors of a folder or hub id by name."""
    folder = weights_folder(name)
    if pickled := pickled_weight_files(folder):
        return dict(item for file in pickled for item in _pickled_tensors(file).items())
    return stored_tensors(folder)


def _pickled_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file of an older checkpoint, without their values.

    Raises:
        InputError: a file that torch did not save, or one that holds more than tensors.
    """
    if not is_bin(file):
        raise unreadable(file, ValueError("a file that torch did not save"))
    with refusing(lambda error: unreadable(file, error)):
        content = torch.load(file, map_location="meta", weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise unreadable(file, ValueError("more than tensors"))
    return {name: StoredTensor(file, tuple(tensor.shape), tensor.dtype) for name, tensor in content.items()}


def refuse_other_tensors(name: str | Path, skeleton: Any, stored: Mapping[str, StoredTensor]) -> list[str]:
    """Return the names of the model's tensors that files hold; a tied head need not be among them.

    Args:
        skeleton: the model on the meta device.

    Raises:
        InputError: tensors that are missing, of the wrong shape, of a type that is not floating-point, or without a
            parameter in the model.
    """
    if is_mxfp4(skeleton.config):
        stored = dequantised_tensors(stored)
    if (names := experts_of(skeleton.config)) is not None:
        stored = fused_tensors(stored, names)
    tied = skeleton.config.tie_word_embeddings
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in skeleton.state_dict().items()
        if key in stored or not (tied and key == "lm_head.weight")
    }
    wanted = shapes_in_files(shapes, stored_wholes(skeleton, stored))
    if missing := sorted(wanted.keys() - stored.keys()):
        raise incomplete(name, f"{len(missing)} missing, such as {missing[0]}")
    for key, shape in wanted.items():
        if stored[key].shape != shape:
            found = list(stored[key].shape)
            raise incomplete(name, f"another shape than config.json says: {key} of shape {found}, not {list(shape)}")
        stored[key].check_type(key)
    refuse_unplaced_weights(name, stored.keys() - wanted.keys(), skeleton.config)
    return list(shapes)


def stored_dtype(name: str | Path, configured: torch.dtype | None) -> torch.dtype:
    """Return the dtype that a model is stored in: that of its config, else of most of its values.

    De-quantised weights of a .gguf file count as bfloat16.

    Args:
        configured: the dtype of the config, None if it names none.

    Raises:
        InputError: the files cannot be read.
    """
    if is_gguf(name):
        return torch.bfloat16
    if configured is not None:
        return configured
    if is_bin(name):
        state = read_bin(Path(name))["state_dict"].values()
        tensors: list[tuple[torch.dtype | None, int]] = [(tensor.dtype, tensor.numel()) for tensor in state]
    else:
        tensors = [(tensor.dtype, prod(tensor.shape)) for tensor in _stored_in(name).values()]
    counts: Counter[torch.dtype] = Counter()
    for dtype, num_values in tensors:
        if dtype is not None and dtype in FLOATING.values():
            counts[dtype] += num_values
    return counts.most_common(1)[0][0] if counts else torch.float32
