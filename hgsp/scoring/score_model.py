"""Score a loaded model: importances, influence, and the provenance that a scores file needs."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hgsp.console.progress import Progress, silent
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.models.loaded import LoadedModel
from hgsp.scoring.methods import Method, method_named
from hgsp.scoring.names import LAYER_IMPORTANCES
from hgsp.scoring.prior import perplexity_influence
from hgsp.scoring.score import ScoringOptions, score_groups
from hgsp.scoring.scores import Scores, weight_sample

LOG = logging.getLogger(__name__)

#: The hidden states of a model on a CPU stay in memory up to this size, or up to an eighth of its weights.
MAX_RESIDENT_HIDDEN_BYTES = 2**31


def score_model(
    loaded: LoadedModel,
    method: Method | str,
    calibration: Calibration | None = None,
    options: ScoringOptions | None = None,
    *,
    base_model: str,
    layer_importance: str | None = None,
    seed: int = 42,
    labels: str = "text",
    expert_channels: bool = False,
    progress: Progress = silent,
) -> Scores:
    """Score every group of a model, and measure the influence of its layers.

    Args:
        options: as of ``score_groups``; without a ``spill_dir``, hidden states that would crowd the memory of a CPU
            go to the system's temporary folder.
        base_model: the model's name, for the provenance.
        layer_importance: measure of influence, "cosine" or "perplexity"; None measures none, which allows no
            temperature above 0 later.
        seed: of the method "random" and of drawn labels.
        labels, expert_channels: see ``score_groups``.

    Raises:
        InputError: the method or the influence needs text and there is none, or the measure is unknown.
        NumericalError: a statistic is not finite.
    """
    method = method_named(method)
    _check_measure(layer_importance)
    found = score_groups(
        loaded.decoder,
        method,
        calibration,
        with_influence=layer_importance == "cosine",
        options=_spilling(options or ScoringOptions(), loaded.model, calibration),
        seed=seed,
        labels=labels,
        expert_channels=expert_channels,
        progress=progress,
    )
    influence = found.influence
    if layer_importance == "perplexity":
        if calibration is None:
            raise InputError(expected="calibration text for the influence", got="none", remedy="pass a Calibration")
        influence = perplexity_influence(loaded.decoder, calibration.input_ids)
    provenance = {
        "base_model": base_model,
        "importance_method": method.name,
        "calibration": None if calibration is None else calibration.describe(),
        "labels": labels,
        "calibration_loss": found.calibration_loss,
        "seed": seed,
        "dtype": loaded.dtype,
        "weights": asdict(loaded.identity),
    }
    return Scores(found.by_layer, influence, weight_sample(loaded), provenance)


def _check_measure(layer_importance: str | None) -> None:
    if layer_importance not in (None, *LAYER_IMPORTANCES):
        raise InputError(
            expected="a measure of influence",
            got=f"'{layer_importance}'",
            remedy=f"use one of {', '.join(LAYER_IMPORTANCES)}, or None",
        )


def _spilling(options: ScoringOptions, model: Any, calibration: Calibration | None) -> ScoringOptions:
    """Return the options with a temporary folder for hidden states that would crowd the memory."""
    if options.spill_dir is not None or calibration is None or not _crowds_memory(model, calibration):
        return options
    folder = Path(tempfile.gettempdir())
    LOG.info("hidden states go to %s (--spill_dir chooses another folder)", folder)
    return replace(options, spill_dir=folder)


def _crowds_memory(model: Any, calibration: Calibration) -> bool:
    """Return whether the hidden states between all layers would take a notable share of a CPU model's memory.

    Those of a model on a GPU stay there as far as there is room, and then in main memory, which holds no weights.
    """
    embedding = model.model.embed_tokens.weight
    hidden_states = calibration.input_ids.numel() * embedding.shape[1] * (len(model.model.layers) + 1)
    weights = sum(parameter.numel() for parameter in model.parameters())
    num_bytes = hidden_states * embedding.element_size()
    return embedding.device.type == "cpu" and num_bytes > MAX_RESIDENT_HIDDEN_BYTES and hidden_states > weights / 8
