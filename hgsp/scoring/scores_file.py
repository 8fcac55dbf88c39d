"""The file of scores: arrays beside JSON text, checked against their schema when they are read.

L layers | K kv groups | M mlp width | E experts | W channels of each
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from hgsp.console.json_files import json_object
from hgsp.console.schemas import OneOf, Positive, Sha256, checked
from hgsp.errors import InputError, one_line
from hgsp.models.blocks import LINEARS
from hgsp.scoring.names import LABELS, LAYER_IMPORTANCES
from hgsp.scoring.normalization import LayerImportance
from hgsp.scoring.npz_files import Array, read_npz
from hgsp.scoring.prior import Influence
from hgsp.scoring.slots import CHANNELS

SCHEMA = 1
SAMPLED_VALUES = 16
#: No statistic of float32 values comes near; sums and products of smaller values stay finite.
MAX_IMPORTANCE = 1e100
INFLUENCE_PARTS = ("layer", "attention", "mlp")


class _Weights(TypedDict):
    sha256: Sha256
    bfloat16_sha256: Sha256


class _Provenance(TypedDict, total=False):
    base_model: str
    importance_method: str
    calibration: dict[str, Any] | None
    labels: Annotated[str, OneOf(LABELS)]
    calibration_loss: float | None
    seed: int
    dtype: str
    weights: _Weights


@dataclass(frozen=True)
class _Head:
    """The JSON text beside the arrays of a file."""

    schema: Literal[1]
    num_layers: Positive
    measure: Annotated[str, OneOf(LAYER_IMPORTANCES)] | None
    provenance: _Provenance


@dataclass(frozen=True)
class ScoresFile:
    """The content of a file, as ``hgsp.scoring.scores.Scores`` has it."""

    by_layer: tuple[LayerImportance, ...]
    influence: Influence | None
    weight_sample: npt.NDArray[np.float32]
    provenance: Mapping[str, Any]


def read_scores_file(path: Path) -> ScoresFile:
    """Read a file of scores.

    Raises:
        InputError: the file is missing, damaged, or of another schema.
    """
    try:
        arrays = read_npz(path)
        head = checked(_Head, json_object(str(_taken(arrays, "head", "U", ()))))
        by_layer = tuple(_layer_of(arrays, index) for index in range(head.num_layers))
        influence = None if head.measure is None else _influence_of(arrays, head.num_layers, head.measure)
        sample = _taken(arrays, "weight_sample", "f4", (head.num_layers, len(LINEARS), SAMPLED_VALUES))
        if arrays:
            raise ValueError(f"an array {min(arrays)!a}, which no scores have")
        return ScoresFile(by_layer, influence, sample, head.provenance)
    except (OSError, ValueError) as error:
        raise InputError(
            expected="--scores to be a scores.npz written by this version",
            got=f"{path} ({one_line(error)})",
            remedy="score the model again",
        ) from error


def _influence_of(arrays: dict[str, Array], num_layers: int, measure: str) -> Influence:
    layer, attention, mlp = (_taken(arrays, f"influence.{part}", "f8", (num_layers,)) for part in INFLUENCE_PARTS)
    if min(layer.min(), attention.min(), mlp.min()) < 0:
        raise ValueError("influence below 0")
    return Influence(layer, attention, mlp, measure)


def _layer_of(arrays: dict[str, Array], index: int) -> LayerImportance:
    """Take the importances of one layer out of the arrays of a file; those of the outputs are optional."""
    layer = {}
    mlp = "expert" if f"{index}.expert" in arrays or f"{index}.{CHANNELS}" in arrays else "mlp"
    for kind in ("attention", mlp):
        layer[kind] = _importance(arrays, f"{index}.{kind}", (None,))
        if f"{index}.{kind}.output" in arrays:
            layer[f"{kind}.output"] = _importance(arrays, f"{index}.{kind}.output", layer[kind].shape)
    if f"{index}.{CHANNELS}" in arrays:
        layer[CHANNELS] = _importance(arrays, f"{index}.{CHANNELS}", (len(layer["expert"]), None))
        if f"{index}.{CHANNELS}.output" in arrays:
            layer[f"{CHANNELS}.output"] = _importance(arrays, f"{index}.{CHANNELS}.output", layer[CHANNELS].shape)
    return layer


def _importance(arrays: dict[str, Array], name: str, shape: tuple[int | None, ...]) -> Array:
    values = _taken(arrays, name, "f8", shape)
    if values.size and np.abs(values).max() > MAX_IMPORTANCE:
        raise ValueError(f"values above {MAX_IMPORTANCE:g} in {name}")
    return values


def _taken(arrays: dict[str, Array], name: str, dtype: str, shape: tuple[int | None, ...]) -> Array:
    """Take an array of a dtype and shape out of the arrays of a file; None in a shape is any size.

    Raises:
        ValueError: there is none, or another one.
    """
    if name not in arrays:
        raise ValueError(f"no array {name}")
    values = arrays.pop(name)
    fits = values.dtype.kind == "U" if dtype == "U" else values.dtype == np.dtype(dtype)
    same = len(values.shape) == len(shape) and all(
        size in (None, own) for own, size in zip(values.shape, shape, strict=True)
    )
    if not fits or not same:
        raise ValueError(f"{name} of {values.dtype} {list(values.shape)}")
    return values
