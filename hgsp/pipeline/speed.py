"""Predicted and measured speed-up of a result, for runs with a latency table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hgsp.costs.latency import LatencyTable, Workload
from hgsp.costs.passes import TimedPasses
from hgsp.models.geometry import LayerShape

#: Timed passes of a model, after one that is not timed; the fastest counts.
PASSES = 10


@dataclass
class SpeedReport:
    """Seconds of the dense and the pruned model in one workload, beside the table's prediction.

    Args:
        dense: shapes of the dense model.
        measures: whether models are timed; predictions cost nothing.
    """

    table: LatencyTable
    workload: Workload
    dense: Sequence[LayerShape]
    measures: bool
    dense_seconds: float | None = field(init=False, default=None)

    def before(self, model: Any) -> None:
        """Time the dense model."""
        self.dense_seconds = self._seconds(model)

    def after(self, model: Any, shapes: Sequence[LayerShape]) -> dict[str, Any]:
        """Time the pruned model and return the report's section; speed-ups say how many times as fast it is."""
        seconds = self._seconds(model)
        measured = self.dense_seconds / seconds if self.dense_seconds and seconds else None
        return {
            "workload": str(self.workload),
            "clock": self.table.clock,
            "predicted_speedup": self.table.speedup(self.dense, shapes, self.workload),
            "measured_speedup": measured,
            "dense_s": self.dense_seconds,
            "pruned_s": seconds,
        }

    def _seconds(self, model: Any) -> float | None:
        """Return the fastest of some passes."""
        if not self.measures:
            return None
        passes = TimedPasses(model, self.workload, self.table.clock)
        passes.run()
        return min(passes.run() for _ in range(PASSES))
