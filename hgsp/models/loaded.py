"""A dense model loaded for pruning: in memory, or in files that are read layer by layer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hgsp.models.decoder import Decoder
from hgsp.models.identity import WeightsIdentity, weights_identity
from hgsp.models.loading import DTYPES, ModelSource, load_dense
from hgsp.models.offload import SafetensorFiles, load_offloaded
from hgsp.models.stored_tensors import stored_dtype

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A dense model to score and to prune; ``files`` is None if its weights are in memory.

    ``dtype`` is the name of the dtype its weights are used in, wherever they come from.
    """

    decoder: Decoder
    files: SafetensorFiles | None
    dtype: str

    @property
    def model(self) -> Any:
        return self.decoder.model

    @cached_property
    def identity(self) -> WeightsIdentity:
        """The hashes of all weights; the first access reads each of them once."""
        return weights_identity((name for name, _ in self.model.named_parameters()), self.read)

    def read(self, name: str) -> Tensor:
        """Return a parameter of the dense model in ``dtype``."""
        if self.files is None:
            return self.model.get_parameter(name).detach()
        return self.files.read(name).to(DTYPES[self.dtype])

    def read_first_row(self, name: str) -> Tensor:
        """Return the first row of a weight matrix, [1, I], in ``dtype``."""
        if self.files is None:
            return self.read(name)[:1]
        return self.files.read_first_row(name).to(DTYPES[self.dtype])


def load_for_pruning(source: ModelSource, dtype: str, device: str | None, *, offload: bool = False) -> LoadedModel:
    """Load the dense model; with ``offload``, its embeddings and head alone.

    Args:
        dtype: a key of ``DTYPES``.

    Raises:
        InputError: as ``load_dense`` and ``load_offloaded``.
    """
    stored = stored_dtype(source.name, source.config.dtype)
    if dtype in ("bfloat16", "float16") and stored in (torch.float32, torch.float16) and stored != DTYPES[dtype]:
        stored_name = str(stored).removeprefix("torch.")
        LOG.info("weights stored in %s are rounded to %s; --dtype %s keeps them", stored_name, dtype, stored_name)
    if offload:
        return LoadedModel(*load_offloaded(source, dtype, device), dtype)
    return LoadedModel(Decoder(load_dense(source, dtype, device)), None, dtype)
