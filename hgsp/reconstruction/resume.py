"""State of an interrupted reconstruction: finished layers in a folder, from which it resumes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hgsp.environment import write_atomically
from hgsp.layerwise.disk_tensors import DiskTensors

LOG = logging.getLogger(__name__)


class ResumeState:
    """Refitted tensors and fits of finished layers; ``tensors`` by their names in the pruned model.

    Discards the state of another reconstruction.

    Args:
        folder: for this reconstruction alone, created with the first layer and removed by ``close``.
        fingerprint: of everything that the tensors depend on.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._file = folder / "finished.json"
        self._fingerprint = fingerprint
        self._layers: dict[str, dict[str, Any]] = self._read()
        self.tensors = DiskTensors(folder)
        complete = {name for layer in self._layers.values() for name in layer["tensors"]}
        for name in set(self.tensors) - complete:
            del self.tensors[name]

    def fits(self, index: int) -> Sequence[Mapping[str, Any]] | None:
        """Return the fits that ``add`` stored for a layer, None if it is not finished."""
        layer = self._layers.get(str(index))
        return None if layer is None else layer["findings"]

    def add(self, index: int, fits: Sequence[Mapping[str, Any]], tensors: Iterable[str]) -> None:
        """Mark a layer as finished, whose refitted ``tensors`` are stored.

        Args:
            fits: JSON types only.
        """
        self._layers[str(index)] = {"findings": list(fits), "tensors": list(tensors)}
        write_atomically(self._file, json.dumps({"fingerprint": self._fingerprint, "layers": self._layers}))

    def close(self) -> None:
        self.tensors.close()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._file.exists():
            return {}
        content = json.loads(self._file.read_text(encoding="utf-8"))
        if content["fingerprint"] != self._fingerprint:
            LOG.warning("reconstruction: discarding %s, the state of another model, plan or text", self._file.parent)
            return {}
        LOG.info("reconstruction: resuming after %d layers, from %s", len(content["layers"]), self._file.parent)
        return dict(content["layers"])
