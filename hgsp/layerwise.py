"""Walks the decoder one layer at a time, forward and backward. The only place that knows how a layer is called.

Only layer-boundary activations survive between layers, so that one layer's gradients are all that exists at a time; the
result is that of the whole graph, because every layer is called with exactly the arguments the model gives it.

N sequences | T tokens | H hidden | L layers | V vocab
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hgsp.boundaries import Boundaries
from hgsp.errors import InputError, NumericalError, not_finite

#: The head's logits are computed for at most this many values at a time (256 MiB in float32).
MAX_LOGITS = 1 << 26


#: From last hidden states [B, T, H] and the rows they belong to, to the loss of each sequence [B] and its gradient.
Objective = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


class LayerSource(Protocol):
    """Where the weights of a layer come from: memory, or files read when the layer is needed."""

    def layer(self, index: int) -> AbstractContextManager[nn.Module]: ...


class ResidentLayers:
    """Layers whose weights are in memory already."""

    def __init__(self, model: Any) -> None:
        refuse_missing_weights(model)
        self._layers = model.model.layers

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        yield self._layers[index]


def refuse_missing_weights(model: nn.Module) -> None:
    """Refuse a model that accelerate did not load whole.

    Raises:
        InputError: some weights are on disk or on the meta device.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            expected="all weights in memory",
            got="weights that accelerate put on disk or left on the meta device",
            remedy="use --offload, which reads one layer at a time, or free memory",
        )


