"""Scores: importances and influence on disk, to select from at any ratio and with any prior in seconds.

L layers | K kv groups | M mlp width | I in_features
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hgsp.console.portable_paths import portable
from hgsp.environment import replacing
from hgsp.errors import InputError
from hgsp.models.blocks import ATTENTION_INPUTS, ATTENTION_OUTPUT, LINEARS
from hgsp.models.experts import DOWN, GATE_UP, ROUTERS
from hgsp.models.families import LAYER_PREFIX
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.scoring.groups import GroupTable, build_group_table
from hgsp.scoring.methods import METHODS
from hgsp.scoring.names import NORMALIZATIONS
from hgsp.scoring.normalization import LayerImportance, kinds_in, normalize
from hgsp.scoring.prior import Influence, prior_of
from hgsp.scoring.scores_file import INFLUENCE_PARTS, SAMPLED_VALUES, SCHEMA, read_scores_file
from hgsp.scoring.slots import CHANNELS, importance_of_slots

MAX_DEPTH_SLOPE = 10


@dataclass(frozen=True)
class RankingOptions:
    """How importances become one order over all layers and kinds of group.

    Args:
        normalization: a key of ``NORMALIZERS``, or "auto" for that of the importance method.
        temperature: exponent of the H-GSP prior; 0 switches it off and needs no influence.
        tau: H-GSP threshold, see ``prior_of``.
        depth_slope: MLP scores are multiplied by e^-slope in the first layer up to e^slope in the last.
        attention_slope: the same for the scores of KV groups.

    Raises:
        InputError: unknown normalization, or a number out of range.
    """

    normalization: str = "auto"
    temperature: float = 0.0
    tau: float | None = None
    depth_slope: float = 0.0
    attention_slope: float = 0.0

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("normalization", self.normalization in NORMALIZATIONS, f"one of {', '.join(NORMALIZATIONS)}"),
            ("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "a finite number >= 0"),
            ("tau", self.tau is None or self.tau >= 0, "None, inf or a number >= 0"),
            *(
                (name, abs(getattr(self, name)) <= MAX_DEPTH_SLOPE, f"at most {MAX_DEPTH_SLOPE}, of either sign")
                for name in ("depth_slope", "attention_slope")
            ),
        ):
            if not valid:
                got = getattr(self, name)
                raise InputError(expected=f"{name} to be {expected}", got=got, remedy=f"change {name}")

    def normalization_of(self, method: str) -> str:
        """Return the normalization in force for scores of this method, never "auto"."""
        return METHODS[method].normalization if self.normalization == "auto" else self.normalization


@dataclass(frozen=True, repr=False)
class Scores:
    """Importance of every group, the influence of layers and blocks if measured, and the provenance of both.

    ``weight_sample`` [L, 7, 16] float32, the first weights of every matrix, is compared where hashes cannot be.
    """

    by_layer: tuple[LayerImportance, ...]
    influence: Influence | None
    weight_sample: npt.NDArray[np.float32]
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        num_groups = sum(layer[kind].shape[-1] for layer in self.by_layer for kind in kinds_in(layer))
        influence = "no influence" if self.influence is None else f"{self.influence.measure} influence"
        method = self.provenance.get("importance_method", "unknown method")
        return f"Scores({method}, {num_groups:,} groups in {len(self.by_layer)} layers, {influence})"

    @property
    def method(self) -> str:
        """The importance method, a key of ``METHODS``.

        Raises:
            InputError: the provenance names none, or one that is not in ``METHODS``.
        """
        name = self.provenance.get("importance_method")
        if name not in METHODS:
            raise InputError(
                expected=f"scores by one of {', '.join(METHODS)}",
                got=f"scores by {name}",
                remedy="score the model again",
            )
        return str(name)

    def write(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            f"{index}.{part}": values for index, layer in enumerate(self.by_layer) for part, values in layer.items()
        }
        if self.influence is not None:
            arrays |= {f"influence.{part}": getattr(self.influence, part) for part in INFLUENCE_PARTS}
        measure = None if self.influence is None else self.influence.measure
        head = {
            "schema": SCHEMA,
            "num_layers": len(self.by_layer),
            "measure": measure,
            "provenance": portable(self.provenance),
        }
        with replacing(path) as partial, partial.open("wb") as sink:
            np.savez(sink, weight_sample=self.weight_sample, head=np.array(json.dumps(head)), **arrays)

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read a file of ``write``.

        Raises:
            InputError: the file is missing, damaged, or of another schema.
        """
        found = read_scores_file(path)
        return cls(found.by_layer, found.influence, found.weight_sample, found.provenance)

    def check_sizes(self, geometry: Geometry) -> None:
        """Refuse scores of a model of other sizes, or without the channels of experts that are to be pruned.

        Raises:
            InputError: names the model that was scored.
        """
        sizes = [{kind: layer[kind].shape for kind in kinds_in(layer)} for layer in self.by_layer]
        dense: list[dict[str, tuple[int, ...]]]
        dense = [{kind.name: (shape.size_of(kind.name),) for kind in shape.kinds} for shape in geometry.shapes]
        for own, wanted, shape in zip(sizes, dense, geometry.shapes, strict=False):
            if CHANNELS in own:  # which experts need not have
                wanted[CHANNELS] = shape.num_experts, shape.expert_width
        if sizes != dense:
            raise self._of_another_model("a model of other sizes")
        if geometry.prunes_expert_channels and not all(CHANNELS in own for own in sizes if "expert" in own):
            raise InputError(
                expected="scores of channels inside experts for --expert_channels",
                got="scores of whole experts",
                remedy="score again with --expert_channels",
            )

    def check_belongs_to(self, loaded: LoadedModel) -> None:
        """Refuse scores of another model.

        All weights are compared, by their hashes; for scores of earlier versions without them, a sample of every
        matrix is.

        Raises:
            InputError: other sizes, or other weights; also weights of float32 that one of the two runs rounded to
                bfloat16 and the other to float16, which leaves nothing to compare.
        """
        self.check_sizes(geometry_of(loaded.model))
        made, dtype = self.provenance.get("weights"), self.provenance.get("dtype", "")
        needs_float16 = dtype != loaded.dtype and "float16" in (dtype, loaded.dtype)
        if made is None or (needs_float16 and "float16_sha256" not in made):
            rtol, atol = (0.0, 0.0) if dtype == loaded.dtype else (2**-7, 1e-6)  # bfloat16 rounds by at most 2**-8
            belongs = np.allclose(self.weight_sample, weight_sample(loaded), rtol=rtol, atol=atol)
        else:
            belongs = loaded.identity.is_of(made, dtype, loaded.dtype)
        if not belongs:
            rounded = f", or weights that {dtype} and {loaded.dtype} round differently" if needs_float16 else ""
            raise self._of_another_model(f"a model of the same sizes with other weights{rounded}")

    def _of_another_model(self, got: str) -> InputError:
        return InputError(
            expected="scores of the model to prune",
            got=f"scores of {got} ({self.provenance.get('base_model')})",
            remedy="pass the model that was scored, or score this one",
        )

    def check_influence(self, temperature: float) -> None:
        """Refuse a temperature that needs influence if the scores have none.

        Raises:
            InputError: a temperature above 0 and scores without influence.
        """
        if temperature > 0 and self.influence is None:
            raise InputError(
                expected="scores with layer influence for a temperature above 0",
                got="scores made with --temperature 0",
                remedy="use --temperature 0, or score again with a temperature above 0",
            )

    def ranked(self, geometry: Geometry, options: RankingOptions | None = None) -> tuple[GroupTable, tuple[str, ...]]:
        """Return the table of all groups with final scores, and the H-GSP mode of every layer ("none" without a prior).

        Raises:
            InputError: a temperature above 0 and scores without influence, or "auto" and scores of no known method.
        """
        options = options or RankingOptions()
        automatic = options.normalization == "auto"
        normalization = options.normalization_of(self.method) if automatic else options.normalization
        by_layer, channel_order = importance_of_slots(self.by_layer, geometry, normalization)
        table = build_group_table(by_layer, geometry, normalize(by_layer, geometry, normalization), channel_order)
        modes = ["none"] * len(self.by_layer)
        if options.temperature > 0:
            self.check_influence(options.temperature)
            assert self.influence is not None
            prior_LK, modes = prior_of(self.influence, options.temperature, options.tau)
            table = table.with_prior(prior_LK)
        return table.with_depth_slopes(options.depth_slope, options.attention_slope), tuple(modes)


