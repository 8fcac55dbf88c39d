"""The file ``pruned_model.bin``, read without executing anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from hgsp.console.json_files import json_object
from hgsp.errors import InputError, one_line

BIN_NAME = "pruned_model.bin"
BIN_FORMAT = "hgsp-checkpoint-1"
#: Names of files in the folder itself, or one folder below it.
_FILE_NAME = re.compile(r"(?!\.)[\w\-. ]{1,100}(/(?!\.)[\w\-. ]{1,100})?")


class BinContent(TypedDict):
    """The content of a .bin: JSON texts, the bytes of the tokenizer's files by name, and the weights by name."""

    format: str
    config: str
    generation_config: str | None
    tokenizer_files: dict[str, Tensor]
    state_dict: dict[str, Tensor]


def read_bin(path: Path) -> BinContent:
    """Return the content of a .bin, its tensors mapped from the file.

    Raises:
        InputError: no such file, or one that holds more than tensors and plain values, or others; names the entry.
    """
    if not path.is_file():
        raise InputError(expected="a pruned_model.bin", got=f"no file {path}", remedy="check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a pickle can name any exception; nothing was executed
        raise InputError(
            expected="a file of tensors and plain values",
            got=f"{path}, which torch refuses to load safely ({type(error).__name__})",
            remedy="pickled objects are never executed; load the model where it was made and save its state_dict",
        ) from error
    if not isinstance(content, dict) or content.get("format") != BIN_FORMAT:
        raise InputError(
            expected=f"a {BIN_NAME} written by this tool",
            got=str(path),
            remedy="pass the folder of a Hugging Face model",
        )
    try:
        _check_texts(content)
        for name, tensor in _tensors_of(content, "tokenizer_files").items():
            _check_tokenizer_file(name, tensor)
        weights = _tensors_of(content, "state_dict")
        if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > path.stat().st_size:
            raise ValueError("state_dict has more values than the file")
    except ValueError as error:
        raise InputError(
            expected=f"a {BIN_NAME} written by this tool",
            got=f"{path} ({one_line(error)})",
            remedy="save the model again, or pass its folder",
        ) from error
    return cast(BinContent, content)


def _check_texts(content: dict[str, Any]) -> None:
    for name, optional in (("config", False), ("generation_config", True)):
        text = content.get(name)
        if not isinstance(text, str) and not (optional and text is None and name in content):
            raise ValueError(f"{name} must be JSON text, not {type(text).__name__}")
        if text is not None:
            try:
                json_object(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


def _tensors_of(content: dict[str, Any], entry: str) -> dict[str, Tensor]:
    """Return an entry that maps names to plain tensors.

    Raises:
        ValueError: it does not.
    """
    tensors = content.get(entry)
    if not isinstance(tensors, dict):
        raise ValueError(f"{entry} must map names to tensors, not {type(tensors).__name__}")
    for name, tensor in tensors.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not isinstance(name, str) or not plain or tensor.is_quantized or not tensor.is_contiguous():
            raise ValueError(f"{entry} has {name!a:.80}, which is no plain tensor")
    return tensors


def _check_tokenizer_file(name: str, tensor: Tensor) -> None:
    """Refuse a file whose name leaves the folder, or whose content is no bytes."""
    if _FILE_NAME.fullmatch(name) is None:
        raise ValueError(f"tokenizer_files has {name!a:.80}, which is no name of a tokenizer's file")
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError(f"tokenizer_files has {name} of {tensor.dtype} {list(tensor.shape)}")
