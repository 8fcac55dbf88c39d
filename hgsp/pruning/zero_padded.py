"""The dense model as a plan leaves it, in the dense model's own shapes, so that it can be scored again.

Rows and columns that the plan drops are zero, reconstructed tensors stand where they were cut from. Such a layer
computes what the pruned one computes, and every group keeps its place in the table; what was dropped has an importance
of exactly 0 with every method that looks at weights or activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from hgsp.models.decoder import Decoder
from hgsp.pruning.surgery import Surgery


class ZeroPaddedLayers:
    """Layers of ``dense`` with the tensors that ``surgery`` gives the pruned model, for as long as each is in use."""

    def __init__(self, dense: Decoder, surgery: Surgery) -> None:
        self._dense, self._surgery = dense, surgery

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with self._dense.layer(index) as module:
            dense = dict(module.named_parameters())
            padded = self._surgery.widened(index, {name: parameter.detach() for name, parameter in dense.items()})
            _put(module, {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in padded.items()})
            try:
                yield module
            finally:
                _put(module, {name: dense.get(name) for name in padded})


def zero_padded_decoder(dense: Decoder, surgery: Surgery) -> Decoder:
    """A decoder that computes what the pruned model computes; the dense one is read, and whole again between layers."""
    return Decoder(dense.model, ZeroPaddedLayers(dense, surgery))


def _put(module: nn.Module, parameters: Mapping[str, nn.Parameter | None]) -> None:
    """Set parameters of a layer by name; None removes a bias."""
    for name, parameter in parameters.items():
        owner, _, own_name = name.rpartition(".")
        setattr(module.get_submodule(owner), own_name, parameter)
