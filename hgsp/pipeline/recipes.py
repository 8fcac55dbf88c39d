"""Recipes: settings of the whole pruning pipeline as data, by name. ``best`` is defined here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

DEFAULT_EPSILON = 0.15
DEFAULT_RECONSTRUCT_NSAMPLES = 256
#: Sequences of a budget search that judges plain plans, and of one that reconstructs every plan before it judges.
DEFAULT_SEARCH_NSAMPLES, DEFAULT_PROFILE_NSAMPLES = 16, 96


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that decide which groups leave the model and how the remaining weights are refitted.

    The fields are the flags of the same names; numbers of sequences count calibration windows, None is the step's
    default. Importing this module costs no torch.
    """

    importance_method: str = "taylor"
    labels: str = "text"
    expert_channels: bool = False
    layer_importance: str = "cosine"
    nsamples: int = 128
    score_normalization: str = "auto"
    temperature: float = 1.0
    tau: float | None = None
    epsilon: float | None = None
    depth_slope: float = 0.0
    attention_slope: float = 0.0
    rounds: int = 1
    search: int = 0
    search_nsamples: int | None = None
    reconstruct: str = "none"
    reconstruct_nsamples: int | None = None

    @property
    def collapse_epsilon(self) -> float | None:
        """The collapse threshold in force; None where no layer may be removed whole."""
        if self.epsilon is not None:
            return self.epsilon
        return DEFAULT_EPSILON if self.temperature > 0 else None

    @property
    def reconstructs(self) -> bool:
        """Whether the remaining weights are refitted."""
        return self.reconstruct != "none"

    @property
    def num_search_sequences(self) -> int:
        """Sequences of the budget search."""
        return self.search_nsamples or (DEFAULT_PROFILE_NSAMPLES if self.reconstructs else DEFAULT_SEARCH_NSAMPLES)

    @property
    def num_reconstruction_sequences(self) -> int:
        """Sequences of the reconstruction."""
        return self.reconstruct_nsamples or DEFAULT_RECONSTRUCT_NSAMPLES

    def settings(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


FAST = Recipe(importance_method="fisher", temperature=0.0)
BALANCED = Recipe(
    importance_method="fisher_token", temperature=0.0, depth_slope=0.5, attention_slope=1.0, reconstruct="lstsq"
)
BEST = replace(BALANCED, reconstruct="blocks", reconstruct_nsamples=512)

#: The names of ``--recipe``; docs/QUALITY.md has the measurements behind them.
RECIPES = {"fast": FAST, "balanced": BALANCED, "best": BEST}
