"""Scores from a file: whether they fit the request, and which settings they overrule."""

from __future__ import annotations

from pathlib import Path

from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.request import Request
from hgsp.scoring.scores import Scores


def load_scores(request: Request) -> Scores:
    """Read ``--scores``. That they are of the very weights is checked once those are loaded (``check_belongs_to``).

    Raises:
        InputError: no scores file, scores of a model of other sizes, or none of the influence that a temperature needs.
    """
    scores = Scores.read(Path(str(request.config.scores)))
    scores.check_sizes(request.geometry)
    scores.check_influence(request.config.temperature)
    return scores


def overruled_settings(scores: Scores, config: PruneConfig) -> list[str]:
    """Return a warning per scoring flag that was given and differs from the settings the scores were made with."""
    made = {**scores.provenance, "layer_importance": None if scores.influence is None else scores.influence.measure}
    names = ["importance_method", "labels"] + ["layer_importance"] * config.measures_influence
    settled = [(name, getattr(config, name), getattr(PruneConfig, name)) for name in names]
    return [
        f"the scores were made with --{name} {made.get(name, default)}: {asked}, which was asked for, changes nothing"
        for name, asked, default in settled
        if asked not in (default, made.get(name, default))
    ]
