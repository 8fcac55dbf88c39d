"""Steps that a mixture of experts excludes, and steps that leave the weights of experts as they are."""

from __future__ import annotations

from hgsp.errors import InputError
from hgsp.pipeline.config import PruneConfig


def refuse_for_experts(config: PruneConfig) -> None:
    """Refuse what experts have no place for.

    Raises:
        InputError: a reconstruction that adds biases.
    """
    if config.reconstruct == "bias":
        raise InputError(
            expected="--reconstruct none, lstsq or blocks for a mixture of experts",
            got="--reconstruct bias",
            remedy="experts have no bias to add; use lstsq, which refits o_proj",
        )


def warnings_about_experts(config: PruneConfig) -> list[str]:
    """Return a line for each step that leaves the weights of experts as they are."""
    found = []
    if config.reconstruct != "none":
        found.append("experts keep their weights: --reconstruct refits o_proj, and MLPs of layers without experts")
    if config.finetune:
        found.append("experts get no LoRA adapters: --finetune trains those of attention")
    return found
