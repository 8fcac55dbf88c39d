"""Types of matrices in GGUF files: bytes of their blocks, and which type llama.cpp gives to which matrix.

Facts from llama.cpp's ``llama-quant.cpp``. Blocks run along the columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hgsp.exports.parameters import Matrix

#: Type -> values in a block, bytes of a block.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "Q5_0": (32, 22),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q6_K": (256, 210),
}
#: The type that replaces another where the columns are no multiple of its block.
FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q5_0": "F16", "Q8_0": "F16"}

TypeOf = Callable[[Matrix], str]


def bytes_of(matrix: Matrix, kind: str) -> int:
    """Return the bytes of a matrix in a type that fits its columns."""
    values, size = BLOCKS[kind]
    assert matrix.columns % values == 0
    return matrix.rows * matrix.columns // values * size


def fitting(kind: str, columns: int) -> str:
    """Return the type itself if its blocks divide the columns, else the first fallback that does."""
    while columns % BLOCKS[kind][0]:
        kind = FALLBACKS[kind]
    return kind


def every(kind: str) -> TypeOf:
    """Return the rule of files with one type."""
    return lambda _: kind


def q4_k_m(matrices: Iterable[Matrix]) -> TypeOf:
    """Return the rule of Q4_K_M files: Q6_K for the head, and for half of the layers' v_proj and down_proj."""
    found = list(matrices)
    head = "lm_head" if any(matrix.name == "lm_head" for matrix in found) else "embed_tokens"
    in_order = {name: [matrix.layer for matrix in found if matrix.name == name] for name in ("v_proj", "down_proj")}

    def type_of(matrix: Matrix) -> str:
        layers = in_order.get(matrix.name)
        if layers is None:
            return "Q6_K" if matrix.name == head else "Q4_K"
        return "Q6_K" if _gets_more_bits(layers.index(matrix.layer), len(layers)) else "Q4_K"

    return type_of


def _gets_more_bits(index: int, count: int) -> bool:
    eighth = count // 8
    return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2
