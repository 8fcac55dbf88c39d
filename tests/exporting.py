"""Pruned tiny models in folders, to be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hgsp.export.export import export
from hgsp.models.checkpoint import save_pruned
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.surgery import apply_plan
from plans import plan_of

#: Name -> KV groups and MLP channels that each of three layers keeps, as shares of the dense model's.
PLANS = {
    "non-uniform": ((0.5, 0.6), (1.0, 1.0), (0.75, 0.3)),
    "attention gone": ((1.0, 0.9), (0.0, 0.4), (0.5, 0.5)),
    "first attention gone": ((0.0, 0.7), (1.0, 0.6), (0.5, 0.5)),
    "MLP gone": ((0.5, 0.5), (1.0, 0.0), (1.0, 0.6)),
    "layer gone": ((1.0, 0.5), (0.0, 0.0), (0.5, 0.7)),
    "uniform": ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)),
    "uniform, layer gone": ((0.75, 0.5), (0.0, 0.0), (0.75, 0.5)),
}


def plan_named(model: Any, name: str) -> PrunePlan:
    """The first groups and channels of every layer stay; at least one where the share is not zero."""
    geometry = geometry_of(model)
    return plan_of(
        geometry,
        (
            LayerKeep(
                tuple(range(_share(groups, shape.num_kv_groups))), tuple(range(_share(channels, shape.mlp_width)))
            )
            for (groups, channels), shape in zip(PLANS[name], geometry.shapes, strict=True)
        ),
    )


def pruned_folder(model: Any, plan: str, tokenizer: Any, folder: Path) -> Path:
    folder.mkdir()
    save_pruned(apply_plan(model, plan_named(model, plan), inplace=False), tokenizer, folder, with_bin=False)
    return folder


def exported(folder: Path, to: str, **kwargs: Any) -> Any:
    """Export beside the checkpoint."""
    return export(folder, to, folder.with_name(f"{folder.name}-{to}"), **kwargs)


def _share(share: float, size: int) -> int:
    return max(1, round(share * size)) if share else 0