class _FirstLayerReachedError(Exception):
    """Carries the arguments of the first decoder layer out of the model's own forward."""

    def __init__(self, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        self.hidden, self.kwargs = hidden, kwargs


class Decoder:
    """A causal LM as embeddings, a sequence of layers, and a head with a loss.

    The arguments of a layer (mask, rotary tables, positions) are taken from the model's own forward, whatever the
    attention implementation and the transformers version make of them.
    """

    def __init__(self, model: Any, layers: LayerSource | None = None) -> None:
        self.model = model
        self.num_layers = len(model.model.layers)
        self._source = layers or ResidentLayers(model)
        self._kwargs_by_shape: dict[torch.Size, dict[str, Any]] = {}

    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        return self._source.layer(index)

    @torch.no_grad()
    def embed(self, input_ids_BT: Tensor) -> Tensor:
        """Hidden states that enter the first layer, [B, T, H]."""
        hidden, self._kwargs_by_shape[input_ids_BT.shape] = self._first_layer_call(input_ids_BT)
        return hidden

    def call(self, module: nn.Module, hidden_BTH: Tensor) -> Tensor:
        """Hidden states after one layer, [B, T, H]. ``embed`` must have seen a batch of this shape."""
        output = module(hidden_BTH, **self._kwargs_by_shape[hidden_BTH.shape[:2]])
        return output[0] if isinstance(output, tuple) else output

    def call_block(self, module: nn.Module, kind: str, hidden_BTH: Tensor) -> Tensor:
        """The residual stream after the ``attention`` or ``mlp`` block of a layer; unchanged where the layer has none.

        Both blocks in turn are ``call``. The layer may be a pruned one: it is called with the same arguments.
        """
        layer: Any = module
        if kind == "mlp":
            return (
                hidden_BTH if layer.mlp is None else hidden_BTH + layer.mlp(layer.post_attention_layernorm(hidden_BTH))
            )
        if layer.self_attn is None:
            return hidden_BTH
        arguments = _on_device(self._kwargs_by_shape[hidden_BTH.shape[:2]], hidden_BTH.device)
        return hidden_BTH + layer.self_attn(hidden_states=layer.input_layernorm(hidden_BTH), **arguments)[0]

    def loss_and_gradient(
        self, hidden_BTH: Tensor, input_ids_BT: Tensor, label_seeds: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Next-token loss of every sequence and its gradient with respect to the last hidden states.

        The loss is the SUM of the negative log-likelihoods of a sequence's T-1 predictions in nats, [B] float64; the
        gradient has the dtype of the hidden states, [B, T, H]. Logits exist for a few positions at a time. With a seed
        for every sequence, its labels are drawn from the model's own distributions instead of being the text's.
        """
        head = self.model.lm_head
        gradient = torch.zeros_like(hidden_BTH)
        loss = torch.zeros(len(hidden_BTH), dtype=torch.float64)
        positions = max(1, MAX_LOGITS // head.weight.shape[0])
        for row in range(len(hidden_BTH)):
            targets = input_ids_BT[row, 1:].to(head.weight.device)
            generator = None
            if label_seeds is not None:
                generator = torch.Generator(head.weight.device).manual_seed(label_seeds[row])
            for chunk in torch.arange(len(targets)).split(positions):
                last = hidden_BTH[row, chunk].detach().to(head.weight.device).requires_grad_()
                with torch.enable_grad():
                    logits = head(self.model.model.norm(last))
                    labels = targets[chunk] if generator is None else _drawn(logits, generator)
                    nll = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
                (gradient[row, chunk],) = (g.to(gradient) for g in torch.autograd.grad(nll, last))
                loss[row] += nll.item()
        return loss, gradient

    def _first_layer_call(self, input_ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            raise _FirstLayerReachedError(hidden, {**kwargs, "use_cache": False, "past_key_values": None})

        handle = self.model.model.layers[0].register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            self.model.model(input_ids.to(self.model.model.embed_tokens.weight.device), use_cache=False)
        except _FirstLayerReachedError as reached:
            return reached.hidden, reached.kwargs
        finally:
            handle.remove()
        raise AssertionError("the model's forward never reached its first layer")


def _drawn(logits_TV: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each distribution, [T]."""
    return torch.multinomial(logits_TV.detach().float().softmax(-1), 1, generator=generator).squeeze(1)


@dataclass
class ForwardPass:
    """One layer on its way forward. ``run`` computes every batch; hooks set on ``module`` before see them all."""

    index: int
    module: nn.Module
    run: Callable[[], None]


@dataclass
class BackwardPass:
    """One layer on its way back. ``run(parameters)`` yields, per batch, the gradients of those parameters.

    They are gradients of the SUM of the batch's losses (nats), in the parameters' dtype.
    """

    index: int
    module: nn.Module
    run: Callable[[Sequence[nn.Parameter]], Iterator[tuple[Tensor, ...]]]


@dataclass
class LayerWalk:
    """One trip over the calibration sequences: ``forward`` to the end, then, if wanted, ``backward`` to the start.

    Args:
        decoder: the model.
        input_ids: calibration tokens, int64 [N, T], no padding.
        batch_size: sequences per call of a layer.
        keep_boundaries: needed for ``backward``.
        checkpointing: keep only every sqrt(L)-th boundary and compute the others again: less memory, one more forward.
        spill_dir: folder for boundaries on disk; None keeps them in CPU memory.
    """

    decoder: Decoder
    input_ids: Tensor
    batch_size: int
    keep_boundaries: bool = False
    checkpointing: bool = False
    spill_dir: Path | None = None
    losses: Tensor = field(init=False)
    _boundaries: Boundaries = field(init=False)

    def __post_init__(self) -> None:
        weight = self.decoder.model.model.embed_tokens.weight
        num_sequences, seq_len = self.input_ids.shape
        self.losses = torch.zeros(num_sequences, dtype=torch.float64)
        self._boundaries = Boundaries((num_sequences, seq_len, weight.shape[1]), weight.dtype, self.spill_dir)
        self._stride = math.isqrt(self.decoder.num_layers) if self.checkpointing else 1

    def __enter__(self) -> LayerWalk:
        return self

    def __exit__(self, *_: object) -> None:
        self._boundaries.close()

    @property
    def batches(self) -> list[slice]:
        starts = range(0, len(self.input_ids), self.batch_size)
        return [slice(start, min(start + self.batch_size, len(self.input_ids))) for start in starts]

    def forward(self) -> Iterator[ForwardPass]:
        """Yield every layer in order. The caller must call ``run`` once before asking for the next."""
        first = self._boundaries.open(0)
        for batch in self.batches:
            first[batch] = self.decoder.embed(self.input_ids[batch]).to(first)
            if not first[batch].isfinite().all():
                raise NumericalError("what enters the first layer is not finite: look at the embeddings")
        for index in range(self.decoder.num_layers):
            yield from self._forward_layer(index)
            if not (self.keep_boundaries and index % self._stride == 0):
                self._boundaries.drop(index)

    def _forward_layer(self, index: int) -> Iterator[ForwardPass]:
        entering, leaving = self._boundaries.open(index), self._boundaries.open(index + 1)
        with self.decoder.layer(index) as module:

            @torch.no_grad()
            def run() -> None:
                for batch in self.batches:
                    hidden = entering[batch].to(_device_of(module))
                    leaving[batch] = self.decoder.call(module, hidden).to(leaving)
                    if not leaving[batch].isfinite().all():
                        raise self._overflow(index, module, hidden)

            yield ForwardPass(index, module, run)

    def last(self) -> Tensor:
        """Hidden states after the last layer, [N, T, H], once ``forward`` was exhausted."""
        return self._boundaries.open(self.decoder.num_layers)

    def backward(self, objective: Objective | None = None) -> Iterator[BackwardPass]:
        """Yield every layer from the last to the first, after ``forward`` was exhausted.

        The caller must exhaust ``run`` before asking for the next layer. Fills ``losses`` [N] (nats, token sums) with
        the values of the objective: unless one is given, the next-token loss.
        """
        objective = objective or self._next_token_loss
        upstream = torch.empty_like(self._boundaries.open(0))
        last = self.last()
        for batch in self.batches:
            self.losses[batch], upstream[batch] = objective(last[batch], batch)
        if not self.losses.isfinite().all():
            raise NumericalError(
                "the calibration loss is not finite although every layer's output is: look at the final norm and the "
                "head, or use --dtype bfloat16"
            )
        self._boundaries.drop(self.decoder.num_layers)
        for index in reversed(range(self.decoder.num_layers)):
            if index not in self._boundaries:
                self._recompute_up_to(index)
            yield from self._backward_layer(index, upstream)
            self._boundaries.drop(index)

    def _next_token_loss(self, hidden_BTH: Tensor, batch: slice) -> tuple[Tensor, Tensor]:
        return self.decoder.loss_and_gradient(hidden_BTH, self.input_ids[batch])

    def _recompute_up_to(self, index: int) -> None:
        for earlier in range(index - index % self._stride, index):
            for layer_pass in self._forward_layer(earlier):
                layer_pass.run()

    def _backward_layer(self, index: int, upstream: Tensor) -> Iterator[BackwardPass]:
        entering = self._boundaries.open(index)
        with self.decoder.layer(index) as module:

            def run(parameters: Sequence[nn.Parameter]) -> Iterator[tuple[Tensor, ...]]:
                for batch in self.batches:
                    hidden = entering[batch].to(_device_of(module)).detach().requires_grad_()
                    with torch.enable_grad():  # not around the yield, where it would hold for the caller too
                        output = self.decoder.call(module, hidden)
                    grads = torch.autograd.grad(output, [hidden, *parameters], upstream[batch].to(output))
                    upstream[batch] = grads[0].to(upstream)
                    yield grads[1:]

            yield BackwardPass(index, module, run)

    def _overflow(self, index: int, module: nn.Module, hidden_BTH: Tensor) -> NumericalError:
        """Run a layer whose output is not finite once more to find the first weight or projection that is not."""
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


def weight_not_finite(module: nn.Module) -> str | None:
    """The first submodule with a weight or bias that is NaN or infinite, by its name."""
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            return name.rpartition(".")[0]
    return None


def _on_device(value: Any, device: torch.device) -> Any:
    """Tensors, also in tuples and dicts, moved; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_on_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _on_device(item, device) for key, item in value.items()}
    return value


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
