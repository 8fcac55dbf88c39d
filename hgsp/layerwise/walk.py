"""Forward and backward passes over calibration text, one layer at a time.

Only hidden states between layers are kept, so that gradients of one layer at a time exist. The results are those of the
whole graph: every layer is called with the arguments that the model gives it.

N sequences | B of them in a batch | T tokens | H hidden | L layers
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from hgsp.errors import NumericalError, not_finite
from hgsp.layerwise.hidden_states import HiddenStateCache
from hgsp.models.decoder import Decoder, device_of, weight_not_finite

#: (last hidden states [B, T, H], their rows in the text) -> loss of each sequence [B], its gradient [B, T, H].
Objective = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


@dataclass
class ForwardPass:
    """The forward pass of one layer. ``run`` computes every batch; hooks on ``module`` that are set before see all."""

    index: int
    module: nn.Module
    run: Callable[[], None]


@dataclass
class BackwardPass:
    """The backward pass of one layer. ``run(parameters)`` yields the gradients of those parameters, batch by batch.

    They are gradients of the SUM of the batch's losses in nats, in the parameters' dtype.
    """

    index: int
    module: nn.Module
    run: Callable[[Sequence[nn.Parameter]], Iterator[tuple[Tensor, ...]]]


@dataclass
class LayerWalk:
    """A pass over the calibration sequences: ``forward``, then optionally ``backward``. Use as a context manager.

    Args:
        decoder: the model.
        input_ids: calibration tokens, int64 [N, T], no padding.
        batch_size: sequences per call of a layer.
        keep_hidden_states: keep those between all layers, as ``backward`` needs.
        checkpointing: keep only those before every sqrt(L)-th layer and recompute the others, for one more forward.
        spill_dir: folder for hidden states on disk; None keeps them in memory.
    """

    decoder: Decoder
    input_ids: Tensor
    batch_size: int
    keep_hidden_states: bool = False
    checkpointing: bool = False
    spill_dir: Path | None = None
    losses: Tensor = field(init=False)
    _hidden_states: HiddenStateCache = field(init=False)

    def __post_init__(self) -> None:
        weight = self.decoder.embedding.weight
        num_sequences, seq_len = self.input_ids.shape
        self.losses = torch.zeros(num_sequences, dtype=torch.float64)
        shape = (num_sequences, seq_len, weight.shape[1])
        self._hidden_states = HiddenStateCache(shape, weight.dtype, self.spill_dir, weight.device)
        self._stride = math.isqrt(self.decoder.num_layers) if self.checkpointing else 1

    def __enter__(self) -> LayerWalk:
        return self

    def __exit__(self, *_: object) -> None:
        self._hidden_states.close()

    @property
    def batches(self) -> list[slice]:
        starts = range(0, len(self.input_ids), self.batch_size)
        return [slice(start, min(start + self.batch_size, len(self.input_ids))) for start in starts]

    def forward(self) -> Iterator[ForwardPass]:
        """Yield every layer in order. The caller must call ``run`` once before the next.

        Raises:
            NumericalError: hidden states are not finite; names the layer and its first weight or output that is not.
        """
        first = self._hidden_states.open(0)
        for batch in self.batches:
            first[batch] = self.decoder.embed(self.input_ids[batch]).to(first)
            if not first[batch].isfinite().all():
                raise NumericalError("the input of the first layer is not finite: check the embeddings")
        for index in range(self.decoder.num_layers):
            yield from self._forward_layer(index)
            if not (self.keep_hidden_states and index % self._stride == 0):
                self._hidden_states.drop(index)

    def _forward_layer(self, index: int) -> Iterator[ForwardPass]:
        entering, leaving = self._hidden_states.open(index), self._hidden_states.open(index + 1)
        with self.decoder.layer(index) as module:

            @torch.no_grad()
            def run() -> None:
                for batch in self.batches:
                    hidden = entering[batch].to(device_of(module))
                    leaving[batch] = self.decoder.call(module, hidden).to(leaving)
                    if not leaving[batch].isfinite().all():
                        raise self._overflow(index, module, hidden)

            yield ForwardPass(index, module, run)

    def last(self) -> Tensor:
        """Return the hidden states [N, T, H] after the last layer, once ``forward`` is exhausted."""
        return self._hidden_states.open(self.decoder.num_layers)

    def backward(self, objective: Objective | None = None) -> Iterator[BackwardPass]:
        """Yield every layer from the last to the first, once ``forward`` is exhausted; sets ``losses`` [N] in nats.

        The caller must exhaust ``run`` before the next layer.

        Args:
            objective: gives the loss of each sequence; by default the next-token loss, summed over tokens.

        Raises:
            NumericalError: a loss is not finite.
        """
        objective = objective or self._next_token_loss
        upstream = torch.empty_like(self._hidden_states.open(0))
        last = self.last()
        for batch in self.batches:
            self.losses[batch], upstream[batch] = objective(last[batch], batch)
        if not self.losses.isfinite().all():
            raise NumericalError(
                "the calibration loss is not finite although every layer's output is: check the final norm and the "
                "head, or use --dtype bfloat16"
            )
        self._hidden_states.drop(self.decoder.num_layers)
        for index in reversed(range(self.decoder.num_layers)):
            if index not in self._hidden_states:
                self._recompute_up_to(index)
            yield from self._backward_layer(index, upstream)
            self._hidden_states.drop(index)

    def _next_token_loss(self, hidden_BTH: Tensor, batch: slice) -> tuple[Tensor, Tensor]:
        return self.decoder.loss_and_gradient(hidden_BTH, self.input_ids[batch])

    def _recompute_up_to(self, index: int) -> None:
        for earlier in range(index - index % self._stride, index):
            for layer_pass in self._forward_layer(earlier):
                layer_pass.run()

    def _backward_layer(self, index: int, upstream: Tensor) -> Iterator[BackwardPass]:
        entering = self._hidden_states.open(index)
        with self.decoder.layer(index) as module:

            def run(parameters: Sequence[nn.Parameter]) -> Iterator[tuple[Tensor, ...]]:
                for batch in self.batches:
                    hidden = entering[batch].to(device_of(module)).detach().requires_grad_()
                    with torch.enable_grad():  # not around the yield, where it would hold for the caller too
                        output = self.decoder.call(module, hidden)
                    grads = torch.autograd.grad(output, [hidden, *parameters], upstream[batch].to(output))
                    upstream[batch] = grads[0].to(upstream)
                    yield grads[1:]

            yield BackwardPass(index, module, run)

    def _overflow(self, index: int, module: nn.Module, hidden_BTH: Tensor) -> NumericalError:
        """Return the error about a layer whose output is not finite, by its first weight or output that is not."""
        culprits = [("weight", weight_not_finite(module))]

        def on_output(name: str, output: Tensor) -> None:
            if not output.isfinite().all():
                culprits.append(("output", name))

        handles = [
            linear.register_forward_hook(lambda _module, _args, output, name=name: on_output(name, output))
            for name, linear in module.named_modules()
            if isinstance(linear, nn.Linear)
        ]
        try:
            self.decoder.call(module, hidden_BTH)
        finally:
            for handle in handles:
                handle.remove()
        what, where = next((what, where) for what, where in [*culprits, ("output", "residual stream")] if where)
        return not_finite(what, index, where)
