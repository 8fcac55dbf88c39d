"""The dense model as a plan leaves it, in the dense model's own shapes, so that it can be scored again.

Rows and columns that the plan drops are zero, reconstructed tensors stand where they were cut from. Such a layer
computes what the pruned one computes, and every group keeps its place in the table; what was dropped has an importance
of exactly 0 with every method that looks at weights or activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from hgsp.models.decoder import Decoder
from hgsp.pruning.surgery import Surgery


class ZeroPaddedLayers:
    """Layers of ``dense`` with the tensors that ``surgery`` gives the pruned model, for as long as each is in use."""

    def __init__(self, dense: Decoder, surgery: Surgery) -> None:
        self._dense, self._surgery = dense, surgery

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with self._dense.layer(index) as module:
            own = {name: parameter.detach() for name, parameter in module.named_parameters()}
            _put(module, self._surgery.widened(index, own))
            try:
                yield module
            finally:
                _put(module, {**dict.fromkeys(self._surgery.added_biases), **own})


def zero_padded_decoder(dense: Decoder, surgery: Surgery) -> Decoder:
    """A decoder that computes what the pruned model computes; the dense one is read, and whole again between layers."""
    return Decoder(dense.model, ZeroPaddedLayers(dense, surgery))


def _put(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> None:
    """Let the layer have these parameters under these names; None takes a bias away."""
    for name, tensor in tensors.items():
        owner, _, own_name = name.rpartition(".")
        parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
        setattr(module.get_submodule(owner), own_name, parameter)
