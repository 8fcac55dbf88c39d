"""State of an interrupted reconstruction: finished layers in a folder, from which it resumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hgsp.console.state_files import check_state_folder, read_state, write_state
from hgsp.layerwise.disk_tensors import DiskTensors

LOG = logging.getLogger(__name__)


STATE_FILE, KIND = "finished.json", "reconstruction"


class ResumeState:
    """Refitted tensors and fits of finished layers; ``tensors`` by their names in the pruned model.

    Discards the state of another reconstruction, and layers whose tensors are missing or damaged.

    Args:
        folder: for this reconstruction alone, created with the first layer and removed by ``close``.
        fingerprint: of everything that the tensors depend on.

    Raises:
        InputError: the folder has other content.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        check_state_folder(folder, STATE_FILE, KIND)
        self._file = folder / STATE_FILE
        self._fingerprint = fingerprint
        self.tensors = DiskTensors(folder)
        self._layers: dict[str, dict[str, Any]] = self._read()
        complete = {name for layer in self._layers.values() for name in layer["tensors"]}
        for name in set(self.tensors) - complete:
            del self.tensors[name]

    def fits(self, index: int) -> Sequence[Mapping[str, Any]] | None:
        """Return the fits that ``add`` stored for a layer, None if it is not finished."""
        layer = self._layers.get(str(index))
        return None if layer is None else layer["findings"]

    def add(self, index: int, fits: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Store the refitted ``tensors`` of a layer and mark it as finished.

        Args:
            fits: JSON types only.
        """
        if not self._file.exists():
            self._write()  # marks the folder as ours
        self.tensors.update(tensors)
        hashes = {name: self.tensors.sha256(name) for name in tensors}
        self._layers[str(index)] = {"findings": list(fits), "tensors": hashes}
        self._write()

    def close(self) -> None:
        self.tensors.close()

    def _write(self) -> None:
        write_state(self._file, KIND, {"fingerprint": self._fingerprint, "layers": self._layers})

    def _read(self) -> dict[str, dict[str, Any]]:
        content = read_state(self._file, KIND)
        if content is None:
            return {}
        if content["fingerprint"] != self._fingerprint:
            LOG.warning("reconstruction: discarding %s, the state of another model, plan or text", self._file.parent)
            return {}
        layers = {index: layer for index, layer in content["layers"].items() if self._is_whole(layer)}
        if damaged := content["layers"].keys() - layers.keys():
            names = ", ".join(sorted(damaged, key=int))
            LOG.warning("reconstruction: tensors of layers %s are missing or damaged; refitting them again", names)
        if layers:
            LOG.info("reconstruction: resuming after %d layers, from %s", len(layers), self._file.parent)
        return layers

    def _is_whole(self, layer: Mapping[str, Any]) -> bool:
        return all(self.tensors.sha256(name) == digest for name, digest in layer["tensors"].items())
