"""Mixtures of experts: their parts in a layer, and the matrices that checkpoint files store them as.

A layer holds the weights of all its experts in two parameters, and files store three matrices per expert.

E experts | k experts per token | N tokens | H hidden | M width of an expert
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Names in a layer: the router's weight is [E, H], ``gate_up_proj`` [E, 2M, H] and ``down_proj`` [E, H, M].
ROUTER, EXPERTS = "mlp.gate", "mlp.experts"
GATE_UP, DOWN = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"
#: Everything that leaves with an expert: rows of the router, matrices of the two parameters.
EXPERT_PARTS = (ROUTER, GATE_UP, DOWN)


@dataclass(frozen=True)
class ExpertNames:
    """Names of a family's checkpoint files: of the block, and of the three matrices of an expert in it."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


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
            router: Any = model.get_submodule(f"{name.removesuffix(EXPERTS)}{ROUTER}")
            per_expert = sum(parameter[0].numel() for parameter in module.parameters())
            found += router.weight.numel() + router.top_k * per_expert
    return found


def expert_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that experts own a part of, by the names in ``EXPERT_PARTS``; the first dimension is E."""
    experts: Any = layer.get_submodule(EXPERTS)
    router: Any = layer.get_submodule(ROUTER)
    return {ROUTER: router.weight, GATE_UP: experts.gate_up_proj, DOWN: experts.down_proj}


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
def routed_among(layer: nn.Module, kept: Sequence[int]) -> Iterator[None]:
    """Let the router of a layer choose among the kept experts alone, as if the logits of all others were -inf.

    Its weight keeps its shape outside of its forward, so that gradients are those of the dense parameter.
    """
    import torch

    router: Any = layer.get_submodule(ROUTER)
    kept_E = torch.tensor(kept, dtype=torch.int64)

    forward = router.forward

    def route(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dense = router._parameters.pop("weight")
        router.weight = dense.index_select(0, kept_E.to(dense.device))
        try:
            logits, weights_NK, chosen_NK = forward(hidden)
        finally:
            del router.weight
            router._parameters["weight"] = dense
        return logits, weights_NK, kept_E.to(chosen_NK.device)[chosen_NK]

    router.forward = route
    try:
        yield
    finally:
        del router.forward
