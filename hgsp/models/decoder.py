"""The decoder as layers that are called one at a time; the only module that knows how a layer is called.

B batch | T tokens | H hidden | V vocab
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hgsp.models.families import LINEAR, family_of
from hgsp.models.linear_attention import attention_of, block_of, has_linear_attention
from hgsp.models.modeling_hgsp import added_to_stream, residual_block
from hgsp.models.weight_checks import refuse_missing_weights

#: Logits computed at a time: 256 MiB in float32.
MAX_LOGITS = 1 << 26


class LayerSource(Protocol):
    """A source of decoder layers: memory, or files that are read when a layer is needed."""

    def layer(self, index: int) -> AbstractContextManager[nn.Module]: ...


class ResidentLayers:
    """Layers whose weights are in memory.

    Raises:
        InputError: some weights are on disk or on the meta device.
    """

    def __init__(self, model: Any) -> None:
        refuse_missing_weights(model)
        self._layers = model.model.layers

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        yield self._layers[index]


class _Recorder(nn.Module):
    """A layer that computes nothing and keeps the arguments that the model's own forward gives it."""

    hidden: Tensor
    kwargs: dict[str, Any]

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.mask_kind = mask_kind_of(layer)
        self.attention_type = getattr(layer, "attention_type", None)  # read by models of transformers before 5.2

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        self.hidden, self.kwargs = hidden_states, {**kwargs, "use_cache": False, "past_key_values": None}
        return hidden_states


class Decoder:
    """A causal LM as embeddings, a sequence of layers, and a head with a loss.

    The arguments of a layer (mask, rotary tables, positions) are captured from the model's own forward, so that they
    are right for every attention implementation and version of transformers.

    Args:
        model: a causal LM of a supported family, dense or pruned.
        layers: where layers come from; by default the model's own, in memory.
    """

    def __init__(self, model: Any, layers: LayerSource | None = None) -> None:
        self.model = model
        self.family = family_of(model.config)
        self.num_layers = len(model.model.layers)
        self._source = layers or ResidentLayers(model)
        self._calls: dict[torch.Size, dict[Any, dict[str, Any]]] = {}

    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """Return a context in which one layer has its weights."""
        return self._source.layer(index)

    @torch.no_grad()
    def embed(self, input_ids_BT: Tensor) -> Tensor:
        """Return the hidden states [B, T, H] that enter the first layer."""
        recorders = [_Recorder(layer) for layer in self.model.model.layers]
        layers, self.model.model.layers = self.model.model.layers, nn.ModuleList(recorders)
        try:
            self.model.model(input_ids_BT.to(self.embedding.weight.device), use_cache=False)
        finally:
            self.model.model.layers = layers
        self._calls[input_ids_BT.shape] = {recorder.mask_kind: recorder.kwargs for recorder in recorders}
        return recorders[0].hidden

    def call(self, module: nn.Module, hidden_BTH: Tensor) -> Tensor:
        """Run one layer on [B, T, H], a shape that ``embed`` has seen; return the hidden states after it."""
        output = module(hidden_BTH, **self._arguments(module, hidden_BTH))
        return output[0] if isinstance(output, tuple) else output

    def call_block(self, module: nn.Module, kind: str, hidden_BTH: Tensor) -> Tensor:
        """Run one block of a layer, dense or pruned, on the residual stream [B, T, H]; return the stream after it.

        Running both kinds in turn equals ``call``. The stream is unchanged if the layer has no such block.
        """
        arguments = self.block_arguments(module, kind, hidden_BTH)
        return residual_block(module, block_of(module, kind, self.family).parts, hidden_BTH, **arguments)

    def block_arguments(self, module: nn.Module, kind: str, hidden_BTH: Tensor) -> dict[str, Any]:
        """Return what a block of a layer is called with besides hidden states [B, T, H]: nothing if it is an MLP."""
        if kind != "attention":
            return {}
        arguments = _on_device(self._arguments(module, hidden_BTH), hidden_BTH.device)
        if has_linear_attention(module):  # without positions, which the layer itself does not pass on either
            return {"attention_mask": arguments["attention_mask"]}
        return arguments

    def add_output(self, module: nn.Module, kind: str, stream_BTH: Tensor, output_BTH: Tensor) -> None:
        """Add the output of a layer's output projection [B, T, H] to the residual stream, in place.

        Norms and multipliers behind the projection, if the family has any, are applied first.
        """
        stream_BTH += added_to_stream(module, block_of(module, kind, self.family).parts, output_BTH).to(stream_BTH)

    @property
    def residual_multiplier(self) -> float | None:
        """The factor on what every block adds to the residual stream, None in families without one."""
        key = self.family.residual_multiplier
        return None if key is None else float(getattr(self.model.config, key))

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
        config, family = self.model.config, self.family
        if family.logit_divisor is not None:
            logits = logits / getattr(config, family.logit_divisor)
        bound = None if family.logit_softcap is None else getattr(config, family.logit_softcap)
        return logits if bound is None else bound * torch.tanh(logits / bound)

    def loss_and_gradient(
        self, hidden_BTH: Tensor, input_ids_BT: Tensor, label_seeds: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the next-token loss of every sequence and its gradient at the last hidden states.

        Args:
            hidden_BTH: hidden states after the last layer.
            input_ids_BT: the text; position t predicts token t+1.
            label_seeds: one seed per sequence, to sample its labels from the model instead of taking the text's.

        Returns:
            The loss [B] float64, SUMMED over the T-1 predictions, in nats, and its gradient [B, T, H] in the dtype of
            the hidden states.
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
                    labels = targets[chunk] if generator is None else _sample(logits, generator)
                    nll = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
                (gradient[row, chunk],) = (g.to(gradient) for g in torch.autograd.grad(nll, last))
                loss[row] += nll.item()
        return loss, gradient

    def _arguments(self, module: nn.Module, hidden_BTH: Tensor) -> dict[str, Any]:
        """Return the arguments of a layer, dense or pruned; those of any other one if it has no attention."""
        by_mask = self._calls[hidden_BTH.shape[:2]]
        return by_mask.get(mask_kind_of(module), next(iter(by_mask.values())))


def mask_kind_of(layer: Any) -> int | str | None:
    """Return the kind of mask of a layer: linear attention, a sliding window, or None; all else is equal."""
    window: int | None = getattr(attention_of(layer), "sliding_window", None)
    return LINEAR if has_linear_attention(layer) else window


def _sample(logits_TV: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token from each distribution, [T]."""
    return torch.multinomial(logits_TV.detach().float().softmax(-1), 1, generator=generator).squeeze(1)


def weight_not_finite(module: nn.Module) -> str | None:
    """Return the name of the first submodule with a NaN or infinite weight or bias; None if all are finite."""
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            return name.rpartition(".")[0]
    return None


@contextmanager
def watch_inputs(modules: Mapping[str, nn.Module], observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``observe(name, input_BTI)`` before every forward of one of the modules."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, args: observe(name, args[0])

    handles = [module.register_forward_pre_hook(hook_for(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_device(value: Any, device: torch.device) -> Any:
    """Move a tensor, or the tensors in nested tuples and dicts; return everything else unchanged."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_on_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _on_device(item, device) for key, item in value.items()}
    return value


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter."""
    return next(module.parameters()).device
