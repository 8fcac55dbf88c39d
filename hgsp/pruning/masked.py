"""The dense model with a plan's groups masked, and the gradients of the masks.

K kv groups | M mlp width | G groups of one block | B batch | T tokens | I inputs of an output projection
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hgsp.models.decoder import Decoder
from hgsp.models.families import KINDS, OUTPUT_PROJECTIONS
from hgsp.models.geometry import Geometry
from hgsp.pruning.plan import LayerKeep, PrunePlan


class MaskedLayers:
    """Layers of ``dense`` that compute what the pruned layers compute: dropped groups are masked with 0, others with 1.

    A backward pass adds to ``gradients``: (layer, kind) -> gradient of the masks, float32 [K] or [M], summed over
    tokens, of dropped groups too.
    """

    def __init__(self, dense: Decoder, geometry: Geometry, plan: PrunePlan) -> None:
        self._dense, self._geometry, self._plan = dense, geometry, plan
        self.gradients: dict[tuple[int, int], Tensor] = {}

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with self._dense.layer(index) as module:
            handles = []
            for kind, name in enumerate(OUTPUT_PROJECTIONS.values()):
                projection: Any = module.get_submodule(name)
                mask_I = self._mask(self._plan.layers[index], kind, projection)
                handles.append(projection.register_forward_pre_hook(self._hook(index, kind, mask_I)))
                if not mask_I.any():  # else the bias of a removed block would stay
                    handles.append(projection.register_forward_hook(lambda _module, _args, output: output * 0))
            try:
                yield module
            finally:
                for handle in handles:
                    handle.remove()

    def _mask(self, keep: LayerKeep, kind: int, projection: nn.Linear) -> Tensor:
        """Return 1 for the input columns of kept groups and 0 for the others, [I]."""
        columns = self._geometry.columns_per_group(KINDS[kind])
        kept = torch.tensor(keep.mlp_channels if kind else keep.kv_groups, dtype=torch.int64)
        mask_G = torch.zeros(projection.in_features // columns).index_fill_(0, kept, 1.0)
        return mask_G.repeat_interleave(columns).to(projection.weight)

    def _hook(self, index: int, kind: int, mask_I: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
        columns = self._geometry.columns_per_group(KINDS[kind])

        def apply_mask(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            input_BTI = args[0]
            masked_BTI = input_BTI * mask_I

            def add_gradient(gradient_BTI: Tensor) -> None:
                gradient_I = (input_BTI.detach().float() * gradient_BTI.float()).sum((0, 1))
                gradient_G = gradient_I.unflatten(0, (-1, columns)).sum(1).cpu()
                earlier = self.gradients.get((index, kind))
                self.gradients[index, kind] = gradient_G if earlier is None else earlier + gradient_G

            if masked_BTI.requires_grad:
                masked_BTI.register_hook(add_gradient)
            return (masked_BTI,)

        return apply_mask
