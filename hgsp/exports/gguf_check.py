"""The self-check of a GGUF file: its tensors against the checkpoint, and its tokens and probabilities in llama.cpp."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgsp.environment import in_gib
from hgsp.errors import NumericalError
from hgsp.exports.gguf_engine import ask_engine, is_installed
from hgsp.exports.gguf_file import Q8_0_BLOCK, row_chunks
from hgsp.exports.gguf_layout import GgufTensor, deinterleave
from hgsp.exports.source import ExportSource
from hgsp.models.checkpoint import load_pruned

#: Texts whose tokens are compared: words, contractions, digits, spaces, code, accents and other scripts. None begins
#: with a space: SentencePiece and llama.cpp put another one before it, transformers does not.
TEXTS = (
    "It's 1998, and they'd counted 12345 stars; the YEAR was good.",
    "Two  spaces,\n\n\tand tabs\r\n    return x[0] != None  # done",
    "Größe, déjà vu, naïve façade. Привет, мир! 你好，世界。 🙂",
)
#: Tokens of the first text after which next-token probabilities are compared.
NUM_POSITIONS = 16
#: Largest differences of log-probabilities that rounding explains, over the most likely tokens. float32: sums in
#: another order; others: weights and activations rounded in every layer. Rows in a wrong order give 2 and more.
LARGEST_DIFFERENCE = {"f32": 1e-3, "f16": 3e-2, "bf16": 5e-1, "q8_0": 1.0}
#: Relative rounding of a value: half a unit in the last place.
_ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
#: Absolute rounding: half of the smallest float16.
_SMALLEST_F16 = 2.0**-25
#: Rounding in Q8_0 in steps of a block: half a step, and 127 steps whose size is rounded to float16.
_Q8_0_STEPS = 0.5 + 127 * 2.0**-11


def check_tensors(path: Path, source: ExportSource, tensors: Sequence[GgufTensor], types: Mapping[str, str]) -> str:
    """Read the file again and compare names, shapes, types and values with the checkpoint.

    Raises:
        NumericalError: with the first tensor that differs.
    """
    from gguf import GGUFReader

    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if list(stored) != [tensor.name for tensor in tensors]:
        raise NumericalError(f"self-check of {path.name}: other tensors than were written")
    for tensor in tensors:
        found = stored[tensor.name]
        # the file lists dimensions from the fastest
        if found.tensor_type.name != types[tensor.name] or tuple(map(int, found.shape[::-1])) != tensor.shape:
            raise NumericalError(f"self-check of {path.name}: {tensor.name} has another type or shape")
        _check_values(path, source, tensor, found)
    return f"read again: names, shapes, types and values of {len(tensors)} tensors are the checkpoint's"


def _check_values(path: Path, source: ExportSource, tensor: GgufTensor, found: Any) -> None:
    """Compare head by head or a few rows at a time; stored tensors are in the checkpoint's order of rows."""
    from gguf import quants

    begin = 0
    wanted = [tensor.constant] if tensor.constant is not None else [source.read(name) for name in tensor.sources]
    for part in wanted:
        step = len(part) // tensor.num_heads if tensor.num_heads else None
        for rows in part.split(step) if step else row_chunks(part):
            values = torch.tensor(quants.dequantize(found.data[begin : begin + len(rows)], found.tensor_type))
            values = deinterleave(values, 1) if tensor.num_heads else values
            if not (abs(values - rows.float()) <= _allowed(rows.float(), found.tensor_type.name)).all():
                raise NumericalError(f"self-check of {path.name}: values of {tensor.name} are not the checkpoint's")
            begin += len(rows)


def _allowed(values: Tensor, kind: str) -> Tensor:
    """Return the largest rounding of every value, of any shape."""
    if kind != "Q8_0":
        return values.abs() * _ROUNDING[kind] + (_SMALLEST_F16 if kind == "F16" else 0.0)
    blocks = values.reshape(len(values), -1, Q8_0_BLOCK)
    steps = blocks.abs().amax(-1, keepdim=True) / 127
    return (steps * _Q8_0_STEPS + _SMALLEST_F16 * 127).expand_as(blocks).reshape(values.shape)


def check_engine(path: Path, source: ExportSource, tokenizer: Any, gguf_type: str) -> tuple[str, ...]:
    """Compare llama.cpp with transformers: tokens of a few texts, and next-token log-probabilities.

    Both are left out, which the result says, where the engine is not installed or the model does not fit into memory.

    Raises:
        NumericalError: they differ by more than rounding explains.
    """
    if not is_installed():
        return ("not run in llama.cpp: pip install xllamacpp to have it compared with transformers",)
    in_memory = 4 * sum(prod(shape) for shape in source.tensors.shapes.values()) + path.stat().st_size
    if in_memory > _available_memory():
        return (
            f"not run in llama.cpp: the comparison with transformers in float32 takes {in_gib(in_memory)} of memory",
        )
    ids = tokenizer(TEXTS[0])["input_ids"][:NUM_POSITIONS]
    sequences = [ids[: length + 1] for length in range(len(ids))]
    answer = ask_engine(path, TEXTS, sequences)
    for text, tokens in zip(TEXTS, answer.tokens, strict=True):
        if list(tokens) != tokenizer(text)["input_ids"]:
            raise NumericalError(
                f"self-check of {path.name}: llama.cpp reads other tokens than transformers in {text!r}; "
                "--no_check writes the file all the same"
            )
    largest, allowed = largest_difference(source, ids, answer.likely), LARGEST_DIFFERENCE[gguf_type]
    if gguf_type == "f16" and largest > allowed:
        allowed = max(allowed, float16_difference(source, ids, answer.likely))
    if not largest <= allowed:
        raise NumericalError(
            f"self-check of {path.name}: log-probabilities in llama.cpp differ by {largest:.2g} from transformers', "
            f"at most {allowed:.2g} expected; --no_check writes the file all the same"
        )
    return (
        f"run in llama.cpp (xllamacpp): tokens of {len(TEXTS)} texts equal, log-probabilities after {len(ids)} tokens "
        f"within {largest:.1e} of transformers in float32",
    )


def _available_memory() -> int:
    """Return the bytes that can be used without swapping; where the system does not tell, all of its memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        sizes = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        return int(sizes["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def largest_difference(source: ExportSource, ids: Sequence[int], likely: Sequence[Mapping[int, float]]) -> float:
    """Return the largest difference of log-probabilities from transformers' in float32.

    Args:
        ids: one sequence of tokens.
        likely: after each of its tokens, log-probabilities by id as the engine gives them.
    """
    expected = _log_probs(source, ids, torch.float32)
    return max(
        abs(expected[position, index].item() - value)
        for position, values in enumerate(likely)
        for index, value in values.items()
    )


def float16_difference(source: ExportSource, ids: Sequence[int], likely: Sequence[Mapping[int, float]]) -> float:
    """Return how far transformers itself is from float32 when it computes in float16; 0 where that is not finite.

    llama.cpp rounds activations to float16 as well, which badly pruned models amplify. Arguments as for
    ``largest_difference``.
    """
    rounded = _log_probs(source, ids, torch.float16)
    values = [{index: rounded[position, index].item() for index in known} for position, known in enumerate(likely)]
    difference = largest_difference(source, ids, values)
    return difference if math.isfinite(difference) else 0.0


@torch.no_grad()
def _log_probs(source: ExportSource, ids: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return next-token log-probabilities by transformers, [tokens, V] float64."""
    logits: Tensor = load_pruned(source.folder, dtype=dtype)(torch.tensor([list(ids)])).logits[0]
    return logits.double().log_softmax(-1)