def weight_sample(loaded: LoadedModel) -> npt.NDArray[np.float32]:
    """Return the first weights of every matrix of a loaded model, [L, 7, 16] float32, rounded to the model's dtype.

    A mixture of experts has three in place of an MLP's: the router, and the two of its first expert. Linear attention
    has zeros.
    """
    parameters = dict(loaded.model.named_parameters())
    names = (
        f"{LAYER_PREFIX}{index}.{name}"
        for index in range(loaded.decoder.num_layers)
        for name in _sampled_of(index, parameters)
    )
    values = [
        _first_values(loaded.read_first_row(name)) if name in parameters else np.zeros(SAMPLED_VALUES, np.float32)
        for name in names
    ]
    return np.stack(values).reshape(-1, len(LINEARS), SAMPLED_VALUES)


_SAMPLED = tuple(f"{name}.weight" for name in LINEARS)
_SAMPLED_ATTENTION = tuple(f"{name}.weight" for name in (*ATTENTION_INPUTS, ATTENTION_OUTPUT))


def _sampled_of(index: int, parameters: Container[str]) -> tuple[str, ...]:
    routers = [f"{router}.weight" for router in ROUTERS if f"{LAYER_PREFIX}{index}.{router}.weight" in parameters]
    return (*_SAMPLED_ATTENTION, *routers, GATE_UP, DOWN) if routers else _SAMPLED


def _first_values(rows: Tensor) -> npt.NDArray[np.float32]:
    values = np.zeros(SAMPLED_VALUES, np.float32)
    first = rows.flatten()[:SAMPLED_VALUES].float().cpu().numpy()
    values[: len(first)] = first
    return values
