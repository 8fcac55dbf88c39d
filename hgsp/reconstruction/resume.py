"""State of an interrupted reconstruction: finished layers in a folder, from which it resumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hgsp.console.schemas import Sha256
from hgsp.console.state_files import check_state_folder, read_state, write_state
from hgsp.layerwise.disk_tensors import DiskTensors

LOG = logging.getLogger(__name__)


STATE_FILE, KIND = "finished.json", "reconstruction"


@dataclass(frozen=True)
class ModuleFit:
    """The fit of one output projection, of one whole block, or of the experts of one layer.

    ``layer`` is its index in the dense model. ``ridge`` is None if least squares kept the old weights, and for a block
    and experts, which have one each. Errors are held out: norm of e over the norm of the dense block's output, None
    where that is zero. ``changed``: whether there are new weights. Of experts, ``refitted_experts`` is the number that
    has, and ``few_tokens`` are the dense indices of those that saw too few tokens; other modules have neither.
    """

    layer: int
    module: str
    ridge: float | None
    error_before: float | None
    error_after: float | None
    changed: bool
    refitted_experts: int | None = None
    few_tokens: tuple[int, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the report's entry; keys of experts are left out of others."""
        of_experts = ("refitted_experts", "few_tokens")
        return {key: value for key, value in asdict(self).items() if key not in of_experts or value is not None}


@dataclass(frozen=True)
class _FinishedLayer:
    """A finished layer: its fits, and the hash of each of its tensors."""

    findings: tuple[ModuleFit, ...]
    tensors: dict[str, Sha256]


@dataclass(frozen=True)
class _Finished:
    fingerprint: str
    layers: dict[int, _FinishedLayer]


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
        self._layers = self._read()
        complete = {name for layer in self._layers.values() for name in layer.tensors}
        for name in set(self.tensors) - complete:
            del self.tensors[name]

    def fits(self, index: int) -> Sequence[ModuleFit] | None:
        """Return the fits that ``add`` stored for a layer, None if it is not finished."""
        layer = self._layers.get(index)
        return None if layer is None else layer.findings

    def add(self, index: int, fits: Sequence[ModuleFit], tensors: Mapping[str, Tensor]) -> None:
        """Store the refitted ``tensors`` of a layer and mark it as finished."""
        if not self._file.exists():
            self._write()  # marks the folder as ours
        self.tensors.update(tensors)
        hashes = {name: str(self.tensors.sha256(name)) for name in tensors}
        self._layers[index] = _FinishedLayer(tuple(fits), hashes)
        self._write()

    def close(self) -> None:
        self.tensors.close()

    def _write(self) -> None:
        write_state(self._file, KIND, asdict(_Finished(self._fingerprint, self._layers)))

    def _read(self) -> dict[int, _FinishedLayer]:
        content = read_state(self._file, KIND, _Finished)
        if content is None:
            return {}
        if content.fingerprint != self._fingerprint:
            LOG.warning("reconstruction: discarding %s, the state of another model, plan or text", self._file.parent)
            return {}
        layers = {index: layer for index, layer in content.layers.items() if self._is_whole(index, layer)}
        if damaged := content.layers.keys() - layers.keys():
            names = ", ".join(map(str, sorted(damaged)))
            LOG.warning("reconstruction: tensors of layers %s are missing or damaged; refitting them again", names)
        if layers:
            LOG.info("reconstruction: resuming after %d layers, from %s", len(layers), self._file.parent)
        return layers

    def _is_whole(self, index: int, layer: _FinishedLayer) -> bool:
        """Return whether the fits are those of this layer, and their tensors are there as they were written."""
        return (
            all(fit.layer == index for fit in layer.findings)
            and any(fit.changed for fit in layer.findings) == bool(layer.tensors)
            and all(self.tensors.sha256(name) == digest for name, digest in layer.tensors.items())
        )
