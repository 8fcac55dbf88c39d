"""The disk that results take, refused before anything is computed if there is less."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hgsp.console.tables import format_bytes
from hgsp.errors import InputError
from hgsp.models.geometry import Geometry
from hgsp.pruning.budget import Budget

#: Bytes per group of scores, group table and plan, and of everything else in a result.
GROUP_BYTES, OTHER_BYTES = 150, 20_000_000


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run writes, the part that ``--no_bin`` saves, and the bytes that are free where it writes."""

    needed: int
    saved_by_no_bin: int
    free: int

    def check(self, folder: Path, flag: str) -> None:
        """Refuse a run whose results do not fit.

        Args:
            flag: the flag that chooses the folder.

        Raises:
            InputError: names ``--no_bin`` and its saving, where the run writes ``pruned_model.bin``.
        """
        if self.needed <= self.free:
            return
        without = self.needed - self.saved_by_no_bin
        enough = "enough" if without <= self.free else f"which still needs {format_bytes(without)}"
        leave_out = (
            f"--no_bin saves {format_bytes(self.saved_by_no_bin)}, {enough}; or " if self.saved_by_no_bin else ""
        )
        raise InputError(
            expected=f"{format_bytes(self.needed)} of free disk for the results in {folder}",
            got=format_bytes(self.free),
            remedy=f"{leave_out}free space, or choose another disk with {flag}",
        )


def disk_need(
    geometry: Geometry, budgets: Sequence[Budget], value_bytes: int, folder: Path, *, with_bin: bool, recovers: bool
) -> DiskNeed:
    """Return the disk that the results of all budgets take.

    Of a target, which may be reached early, the dense model is counted.

    Args:
        folder: where results go; it may not exist yet.
        recovers: whether every pruned model gets a recovered sibling.
    """
    weights = [
        (geometry.total_params - (budget.params if budget.target is None else 0)) * value_bytes for budget in budgets
    ]
    once = sum(weights) * (1 + recovers)
    num_groups = sum(sum(shape.block_sizes) for shape in geometry.shapes)
    other = len(budgets) * (GROUP_BYTES * num_groups + OTHER_BYTES)
    return DiskNeed(once * (1 + with_bin) + other, once * with_bin, free_disk(folder))


def recovery_disk_need(pruned_model: Path, output: Path, *, with_bin: bool) -> DiskNeed:
    """Return the disk that a recovered model takes: as much as the pruned one's weights on disk, 0 if there are none.

    Args:
        pruned_model: a folder, or the file in it.
        output: where the result goes; it may not exist yet.
    """
    folder = pruned_model if pruned_model.is_dir() else pruned_model.parent
    files = folder.glob("*.safetensors") if pruned_model.exists() else ()
    weights = sum(file.stat().st_size for file in files)
    return DiskNeed(weights * (1 + with_bin), weights * with_bin, free_disk(output))


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
