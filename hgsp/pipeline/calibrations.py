"""The calibration sequences of every stage, drawn from the same texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hgsp.data.calibration import Calibration, build_calibration
from hgsp.data.texts import Text
from hgsp.models.tokenizers import check_token_ids
from hgsp.pipeline.recipes import Recipe
from hgsp.reconstruction.reconstruct import check_enough
from hgsp.search.reconstructed import check_enough_to_search

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrations:
    """Calibration sequences of each stage; None for a stage that reads no text."""

    scoring: Calibration | None = None
    search: Calibration | None = None
    reconstruction: Calibration | None = None


def draw_calibrations(
    recipe: Recipe,
    texts: Sequence[Text],
    tokenizer: Any,
    *,
    num_embeddings: int,
    seq_len: int,
    seed: int,
    scoring: bool = True,
    at_most: bool = False,
) -> Calibrations:
    """Draw the sequences of scoring, search and reconstruction from the same texts.

    Args:
        num_embeddings: of the model that will read the texts.
        scoring: whether scoring reads text.
        at_most: whether a text that is too short to score with gives all its windows.

    Raises:
        InputError: a text is too short, or has a token without an embedding.
    """
    to_score = to_search = to_reconstruct = None
    if scoring:
        to_score = build_calibration(texts, tokenizer, recipe.nsamples, seq_len, seed, at_most=at_most)
        LOG.info("scoring: %s", to_score.summary)
    if recipe.search:
        wanted = recipe.num_search_sequences
        to_search = build_calibration(texts, tokenizer, wanted, seq_len, seed + 1, at_most=True)
        if recipe.reconstructs:
            check_enough_to_search(to_search)
        LOG.info("budget search: %s%s", to_search.summary, _wanted(to_search, wanted))
    if recipe.reconstructs:
        wanted = recipe.num_reconstruction_sequences
        to_reconstruct = build_calibration(texts, tokenizer, wanted, seq_len, seed, at_most=True)
        check_enough(to_reconstruct)
        LOG.info("reconstruction: %s%s", to_reconstruct.summary, _wanted(to_reconstruct, wanted))
    for drawn in filter(None, (to_score, to_search, to_reconstruct)):
        check_token_ids(int(drawn.input_ids.max()), num_embeddings, tokenizer, drawn.source)
    return Calibrations(to_score, to_search, to_reconstruct)


def _wanted(drawn: Calibration, wanted: int) -> str:
    """Say how many sequences were wanted where a text is too short for them."""
    return "" if len(drawn.input_ids) == wanted else f" ({wanted} wanted: the text has no more)"
