"""Steps that a mixture of experts excludes, and steps that leave the weights of experts as they are."""

from __future__ import annotations

from hgsp.errors import InputError
from hgsp.pipeline.config import PruneConfig, ScoringConfig


def refuse_for_experts(config: PruneConfig) -> None:
    """Refuse what experts have no place for.

    Raises:
        InputError: a reconstruction that adds biases, or channels of experts that are to be ranked by other costs than
            parameters.
    """
    if config.expert_channels and config.ranking_cost != "params":
        raise InputError(
            expected="--cost params with --expert_channels",
            got=f"--cost {config.ranking_cost}",
            remedy="a channel of an expert has no cost of its own in another unit; leave out one of the two",
        )
    if config.reconstruct == "bias":
        raise InputError(
            expected="--reconstruct none, lstsq or blocks for a mixture of experts",
            got="--reconstruct bias",
            remedy="experts have no bias to add; use lstsq, which refits o_proj",
        )


def refuse_for_others(config: ScoringConfig) -> None:
    """Refuse options that need experts.

    Raises:
        InputError: channels of experts of a dense model.
    """
    if config.expert_channels:
        raise InputError(
            expected="a mixture of experts for --expert_channels",
            got="a model without experts",
            remedy="leave it out; channels of MLPs are pruned anyway",
        )


def warnings_about_experts(config: PruneConfig) -> list[str]:
    """Return a line for each step that leaves the weights of experts as they are."""
    found = []
    if config.reconstruct != "none":
        found.append(
            "--reconstruct refits o_proj, down projections of experts that lose channels, and MLPs without experts"
            if config.expert_channels
            else "experts keep their weights: --reconstruct refits o_proj, and MLPs of layers without experts"
        )
    if config.finetune:
        found.append("experts get no LoRA adapters: --finetune trains those of attention")
    return found
