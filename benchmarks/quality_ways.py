"""Ways of making a model smaller: recipes, their parts and the published methods of baselines/.

A way is a function in WAYS from the maker and the parameters to remove to the pruned model.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from baselines import BASELINES

from hgsp.data.calibration import build_calibration
from hgsp.data.texts import CALIBRATE, load_text
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.tokenizers import load_tokenizer
from hgsp.pipeline.config import DEFAULT_PROFILE_NSAMPLES, DEFAULT_SEARCH_NSAMPLES, PruneConfig
from hgsp.pruning.select import MinimumSizes
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.reconstruction.reconstruct import reconstruct
from hgsp.reconstruction.resume import ResumeState
from hgsp.scoring.methods import METHODS
from hgsp.scoring.score import ScoringOptions, score_groups
from hgsp.scoring.scores import Scores, sample_weights
from hgsp.search.by_gradient import GradientProposals
from hgsp.search.by_profile import ProfileProposals
from hgsp.search.search import Proposals, SearchProblem, search

SEED = 42
DTYPE = "bfloat16"
#: Steps of a budget search.
STEPS = PruneConfig.RECIPES["best"]["search"]
#: Baselines that fit weights to text.
REFITTING = {"osscar"}


class Maker:
    """Makes smaller models of one dense model from one calibration text.

    Scores, searches and finished layers of reconstructions are kept beside the output file. ``found`` is what the
    searches found since it was last cleared.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.source = inspect_model(options.base_model)
        self.tokenizer = load_tokenizer(options.base_model)
        self._texts = [load_text(name, CALIBRATE, options.data_dir) for name in options.calibrate]
        self.found: dict[str, Any] = {}

    def dense(self) -> Any:
        return load_dense(self.source, DTYPE, self._options.device)

    def calibration(self, num_sequences: int, seed: int = SEED) -> Any:
        options = self._options
        return build_calibration(self._texts, self.tokenizer, num_sequences, options.seq_len, seed, at_most=True)

    def baseline(self, name: str, budget: int) -> Any:
        """The model a published method makes; one that refits gets as much text as our reconstruction."""
        options = self._options
        num_sequences = options.reconstruct_nsamples if name in REFITTING else options.nsamples
        return BASELINES[name](self.dense(), self.calibration(num_sequences), budget, options.batch_size)

    def plan(
        self,
        method: str,
        budget: int,
        search_steps: int = 0,
        labels: str = "text",
        refit: bool = False,
        depth_slope: float = 0.0,
        num_sequences: int | None = None,
    ) -> Any:
        """The plan, searched as it will be used: for a plain cut, or with ``refit`` for one that is reconstructed.

        ``num_sequences`` are for the scores, where that is not the number asked for.
        """
        geometry = self.source.geometry
        scores = self._scores(method, labels, num_sequences or self._options.nsamples)
        table, _ = scores.table(geometry, METHODS[method].normalization, 0.0, None)
        start = SearchProblem(table.with_depth_slope(depth_slope), geometry, budget, MinimumSizes())
        if not search_steps:
            return start.plan(np.zeros((geometry.num_layers, 2)))
        state_file = self._options.output.with_suffix(f".{method}.{budget}.search.json")
        state = search(self._proposals(start, refit), start, search_steps, state_file=state_file)
        self.found["search_kl"] = [round(divergence, 4) for divergence in state.divergences]
        self.found["log_factors"] = np.round(state.log_factors, 2).tolist()
        return start.plan(np.array(state.log_factors))

    def _proposals(self, start: SearchProblem, refit: bool) -> Proposals:
        model, batch_size = self.dense(), self._options.batch_size
        calibration = self.calibration(DEFAULT_PROFILE_NSAMPLES if refit else DEFAULT_SEARCH_NSAMPLES, SEED + 1)
        if not refit:
            return GradientProposals(Decoder(model), start, calibration, batch_size=batch_size)
        surgery_of = functools.partial(surgery, model)
        return ProfileProposals(Decoder(model), start, calibration, surgery_of, batch_size=batch_size)

    def reconstructed(self, model: Any, plan: Any, num_sequences: int | None = None, whole_blocks: bool = False) -> Any:
        """The pruned model with its writers, or blocks, refitted; consumes the dense one."""
        options = self._options
        calibration = self.calibration(num_sequences or options.reconstruct_nsamples)
        asked = [[asdict(keep) for keep in plan.layers], plan.writer_bias, whole_blocks, calibration.sha256]
        fingerprint = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        finished = ResumeState(options.output.with_suffix(f".{fingerprint[:12]}"), fingerprint)
        reconstruct(
            Decoder(model),
            surgery(model, plan, finished.tensors),
            calibration,
            batch_size=options.batch_size,
            whole_blocks=whole_blocks,
            finished=finished,
        )
        pruned = apply_plan(model, plan, finished.tensors)
        finished.close()
        return pruned

    def _scores(self, method: str, labels: str, num_sequences: int) -> Scores:
        path = self._options.output.with_suffix(f".{method}.{labels}.{num_sequences}.npz")
        if not path.exists():
            model = self.dense()
            found = score_groups(
                Decoder(model),
                method,
                self.calibration(num_sequences),
                options=ScoringOptions(batch_size=self._options.batch_size),
                labels=labels,
            )
            state = model.state_dict()
            sample = sample_weights(lambda name: state[name][:1], self.source.geometry.num_layers)
            Scores(found.by_layer, None, sample, {"importance_method": method}).write(path)
        return Scores.read(path)


