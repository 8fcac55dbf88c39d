"""Mixtures of experts: their parts in a layer, and the matrices that checkpoint files store them as.

A layer holds the weights of all its experts in two parameters, and files store three matrices per expert.

E experts | k experts per token | N tokens | H hidden | M width of an expert
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Names in a layer: the router's weight is [E, H], ``gate_up_proj`` [E, 2M, H] and ``down_proj`` [E, H, M], or both
#: transposed; some have biases.
ROUTER, EXPERTS = "mlp.gate", "mlp.experts"
GATE_UP, DOWN = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"
GATE_UP_BIAS, DOWN_BIAS = f"{GATE_UP}_bias", f"{DOWN}_bias"
#: Names that families give the router.
ROUTERS = (ROUTER, "mlp.router")
#: Everything that leaves with an expert: rows of the router, matrices of the two parameters, their biases.
EXPERT_PARTS = (*ROUTERS, GATE_UP, DOWN, GATE_UP_BIAS, DOWN_BIAS)
#: An expert that all tokens of some families reach; it leaves with the last of the others.
SHARED_EXPERT = "mlp.shared_expert"
SHARED_DOWN = f"{SHARED_EXPERT}.down_proj"


@dataclass(frozen=True)
class ExpertNames:
    """Names of a family: of the block and the three matrices of an expert in its files, and of an expert's width.

    ``width`` is the key of the config. ``stacked``: files hold the parameters of a layer as they are, transposed and
    with gate and up interleaved, so that channels inside experts do not leave.
    """

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    width: str = "intermediate_size"
    stacked: bool = False


def has_experts(layer: Any) -> bool:
    """Return whether the MLP of a layer is a mixture of experts."""
    return hasattr(layer.mlp, "experts")


def kind_of_mlp(layer: Any) -> str:
    """Return the kind of the groups that the MLP of a layer consists of."""
    return "expert" if has_experts(layer) else "mlp"


def has_expert_layers(model: nn.Module) -> bool:
    """Return whether any layer of a model is a mixture of experts, whatever its family."""
    return any(name.endswith(".experts") for name, _ in model.named_modules())


def expert_macs_per_token(model: nn.Module) -> int:
    """Count the multiply-accumulates of routers and of the experts that a token uses."""
    found = 0
    for name, module in model.named_modules():
        if name.endswith(f".{EXPERTS}"):
            router = router_of(model.get_submodule(name.removesuffix(f".{EXPERTS}")))
            per_expert = sum(parameter[0].numel() for parameter in module.parameters() if parameter.ndim == 3)
            found += router.weight.numel() + router.top_k * per_expert
    return found


def expert_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that experts own a part of, by name; the first dimension is E.

    The router is called ``ROUTER`` in all families, and its bias, if it has one, ``ROUTER + ".bias"``.
    """
    experts, router = layer.get_submodule(EXPERTS), router_of(layer)
    named = {
        ROUTER: router.weight,
        GATE_UP: experts.gate_up_proj,
        DOWN: experts.down_proj,
        f"{ROUTER}.bias": getattr(router, "bias", None),
        GATE_UP_BIAS: getattr(experts, "gate_up_proj_bias", None),
        DOWN_BIAS: getattr(experts, "down_proj_bias", None),
    }
    return {name: parameter for name, parameter in named.items() if parameter is not None}


def router_of(layer: Any) -> Any:
    """Return the router of a layer, whatever its name."""
    return next(found for name in ROUTERS if (found := getattr(layer.mlp, name.removeprefix("mlp."), None)) is not None)


def expert_width(experts: Any) -> int:
    """Return the number of channels of every expert of a layer."""
    return int(experts.down_proj.shape[1 if _is_transposed(experts) else 2])


def as_linear(experts: Any, matrix: Tensor) -> Tensor:
    """Return a matrix of one expert, or a tensor of its shape, as that of a Linear: [2M, H] or [H, M]."""
    return matrix.T if _is_transposed(experts) else matrix


def _is_transposed(experts: Any) -> bool:
    return bool(getattr(experts, "is_transposed", False))


def inner_of(experts: Any, index: int, hidden_NH: Tensor) -> Tensor:
    """Return the input of an expert's down projection for some tokens, [N, M]."""
    from torch.nn.functional import linear

    bias = getattr(experts, "gate_up_proj_bias", None)
    both = linear(hidden_NH, as_linear(experts, experts.gate_up_proj[index]), None if bias is None else bias[index])
    if not hasattr(experts, "act_fn"):
        return cast("Tensor", experts._apply_gate(both))
    gate, up = both.chunk(2, dim=-1)
    return cast("Tensor", experts.act_fn(gate) * up)


