"""The export targets that can hold the models of a family."""

from __future__ import annotations

from hgsp.exports.names import TARGETS
from hgsp.models.families import Family

#: Targets with a place for norms of queries and keys per head.
_WITH_HEAD_NORMS = ("gguf", "stock", "mlx")


def targets_of(family: Family) -> tuple[str, ...]:
    """Return the targets for full attention in all layers; what else they need, ``hgsp doctor`` tells of a model."""
    if family.is_hybrid:
        return ()
    if family.beyond_llama:
        return ("stock",)
    return _WITH_HEAD_NORMS if family.qk_norm else tuple(TARGETS)
