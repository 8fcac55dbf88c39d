"""The file of a latency table: its schema, and the laws that its parts keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal

from hgsp.console.json_files import read_json_file
from hgsp.console.schemas import Between, OneOf, Positive
from hgsp.costs.names import CLOCKS, PHASES
from hgsp.errors import InputError

SCHEMA_VERSION = 1
_REMEDY = "measure it again with `hgsp profile`"
_Seconds = Annotated[float, Between(0, 1e9)]


@dataclass(frozen=True)
class TimingsEntry:
    """The timings of one workload, as ``Workload`` and ``BlockTimings`` have them."""

    phase: Annotated[str, OneOf(PHASES)]
    batch_size: Positive
    context_length: Positive
    rest: _Seconds
    attention: tuple[_Seconds, ...]
    mlp: dict[int, tuple[_Seconds, ...]]
    spread: _Seconds = 0.0


@dataclass(frozen=True)
class LatencyFile:
    """The content of a file, as ``LatencyTable`` has it.

    Raises:
        InputError: the parts do not belong together.
    """

    schema_version: Literal[1]
    model: str
    hidden_size: Positive
    head_dim: Positive
    queries_per_kv: Positive
    device_name: str
    dtype: str
    clock: Annotated[str, OneOf(tuple(CLOCKS))]
    kv_groups: tuple[Positive, ...]
    mlp_widths: dict[int, tuple[Positive, ...]]
    timings: tuple[TimingsEntry, ...]
    environment: dict[str, Any]

    def __post_init__(self) -> None:
        _require(_rises(self.kv_groups), "kv_groups", "ascending", self.kv_groups)
        _require(bool(self.mlp_widths) and 0 not in self.mlp_widths, "mlp_widths", "under multiples >= 1", "others")
        for multiple, widths in self.mlp_widths.items():
            _require(_rises(widths), f"mlp_widths.{multiple}", "ascending", widths)
        grid = {multiple: len(widths) for multiple, widths in self.mlp_widths.items()}
        for index, entry in enumerate(self.timings):
            same = len(entry.attention) == len(self.kv_groups) and {m: len(s) for m, s in entry.mlp.items()} == grid
            _require(same, f"timings[{index}]", "one number for each measured size", "another number of them")
        for phase in PHASES:
            measured = [(entry.batch_size, entry.context_length) for entry in self.timings if entry.phase == phase]
            whole = product({batch for batch, _ in measured}, {context for _, context in measured})
            _require(
                sorted(measured) == sorted(whole), "timings", f"each workload of {phase} once", "another selection"
            )
        _require(bool(self.timings), "timings", "at least one workload", "none")


def read_latency_file(path: Path) -> LatencyFile:
    """Read a latency table.

    Raises:
        InputError: no file, or none of a latency table of this version; names the field.
    """
    return read_json_file(path, LatencyFile, "a latency table written by `hgsp profile`", _REMEDY)


def _rises(values: Sequence[int]) -> bool:
    return bool(values) and all(low < high for low, high in pairwise(values))


def _require(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(expected=f"{field} {expected}", got=got, remedy=_REMEDY)
