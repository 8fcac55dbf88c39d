"""Export a finished checkpoint to the format of another engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hgsp.console.checksums import write_checksums
from hgsp.console.result_folders import new_folder, refuse_unwritable, remove_leftovers
from hgsp.errors import InputError
from hgsp.exports.family_targets import targets_of
from hgsp.exports.names import GGUF_TYPES, TARGETS
from hgsp.exports.result import Exported, ExportOptions
from hgsp.exports.source import read_source
from hgsp.exports.targets import EXPORTS


@dataclass(frozen=True)
class ExportedFolder:
    """The folder of an export and its description; ``serve`` holds command lines to run as they are."""

    folder: Path
    exported: Exported

    @property
    def serve(self) -> tuple[str, ...]:
        return tuple(line.replace("{folder}", str(self.folder)) for line in self.exported.serve)


def export(
    checkpoint: str | Path,
    to: str,
    output: str | Path | None = None,
    *,
    gguf_type: str = "f16",
    self_check: bool = True,
    finish: Callable[[Path], None] = lambda _: None,
) -> ExportedFolder:
    """Write a checkpoint folder in the format of other engines, into a folder that appears whole or not at all.

    Args:
        checkpoint: a folder that pruning or recovery wrote, or a dense model of a supported family.
        to: ``gguf``, ``decilm``, ``stock`` or ``mlx``.
        output: a new or empty folder; None is the checkpoint's name with ``-`` and the target appended.
        gguf_type: ``f32``, ``f16``, ``bf16`` or ``q8_0``.
        self_check: read the result again and compare it with the checkpoint.
        finish: adds files to the folder before it appears.

    Raises:
        InputError: an unknown target, a folder that is not empty, or a model that the target cannot hold.
    """
    if to not in EXPORTS:
        raise InputError(
            expected=f"a target among {', '.join(TARGETS)}", got=f"'{to}'", remedy="see hgsp export --help"
        )
    if gguf_type not in GGUF_TYPES:
        raise InputError(expected=f"a type among {', '.join(GGUF_TYPES)}", got=f"'{gguf_type}'", remedy="use f16")
    source = read_source(checkpoint)
    if source.untried and to not in targets_of(source.family):
        raise InputError(
            expected=f"a dense model for --to {to}",
            got=f"{source.untried} in {checkpoint}, for which no such export is written",
            remedy="use --to stock, for layers of equal sizes, or load the folder itself with Transformers"
            if targets_of(source.family)
            else "load the folder itself; pruned with --uniform it is a model of a stock class",
        )
    place = source.folder.resolve()
    target = Path(output) if output is not None else place.with_name(f"{place.name}-{to}")
    _check_output(target)
    with new_folder(target, overwrite=target.exists()) as folder:
        exported = EXPORTS[to](source, folder, ExportOptions(place.name, gguf_type, self_check))
        finish(folder)
        write_checksums(folder)
    return ExportedFolder(target, exported)


def _check_output(target: Path) -> None:
    """Refuse a folder that holds something, before any weights are read."""
    remove_leftovers(target.resolve())
    refuse_unwritable(target, "--output")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(
            expected="a new or empty folder to export to",
            got=f"{target}, which is not empty",
            remedy="choose another with --output",
        )
