"""What a reconstruction has finished, layer by layer, in a folder that outlives an interrupt or a kill."""

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
    """Refitted tensors and findings of finished layers; ``tensors`` by their names in the pruned model.

    What is there of the same reconstruction is gone on from, what is there of another one is dropped.

    Args:
        folder: of this reconstruction alone; it is made for the first layer, and removed by ``close``.
        fingerprint: of everything that the tensors depend on.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._file = folder / "finished.json"
        self._fingerprint = fingerprint
        self._layers: dict[str, dict[str, Any]] = self._read()
        self.tensors = DiskTensors(folder)
        finished = {name for layer in self._layers.values() for name in layer["tensors"]}
        for name in set(self.tensors) - finished:
            del self.tensors[name]

    def findings(self, index: int) -> Sequence[Mapping[str, Any]] | None:
        """What ``add`` was given for a layer; None if it is not finished."""
        layer = self._layers.get(str(index))
        return None if layer is None else layer["findings"]

    def add(self, index: int, findings: Sequence[Mapping[str, Any]], tensors: Iterable[str]) -> None:
        """A layer is finished, its ``tensors`` are in place."""
        self._layers[str(index)] = {"findings": list(findings), "tensors": list(tensors)}
        write_atomically(self._file, json.dumps({"fingerprint": self._fingerprint, "layers": self._layers}))

    def close(self) -> None:
        self.tensors.close()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._file.exists():
            return {}
        content = json.loads(self._file.read_text())
        if content["fingerprint"] != self._fingerprint:
            LOG.warning("reconstruction: %s is of another model, plan or text; starting anew", self._file.parent)
            return {}
        LOG.info("reconstruction: goes on after %d layers, from %s", len(content["layers"]), self._file.parent)
        return dict(content["layers"])
