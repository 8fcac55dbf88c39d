"""The dense model with a plan's groups masked, and the gradients of the masks.

K kv groups | M mlp width | E experts | G groups of one block | B batch | T tokens | I inputs of an output projection
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hgsp.models.blocks import KINDS, OUTPUT_PROJECTIONS
from hgsp.models.decoder import Decoder
from hgsp.models.experts import (
    EXPERTS,
    SHARED_EXPERT,
    RoutedCall,
    has_experts,
    routed_among,
    watch_experts,
    with_channels,
)
from hgsp.models.geometry import Geometry
from hgsp.models.linear_attention import LINEAR_ATTENTION, has_linear_attention
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.scoring.expert_statistics import watch_mask_gradients
from hgsp.scoring.groups import ATTENTION, MLP


class MaskedLayers:
    """Layers of ``dense`` that compute what the pruned layers compute: dropped groups are masked with 0, others with 1.

    The router chooses among the kept experts alone, as that of the pruned layer, and those lack the channels that they
    lose. A backward pass adds to ``gradients``:
    (layer, block) -> gradient of the masks, float32 [K], [M] or [E], summed over tokens, of dropped groups too; those
    of dropped experts, which no token reaches, are 0.
    """

    def __init__(self, dense: Decoder, geometry: Geometry, plan: PrunePlan) -> None:
        self._dense, self._geometry, self._plan = dense, geometry, plan
        self.gradients: dict[tuple[int, int], Tensor] = {}

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with self._dense.layer(index) as module, ExitStack() as masks:
            for block, name in enumerate(OUTPUT_PROJECTIONS.values()):
                if block == MLP and has_experts(module):
                    masks.enter_context(self._masked_experts(index, module))
                elif block == ATTENTION and has_linear_attention(module):
                    masks.enter_context(self._masked_linear_attention(index, module))
                else:
                    masks.enter_context(self._masked_columns(index, block, module.get_submodule(name)))
            yield module

    @contextmanager
    def _masked_columns(self, index: int, block: int, projection: Any) -> Iterator[None]:
        mask_I = self._mask(self._plan.layers[index], block, projection)
        handles = [projection.register_forward_pre_hook(self._hook(index, block, mask_I))]
        if not mask_I.any():  # else the bias of a removed block would stay
            handles.append(projection.register_forward_hook(lambda _module, _args, output: output * 0))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _masked_linear_attention(self, index: int, module: nn.Module) -> Iterator[None]:
        if self._plan.layers[index].linear_attention:
            yield
            return
        projection = module.get_submodule(LINEAR_ATTENTION.output_projection)
        handle = projection.register_forward_hook(lambda _module, _args, output: output * 0)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _masked_experts(self, index: int, module: nn.Module) -> Iterator[None]:
        keep = self._plan.layers[index]
        kept = keep.experts

        def observe(experts: Any, call: RoutedCall) -> None:
            if call.weights.requires_grad:
                watch_mask_gradients(experts, call, lambda gradient_NE: self._add(index, MLP, gradient_NE.sum(0).cpu()))

        if not kept:
            parts = [part for name, part in module.named_modules() if name in (EXPERTS, SHARED_EXPERT)]
            handles = [part.register_forward_hook(lambda _module, _args, output: output * 0) for part in parts]
            try:
                with watch_experts(module, observe):
                    yield
            finally:
                for handle in handles:
                    handle.remove()
        else:
            with (
                watch_experts(module, observe),
                routed_among(module, kept),
                with_channels(module, kept, keep.expert_channels),
            ):
                yield

    def _add(self, index: int, block: int, gradient_G: Tensor) -> None:
        earlier = self.gradients.get((index, block))
        self.gradients[index, block] = gradient_G if earlier is None else earlier + gradient_G

    def _mask(self, keep: LayerKeep, block: int, projection: nn.Linear) -> Tensor:
        """Return 1 for the input columns of kept groups and 0 for the others, [I]."""
        columns = self._geometry.columns_per_group(KINDS[block])
        kept = torch.tensor(keep.mlp_channels if block == MLP else keep.kv_groups, dtype=torch.int64)
        mask_G = torch.zeros(projection.in_features // columns).index_fill_(0, kept, 1.0)
        return mask_G.repeat_interleave(columns).to(projection.weight)

    def _hook(self, index: int, block: int, mask_I: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
        columns = self._geometry.columns_per_group(KINDS[block])

        def apply_mask(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            input_BTI = args[0]
            masked_BTI = input_BTI * mask_I

            def add_gradient(gradient_BTI: Tensor) -> None:
                gradient_I = (input_BTI.detach().float() * gradient_BTI.float()).sum((0, 1))
                self._add(index, block, gradient_I.unflatten(0, (-1, columns)).sum(1).cpu())

            if masked_BTI.requires_grad:
                masked_BTI.register_hook(add_gradient)
            return (masked_BTI,)

        return apply_mask
