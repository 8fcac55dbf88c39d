"""The parts of a dense layer's tensors that a plan keeps.

K kv groups | R query heads per kv group | D head dim | M mlp width | E experts | W channels of an expert that stay
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgsp.models.blocks import ATTENTION_INPUTS, ATTENTION_OUTPUT, LINEARS, MLP_INPUTS, MLP_OUTPUT, SINKS
from hgsp.models.experts import DOWN, EXPERT_PARTS, GATE_UP, SHARED_DOWN, put_channels, take_channels
from hgsp.models.geometry import Geometry
from hgsp.models.linear_attention import LINEAR_ATTENTION
from hgsp.pruning.plan import LayerKeep


def is_written(name: str) -> bool:
    """Return whether a plan or a refit changes a tensor of a layer."""
    return _owner(name) in (*LINEARS, *EXPERT_PARTS, SHARED_DOWN, LINEAR_ATTENTION.output_projection)


class LayerSlices:
    """The dimension of every sliced tensor of a layer and the indices that it keeps, and the channels of its experts.

    Tensors go by their names in the layer.
    """

    def __init__(self, keep: LayerKeep, geometry: Geometry) -> None:
        self._indices = _indices_of(keep, geometry)
        self._channels_EW = torch.tensor(keep.expert_channels, dtype=torch.int64) if keep.expert_channels else None

    def take(self, name: str, dense: Tensor) -> Tensor:
        """Return the kept part of a tensor, a contiguous copy if it is sliced."""
        dim, indices = self._indices.get(_owner(name), (None, None))
        if dim is None or indices is None or dim >= dense.ndim:  # norms, and the bias of an output projection
            return dense
        kept = dense.index_select(dim, indices.to(dense.device))
        if self._channels_EW is None or name not in (GATE_UP, DOWN):
            return kept
        return take_channels(name, kept, self._channels_EW)

    def padded(self, name: str, dense: Tensor, replaced: Tensor | None) -> Tensor:
        """Return a tensor in its dense shape, zero where groups leave.

        Args:
            replaced: used instead of the kept part of ``dense``.
        """
        padded = torch.zeros_like(dense)
        dim, indices = self._indices.get(_owner(name), (dense.ndim, None))
        if indices is not None and not len(indices):
            return padded
        kept = self.take(name, dense) if replaced is None else replaced.to(dense)
        if indices is None or dim >= dense.ndim:  # linear attention, and the bias of an output projection
            return kept
        indices = indices.to(dense.device)
        if self._channels_EW is not None and name in (GATE_UP, DOWN):
            kept = put_channels(name, padded.index_select(dim, indices), self._channels_EW, kept)
        return padded.index_copy_(dim, indices, kept)


def _indices_of(keep: LayerKeep, geometry: Geometry) -> dict[str, tuple[int, Tensor]]:
    per_kv, per_query = geometry.head_dim, geometry.columns_per_group("attention")
    query_rows = _spans(keep.kv_groups, per_query * geometry.query_width)
    query_columns, kv_rows = _spans(keep.kv_groups, per_query), _spans(keep.kv_groups, per_kv)
    channels, experts = (torch.tensor(kept, dtype=torch.int64) for kept in (keep.mlp_channels, keep.experts))
    query, key, value = ATTENTION_INPUTS
    return {
        query: (0, query_rows),
        key: (0, kv_rows),
        value: (0, kv_rows),
        ATTENTION_OUTPUT: (1, query_columns),
        SINKS: (0, _spans(keep.kv_groups, geometry.queries_per_kv)),
        **dict.fromkeys(MLP_INPUTS, (0, channels)),
        MLP_OUTPUT: (1, channels),
        **dict.fromkeys(EXPERT_PARTS, (0, experts)),
        **({} if keep.experts else {SHARED_DOWN: (0, experts)}),
    }


def _owner(name: str) -> str:
    """Return the Linear that a parameter belongs to, or the parameter itself where it is none's."""
    return name.removesuffix(".weight").removesuffix(".bias")


def _spans(groups: tuple[int, ...], width: int) -> Tensor:
    """Return the indices of the rows of these groups: group k owns rows k*width to (k+1)*width-1."""
    starts = torch.tensor(groups, dtype=torch.int64).view(-1, 1) * width
    return (starts + torch.arange(width)).flatten()
