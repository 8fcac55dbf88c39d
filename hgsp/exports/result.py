"""Options and results of an export, the same for every target."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Args:
        name: of the model, for file names and metadata.
        gguf_type: a value of ``GGUF_TYPES``; other targets keep the stored dtype.
        self_check: compare what was written with the checkpoint: names, shapes and values, and log-probabilities
            where an engine is installed that reads it.
    """

    name: str
    gguf_type: str = "f16"
    self_check: bool = True


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Args:
        files: that were written, relative to the folder.
        serve: command lines that serve it, with ``{folder}`` for the export's folder.
        notes: facts that the user must know, such as parameters added by padding; one line each.
        checks: what the self-check found; one line each.
    """

    files: tuple[Path, ...]
    serve: tuple[str, ...]
    notes: tuple[str, ...] = ()
    checks: tuple[str, ...] = field(default=())
