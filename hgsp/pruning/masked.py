"""A plan tried on the dense model without cutting: a gate on every group, open or shut, and what opening it would do.

K kv groups | R query heads per kv group | D head dim | I inputs of a writer | L layers
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hgsp.models.decoder import Decoder
from hgsp.models.families import KINDS, OUTPUT_PROJECTIONS
from hgsp.models.geometry import Geometry
from hgsp.pruning.plan import LayerKeep, PrunePlan


class MaskedLayers:
    """Layers of ``dense`` in which groups that the plan drops write nothing.

    Such a layer computes what the pruned one would compute. Whatever goes backward through it adds to ``gradients``:
    (layer, kind) -> gradient of the gates, float32 [K] or [M], summed over tokens, of shut gates too.
    """

    def __init__(self, dense: Decoder, geometry: Geometry, plan: PrunePlan) -> None:
        self._dense, self._geometry, self._plan = dense, geometry, plan
        self.gradients: dict[tuple[int, int], Tensor] = {}

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with self._dense.layer(index) as module:
            handles = []
            for kind, name in enumerate(OUTPUT_PROJECTIONS.values()):
                writer: Any = module.get_submodule(name)
                gate_I = self._gate(self._plan.layers[index], kind, writer)
                handles.append(writer.register_forward_pre_hook(self._hook(index, kind, gate_I)))
                if not gate_I.any():  # its bias would go on writing
                    handles.append(writer.register_forward_hook(lambda _module, _args, output: output * 0))
            try:
                yield module
            finally:
                for handle in handles:
                    handle.remove()

    def _gate(self, keep: LayerKeep, kind: int, writer: nn.Linear) -> Tensor:
        columns = self._geometry.columns_per_group(KINDS[kind])
        kept = torch.tensor(keep.mlp_channels if kind else keep.kv_groups, dtype=torch.int64)
        gate = torch.zeros(writer.in_features // columns).index_fill_(0, kept, 1.0)
        return gate.repeat_interleave(columns).to(writer.weight)

    def _hook(self, index: int, kind: int, gate_I: Tensor) -> Any:
        columns = self._geometry.columns_per_group(KINDS[kind])

        def shut(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            input_BTI = args[0]
            gated_BTI = input_BTI * gate_I

            def collect(gradient_BTI: Tensor) -> None:
                found_I = (input_BTI.detach().float() * gradient_BTI.float()).sum((0, 1))
                found = found_I.unflatten(0, (-1, columns)).sum(1).cpu()
                earlier = self.gradients.get((index, kind))
                self.gradients[index, kind] = found if earlier is None else earlier + found

            if gated_BTI.requires_grad:
                gated_BTI.register_hook(collect)
            return (gated_BTI,)

        return shut
