"""The pruned model in the dense model's shapes, with zeros for dropped rows and columns, to be scored again.

Such a layer computes what the pruned layer computes, with reconstructed tensors if there are any, and with a router
that chooses among the kept experts alone. Every group keeps its
row in the group table; a dropped one has importance 0 with every method that reads weights or activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import nn

from hgsp.models.decoder import Decoder
from hgsp.models.experts import routed_among
from hgsp.pruning.surgery import Surgery


class ZeroPaddedLayers:
    """Layers of ``dense`` that hold the zero-padded tensors of ``surgery`` while each is in use."""

    def __init__(self, dense: Decoder, surgery: Surgery) -> None:
        self._dense, self._surgery = dense, surgery

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with self._dense.layer(index) as module:
            dense = dict(module.named_parameters())
            padded = self._surgery.zero_padded(index, {name: weight.detach() for name, weight in dense.items()})
            _set_parameters(
                module, {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in padded.items()}
            )
            kept = self._surgery.plan.layers[index].experts
            try:
                with routed_among(module, kept) if kept else nullcontext():
                    yield module
            finally:
                _set_parameters(module, {name: dense.get(name) for name in padded})


def zero_padded_decoder(dense: Decoder, surgery: Surgery) -> Decoder:
    """Return a decoder that computes what the pruned model computes; between layers the dense one is unchanged."""
    return Decoder(dense.model, ZeroPaddedLayers(dense, surgery))


def _set_parameters(module: nn.Module, parameters: Mapping[str, nn.Parameter | None]) -> None:
    """Set parameters of a layer by name; None removes a bias."""
    for name, parameter in parameters.items():
        owner, _, own_name = name.rpartition(".")
        setattr(module.get_submodule(owner), own_name, parameter)
