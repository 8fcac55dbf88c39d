"""A GGUF file written in pieces: its header first, then the data of one tensor after another, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from hgsp.console.disk import check_free_space
from hgsp.errors import InputError
from hgsp.exports.gguf_layout import GgufTensor, read_tensor
from hgsp.exports.source import ExportSource

#: Values that are converted at once: 64 MB in float32.
CHUNK_VALUES = 2**24
#: Values that share a scale in Q8_0, along a row.
Q8_0_BLOCK = 32

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def types_of(tensors: Iterable[GgufTensor], gguf_type: str) -> dict[str, str]:
    """Return the type of every tensor by name: F32 for vectors, F16 for rows that Q8_0 cannot divide into blocks."""

    def type_of(tensor: GgufTensor) -> str:
        if len(tensor.shape) == 1:
            return "F32"
        return "F16" if gguf_type == "q8_0" and tensor.shape[-1] % Q8_0_BLOCK else gguf_type.upper()

    return {tensor.name: type_of(tensor) for tensor in tensors}


def write_tensors(
    writer: Any, path: Path, source: ExportSource, tensors: Sequence[GgufTensor], types: Mapping[str, str]
) -> None:
    """Write the header that ``writer`` has collected, then all tensors.

    Args:
        writer: a ``gguf.GGUFWriter`` for ``path`` whose keys are complete.
        types: from ``types_of``.

    Raises:
        InputError: too little disk space, or values beyond the range of float16.
    """
    from gguf import GGMLQuantizationType

    sizes = {tensor.name: _num_bytes(tensor.shape, types[tensor.name]) for tensor in tensors}
    check_free_space(path.parent, sum(sizes.values()), path.name, "choose another place with --output")
    for tensor in tensors:
        kind = GGMLQuantizationType[types[tensor.name]]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), sizes[tensor.name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as sink:
        _align(sink, writer.data_alignment)
        for tensor in tensors:
            for rows in row_chunks(read_tensor(source, tensor)):
                sink.write(_encode(rows, types[tensor.name], tensor.name).data)
            _align(sink, writer.data_alignment)


def row_chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Split a matrix [rows, columns] into runs of rows, so that one takes little memory in float32; vectors stay."""
    if tensor.dim() == 1:
        yield tensor
    else:
        yield from tensor.split(max(1, CHUNK_VALUES // tensor.shape[1]))


def _encode(rows: Tensor, kind: str, name: str) -> np.ndarray[Any, Any]:
    """Convert values to the bytes of a type.

    Raises:
        InputError: NaN, infinity, or magnitudes that float16 cannot represent.
    """
    if kind == "Q8_0":
        from gguf import GGMLQuantizationType, quants

        _check_range(rows, torch.float32, name)
        quantised: np.ndarray[Any, Any] = quants.quantize(rows.float().numpy(), GGMLQuantizationType.Q8_0)
        return np.ascontiguousarray(quantised)
    _check_range(rows, _DTYPES[kind], name)
    return rows.to(_DTYPES[kind]).contiguous().view(torch.uint8).numpy()


def _check_range(values: Tensor, dtype: torch.dtype, name: str) -> None:
    lowest, highest = values.aminmax()
    limit = torch.finfo(dtype).max
    if not (-limit <= lowest.item() and highest.item() <= limit):  # NaN too
        raise InputError(
            expected=f"finite weights of at most {limit:g}, the range of {str(dtype).removeprefix('torch.')}",
            got=f"values between {lowest.item():g} and {highest.item():g} in {name}",
            remedy="use --type bf16, which has the range of float32, or check the checkpoint for NaN",
        )


def _num_bytes(shape: tuple[int, ...], kind: str) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return prod(shape) // block * block_bytes


def _align(sink: BinaryIO, alignment: int) -> None:
    sink.write(bytes(-sink.tell() % alignment))
