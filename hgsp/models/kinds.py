"""Kinds of groups, the units that leave a model, as data. Importing this module costs no torch.

Attention consists of KV groups, the MLP of channels, or where the layer has a router of experts. Experts of a layer are
stored as one tensor, so that all of them keep the same number of channels: a group is then a slot, the weakest channel
of every expert together, the second weakest and so on. Slots are counted where channels of experts are pruned.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GroupKind:
    """One kind of group.

    Args:
        name: in tables, scores and messages.
        block: the block of a layer that consists of such groups, "attention" or "mlp".
        size: field of ``LayerShape`` with their number.
        kept: field of ``LayerKeep`` with the indices of those that stay, and key of plans.
        dense_key: key of reports with their number in the dense model.
        label: their plural in tables, charts and messages.
        style: of their series on charts.
    """

    name: str
    block: str
    size: str
    kept: str
    dense_key: str
    label: str
    style: str


#: In the order of a layer's blocks; the position is the number of the kind in a group table.
GROUP_KINDS = (
    GroupKind("attention", "attention", "num_kv_groups", "kv_groups", "num_kv_groups", "KV groups", "s0"),
    GroupKind("mlp", "mlp", "mlp_width", "mlp_channels", "num_mlp_channels", "MLP channels", "s1"),
    GroupKind("expert", "mlp", "num_experts", "experts", "num_experts", "experts", "s2"),
    GroupKind(
        "expert_channel", "mlp", "expert_width", "expert_slots", "num_expert_slots", "channels of each expert", "s3"
    ),
)
KIND_NAMED = {kind.name: kind for kind in GROUP_KINDS}
#: The kinds of models without experts.
DENSE_KINDS = GROUP_KINDS[:2]


def kinds_among(present: set[str]) -> tuple[GroupKind, ...]:
    """Return the kinds to show for a model with groups of these kinds; without experts always the same two."""
    if "expert" not in present:
        return DENSE_KINDS
    return tuple(kind for kind in GROUP_KINDS if kind.name in present)
