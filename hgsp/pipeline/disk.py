"""The disk that results take, refused before anything is computed if there is less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hgsp.console.disk import free_disk
from hgsp.console.tables import format_bytes
from hgsp.errors import InputError
from hgsp.models.blocks import KINDS
from hgsp.models.geometry import Geometry
from hgsp.pruning.budget import Budget

#: Bytes of training states per byte of weights in half precision: three states of three float32 values.
TRAINING_STATES = 18
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
    geometry: Geometry,
    budgets: Sequence[Budget],
    value_bytes: int,
    folder: Path,
    *,
    with_bin: bool,
    recovers: bool,
    reconstruct: str = "none",
) -> DiskNeed:
    """Return the disk that the results of all budgets take.

    Of a target, which may be reached early, the dense model is counted.

    Args:
        folder: where results go; it may not exist yet.
        recovers: whether every pruned model gets a recovered sibling.
        reconstruct: a value of ``--reconstruct``, whose tensors are kept beside the result until it is complete.
    """
    weights = [
        (geometry.total_params - (budget.params if budget.target is None else 0)) * value_bytes for budget in budgets
    ]
    once = sum(weights) * (1 + recovers)
    other = len(budgets) * (scores_bytes(geometry) + OTHER_BYTES)
    state = refitted_params(geometry, reconstruct) * value_bytes
    return DiskNeed(once * (1 + with_bin) + state + other, once * with_bin, free_disk(folder))


def scores_bytes(geometry: Geometry) -> int:
    """Return the disk that scores, group table and plan take."""
    channels = sum(shape.num_experts * shape.expert_width for shape in geometry.shapes)
    groups = sum(sum(shape.block_sizes) for shape in geometry.shapes)
    return GROUP_BYTES * (groups + channels * geometry.prunes_expert_channels)


def refitted_params(geometry: Geometry, method: str) -> int:
    """Return the parameters that a reconstruction may change, of the dense model's sizes."""
    columns = sum(
        geometry.columns_per_group("attention") * shape.num_kv_groups
        + shape.mlp_width
        + shape.num_experts * shape.expert_width * geometry.prunes_expert_channels
        for shape in geometry.shapes
    )
    blocks = sum(geometry.params_of_groups(kind, shape) for shape in geometry.shapes for kind in KINDS)
    per_method = {"none": 0, "bias": 2 * geometry.num_layers, "lstsq": columns, "blocks": columns}
    return per_method[method] * geometry.hidden_size + (blocks if method == "blocks" else 0)


def recovery_disk_need(pruned_model: Path, output: Path, *, with_bin: bool, trains_all: bool) -> DiskNeed:
    """Return the disk that a recovered model takes: as much as the pruned one's weights on disk, 0 if there are none.

    Training of all parameters keeps two states, and a third while it is written: float32 weights and two moments each.

    Args:
        pruned_model: a folder, or the file in it.
        output: where the result goes; it may not exist yet.
        trains_all: whether all parameters are trained, not adapters.
    """
    folder = pruned_model if pruned_model.is_dir() else pruned_model.parent
    files = folder.glob("*.safetensors") if pruned_model.exists() else ()
    weights = sum(file.stat().st_size for file in files)
    states = trains_all * TRAINING_STATES * weights
    return DiskNeed(weights * (1 + with_bin) + states, weights * with_bin, free_disk(output))
