"""The export targets by name. A new target is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hgsp.exports.decilm import export_decilm
from hgsp.exports.gguf import export_gguf
from hgsp.exports.mlx import export_mlx
from hgsp.exports.names import TARGETS
from hgsp.exports.result import Exported, ExportOptions
from hgsp.exports.source import ExportSource
from hgsp.exports.stock import export_stock

#: Writes an export into an existing empty folder.
Export = Callable[[ExportSource, Path, ExportOptions], Exported]

EXPORTS: Mapping[str, Export] = {
    "gguf": export_gguf,
    "decilm": export_decilm,
    "stock": export_stock,
    "mlx": export_mlx,
}

assert set(EXPORTS) <= set(TARGETS)
