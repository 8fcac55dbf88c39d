"""The decoder as layers that can be called one at a time. The only place that knows how a layer is called.

B batch | T tokens | H hidden | V vocab
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hgsp.errors import InputError
from hgsp.models.families import family_of
from hgsp.models.modeling_hgsp import residual_block

#: The head's logits are computed for at most this many values at a time (256 MiB in float32).
MAX_LOGITS = 1 << 26


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
        self.family = family_of(model.config)
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
        """Return the residual stream [B, T, H] after the block of one kind; unchanged if the layer has no such block.

        Both blocks in turn are ``call``. The layer may be a pruned one: it is called with the same arguments.
        """
        block = self.family.blocks[kind]
        arguments = {}
        if kind == "attention":
            arguments = _on_device(self._kwargs_by_shape[hidden_BTH.shape[:2]], hidden_BTH.device)
        return residual_block(getattr(module, block.module), getattr(module, block.norm), hidden_BTH, **arguments)

    @property
    def embedding(self) -> Any:
        return self.model.get_submodule(self.family.embedding)

    @property
    def head(self) -> Any:
        return self.model.get_submodule(self.family.head)

    def logits(self, hidden_BTH: Tensor) -> Tensor:
        """Return next-token logits [..., V] of last hidden states [..., H], on the head's device."""
        head, norm = self.head, self.model.get_submodule(self.family.final_norm)
        logits = head(norm(hidden_BTH.to(head.weight.device)))
        if self.family.logit_softcap is None:
            return logits
        bound = getattr(self.model.config, self.family.logit_softcap)
        return bound * torch.tanh(logits / bound)

    def loss_and_gradient(
        self, hidden_BTH: Tensor, input_ids_BT: Tensor, label_seeds: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Next-token loss of every sequence and its gradient with respect to the last hidden states.

        The loss is the SUM of the negative log-likelihoods of a sequence's T-1 predictions in nats, [B] float64; the
        gradient has the dtype of the hidden states, [B, T, H]. Logits exist for a few positions at a time. With a seed
        for every sequence, its labels are drawn from the model's own distributions instead of being the text's.
        """
        head = self.head
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
                    logits = self.logits(last)
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
            self.model.model(input_ids.to(self.embedding.weight.device), use_cache=False)
        except _FirstLayerReachedError as reached:
            return reached.hidden, reached.kwargs
        finally:
            handle.remove()
        raise AssertionError("the model's forward never reached its first layer")


def _drawn(logits_TV: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each distribution, [T]."""
    return torch.multinomial(logits_TV.detach().float().softmax(-1), 1, generator=generator).squeeze(1)


def weight_not_finite(module: nn.Module) -> str | None:
    """The first submodule with a weight or bias that is NaN or infinite, by its name."""
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            return name.rpartition(".")[0]
    return None


@contextmanager
def watch_inputs(linears: Mapping[str, nn.Linear], observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``observe(name, input)`` whenever one of the Linears runs."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, args: observe(name, args[0])

    handles = [linear.register_forward_pre_hook(hook_for(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_device(value: Any, device: torch.device) -> Any:
    """Tensors, also in tuples and dicts, moved; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_on_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _on_device(item, device) for key, item in value.items()}
    return value


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter lies."""
    return next(module.parameters()).device