def surgery(model: Any, plan: Any, replaced: Any = None) -> Surgery:
    """The pruned model's tensors, cut from a model in memory."""
    return Surgery(model.config, geometry_of(model), plan, lambda name: model.get_parameter(name).detach(), replaced)


def cut_only(maker: Maker, budget: int, method: str, search_steps: int = 0, labels: str = "text") -> Any:
    return apply_plan(maker.dense(), maker.plan(method, budget, search_steps, labels))


def cut_and_reconstruct(
    maker: Maker, budget: int, method: str, search_steps: int = 0, writer_bias: bool = False
) -> Any:
    plan = replace(maker.plan(method, budget, search_steps, refit=True), writer_bias=writer_bias)
    return maker.reconstructed(maker.dense(), plan)


def by_recipe(maker: Maker, budget: int, name: str, **flags: Any) -> Any:
    """What ``--recipe NAME`` makes of the maker's text, and of as many sequences where it names no number."""
    recipe = {**PruneConfig.RECIPES[name], **flags}
    refit = "reconstruct" in recipe
    settings = {"refit": refit, "depth_slope": recipe.get("depth_slope", 0.0), "num_sequences": recipe.get("nsamples")}
    plan = maker.plan(recipe["importance_method"], budget, recipe.get("search", 0), **settings)
    if not refit:
        return apply_plan(maker.dense(), plan)
    whole_blocks = recipe["reconstruct"] == "blocks"
    return maker.reconstructed(maker.dense(), plan, recipe.get("reconstruct_nsamples"), whole_blocks)


def published(maker: Maker, budget: int, name: str) -> Any:
    return maker.baseline(name, budget)


SETTINGS: dict[str, Callable[[Maker, int], Any]] = {
    "fisher, labels drawn": functools.partial(cut_only, method="fisher", labels="model"),
    **{method: functools.partial(cut_only, method=method) for method in METHODS},
    **{f"{method}+lstsq": functools.partial(cut_and_reconstruct, method=method) for method in METHODS},
    **{f"{method}+bias": functools.partial(cut_and_reconstruct, method=method, writer_bias=True) for method in METHODS},
    **{f"{method}+search": functools.partial(cut_only, method=method, search_steps=STEPS) for method in METHODS},
    **{
        f"{method}+search+lstsq": functools.partial(cut_and_reconstruct, method=method, search_steps=STEPS)
        for method in METHODS
    },
    **{name: functools.partial(by_recipe, name=name) for name in PruneConfig.RECIPES},
    "balanced, blocks": functools.partial(by_recipe, name="balanced", reconstruct="blocks"),
    "best, lstsq": functools.partial(by_recipe, name="best", reconstruct="lstsq"),
    **{name: functools.partial(published, name=name) for name in BASELINES},
}
