"""The file ``pruned_model.bin``, read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hgsp.errors import InputError

BIN_NAME = "pruned_model.bin"
BIN_FORMAT = "hgsp-checkpoint-1"


def read_bin(path: Path) -> dict[str, Any]:
    """Return the content of a .bin, its tensors mapped from the file.

    Raises:
        InputError: no such file, or one that holds more than tensors and plain values.
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
    return content
