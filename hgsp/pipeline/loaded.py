"""A dense model opened for pruning: in memory, or its files read layer by layer."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import DTYPES, ModelSource, load_dense
from hgsp.models.offload import SafetensorFiles, load_offloaded
from hgsp.pipeline.config import ScoringConfig
from hgsp.pruning.select import PrunePlan
from hgsp.pruning.surgery import Surgery
from hgsp.scoring.scores import sample_weights


@dataclass
class LoadedModel:
    """A dense model ready to be walked; ``files`` where its layers are read from disk when needed.

    ``dtype`` is the name of the one its weights are used in, wherever they are read from.
    """

    decoder: Decoder
    files: SafetensorFiles | None
    dtype: str

    @property
    def model(self) -> Any:
        return self.decoder.model

    def surgery(self, plan: PrunePlan, replaced: MutableMapping[str, Tensor] | None = None) -> Surgery:
        """The pruned model's tensors, cut from this one's; see ``Surgery``."""
        return Surgery(self.model.config, geometry_of(self.model), plan, self._reader(), replaced)

    def weight_sample(self) -> Any:
        """First weights of every Linear, rounded to the dtype they are used in."""
        state, files = self.model.state_dict(), self.files

        def read(name: str) -> Tensor:
            rows = state[name][:1] if files is None else files.read_first_row(name)
            return rows.to(DTYPES[self.dtype])

        return sample_weights(read, self.decoder.num_layers)

    def _reader(self) -> Callable[[str], Tensor]:
        """Gives tensors of the dense model by name."""
        files, model = self.files, self.model
        if files is None:
            return lambda name: model.get_parameter(name).detach()
        return lambda name: files.read(name).to(DTYPES[self.dtype])


def load_for_pruning(config: ScoringConfig, source: ModelSource, device: str) -> LoadedModel:
    """Load the dense model, or open its files with ``--offload``."""
    if config.offload:
        return LoadedModel(*load_offloaded(source, config.dtype, device), config.dtype)
    return LoadedModel(Decoder(load_dense(source, config.dtype, device)), None, config.dtype)