def outer_of(experts: Any, index: int, inner_NM: Tensor) -> Tensor:
    """Return the output of an expert's down projection, [N, H]."""
    from torch.nn.functional import linear

    bias = getattr(experts, "down_proj_bias", None)
    return linear(inner_NM, as_linear(experts, experts.down_proj[index]), None if bias is None else bias[index])


def take_channels(name: str, tensor: Tensor, channels_EW: Tensor) -> Tensor:
    """Return the channels of every expert in one of the two parameters, another choice for each.

    Args:
        name: ``GATE_UP`` or ``DOWN``.
        tensor: [E, 2M, H] or [E, H, M].
        channels_EW: the indices, int64 [E, W].
    """
    index, dim = _channel_index(name, tensor.shape[1] // 2, channels_EW.to(tensor.device))
    return tensor.take_along_dim(index, dim)


def put_channels(name: str, whole: Tensor, channels_EW: Tensor, tensor: Tensor) -> Tensor:
    """Set the channels of every expert in one of the two parameters; the inverse of ``take_channels``, in place."""
    index, dim = _channel_index(name, whole.shape[1] // 2, channels_EW.to(whole.device))
    return whole.scatter_(dim, index.expand_as(tensor), tensor)


def _channel_index(name: str, width: int, channels_EW: Tensor) -> tuple[Tensor, int]:
    """Return the rows of gate and up projections, or the columns of down projections, and their dimension."""
    import torch

    if name == DOWN:
        return channels_EW[:, None, :], 2
    return torch.cat([channels_EW, channels_EW + width], dim=1)[:, :, None], 1


@dataclass(frozen=True)
class RoutedCall:
    """The arguments of one call of the experts of a layer: tokens [N, H], their experts and weights [N, k]."""

    hidden: Tensor
    experts: Tensor
    weights: Tensor

    def of_expert(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the tokens that reach an expert, and their weights for it, [n] each."""
        rows, places = (self.experts == index).nonzero(as_tuple=True)
        return rows, self.weights[rows, places]


@contextmanager
def watch_experts(layer: nn.Module, observe: Callable[[Any, RoutedCall], None]) -> Iterator[None]:
    """Call ``observe(experts, call)`` before every forward of the experts of a layer, if it has any."""
    if not has_experts(layer):
        yield
        return
    handle = layer.get_submodule(EXPERTS).register_forward_pre_hook(
        lambda module, args: observe(module, RoutedCall(*args))
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watch_expert_outputs(layer: nn.Module, observe: Callable[[Any, RoutedCall, Tensor], None]) -> Iterator[None]:
    """Call ``observe(experts, call, output)`` after every forward of the experts of a layer, if it has any."""
    if not has_experts(layer):
        yield
        return
    handle = layer.get_submodule(EXPERTS).register_forward_hook(
        lambda module, args, output: observe(module, RoutedCall(*args), output)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def with_channels(layer: nn.Module, kept: Sequence[int], channels: Sequence[Sequence[int]]) -> Iterator[None]:
    """Let some experts of a layer use only the given channels, each its own; without any, they use all.

    The down projection of the layer is replaced by one with zeros meanwhile.
    """
    import torch

    if not channels:
        yield
        return
    experts: Any = layer.get_submodule(EXPERTS)
    dense = experts.down_proj
    mask_EM = torch.zeros(len(dense), dense.shape[2])
    mask_EM[torch.tensor(kept)] = mask_EM[torch.tensor(kept)].scatter(1, torch.tensor(channels), 1.0)
    experts.down_proj = torch.nn.Parameter(dense * mask_EM[:, None].to(dense), requires_grad=False)
    try:
        yield
    finally:
        experts.down_proj = dense


@contextmanager
def routed_among(layer: nn.Module, kept: Sequence[int]) -> Iterator[None]:
    """Let the router of a layer choose among the kept experts alone, as if the logits of all others were -inf.

    Its parameters keep their shapes outside of its forward, so that gradients are those of the dense ones.
    """
    import torch

    router = router_of(layer)
    kept_E = torch.tensor(kept, dtype=torch.int64)

    forward = router.forward

    def route(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dense = dict(router.named_parameters())
        for name, parameter in dense.items():
            del router._parameters[name]
            setattr(router, name, parameter.index_select(0, kept_E.to(parameter.device)))
        try:
            logits, weights_NK, chosen_NK = forward(hidden)
        finally:
            for name, parameter in dense.items():
                delattr(router, name)
                router._parameters[name] = parameter
        return logits, weights_NK, kept_E.to(chosen_NK.device)[chosen_NK]

    router.forward = route
    try:
        yield
    finally:
        del router.forward
