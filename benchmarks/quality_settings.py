"""Settings of the quality benchmark by name: recipes, their parts and variants, and the methods of baselines/."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from unittest.mock import patch

from baselines import BASELINES
from learned_masks import learn_masks, sequences_per_step
from torch import Tensor

from hgsp.data.calibration import Calibration, build_calibration
from hgsp.data.texts import CALIBRATE, load_text
from hgsp.models.geometry import Geometry
from hgsp.models.loaded import LoadedModel, load_for_pruning
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.tokenizers import load_tokenizer
from hgsp.pipeline.calibrations import draw_calibrations
from hgsp.pipeline.decision import PruningDecision, SelectionOptions, decide, select_within
from hgsp.pipeline.recipes import BALANCED, BEST, RECIPES, Recipe
from hgsp.pipeline.stages import Resources, prune_in_rounds, score
from hgsp.pruning.budget import Budget
from hgsp.pruning.select import kept_mask
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import apply_plan
from hgsp.reconstruction.reconstruct import plan_for
from hgsp.scoring.methods import METHODS
from hgsp.scoring.scores import Scores
from hgsp.search.search import SearchProblem

DTYPE = "bfloat16"
#: Baselines that refit weights.
REFITTING = {"osscar"}
#: Steps of a search where it is a part of a setting.
SEARCH_STEPS = 10
#: Settings of ``--attention_slope`` beside that of ``balanced``.
SLOPES = (0.0, 0.5, 1.5)
#: Steps of mask learning.
MASK_STEPS = (24, 160)
#: What changes of ``--reconstruct blocks`` are compared with.
FLAT_BLOCKS = replace(BALANCED, attention_slope=0.0, reconstruct="blocks")


class Maker:
    """Prunes one dense model in different ways with one set of calibration texts.

    Scores and the resumable state of searches and reconstructions are kept next to the output file. ``found`` collects
    search results, and ``before`` the CPU seconds of stages that were run before, until they are reset; ``before`` is
    None if nobody knows.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.source = inspect_model(options.base_model)
        self.tokenizer = load_tokenizer(options.base_model)
        self._texts = [load_text(name, CALIBRATE, options.data_dir) for name in options.calibrate]
        self.found: dict[str, Any] = {}
        self.before: float | None = 0.0

    def dense(self) -> Any:
        """Load the dense model."""
        return load_dense(self.source, DTYPE, self._options.device)

    def baseline(self, budget: int, name: str) -> Any:
        """Prune by a published method; one that refits weights gets as much text as our reconstruction."""
        options = self._options
        num_sequences = options.reconstruct_nsamples if name in REFITTING else options.nsamples
        calibration = build_calibration(
            self._texts, self.tokenizer, num_sequences, options.seq_len, options.seed, at_most=True
        )
        return BASELINES[name](self.dense(), calibration, budget, options.batch_size)

    def pruned(self, budget: int, recipe: Recipe, variant: str = "") -> Any:
        """Prune by a recipe, with the benchmark's numbers of sequences unless the recipe sets them.

        Args:
            variant: name of a change that is in force, whose state is kept apart.
        """
        options = self._options
        named = recipe.settings()
        recipe = replace(
            recipe,
            nsamples=named.get("nsamples", options.nsamples),
            reconstruct_nsamples=named.get("reconstruct_nsamples", options.reconstruct_nsamples),
        )
        calibrations = draw_calibrations(
            recipe,
            self._texts,
            self.tokenizer,
            num_embeddings=self.source.config.vocab_size,
            seq_len=options.seq_len,
            seed=options.seed,
            at_most=True,
        )
        dense = load_for_pruning(self.source, DTYPE, options.device)
        key = hashlib.sha256(
            json.dumps([budget, options.mlp_multiple_of, options.seed, asdict(recipe), variant]).encode()
        ).hexdigest()[:12]
        resources = Resources(
            options.batch_size,
            search_state=options.output.with_suffix(f".{key}.search.json"),
            reconstruction_state=options.output.with_suffix(f".{key}"),
        )
        if resources.search_state.exists() or resources.reconstruction_state.exists():
            self.before = None
        scores = self._scores(dense, recipe, calibrations.scoring)
        selection = SelectionOptions(Budget(budget), ShapeRules(mlp_multiple_of=options.mlp_multiple_of))
        pruning = prune_in_rounds(dense, scores, selection, recipe, calibrations, resources)
        if searched := pruning.decision.searched:
            divergences = [searched["kl_before"], *searched["kl_of_steps"]]
            self.found["search_kl"] = [round(divergence, 4) for divergence in divergences]
        tensors = None if pruning.reconstruction is None else pruning.reconstruction.tensors
        return apply_plan(dense.model, pruning.decision.plan, tensors)

    def decide_by_learned_masks(
        self, steps: int, scores: Scores, geometry: Geometry, selection: SelectionOptions, recipe: Recipe, *_: Any
    ) -> PruningDecision:
        """Decide as the pipeline does, then learn the scores on further text and decide by them."""
        options = self._options
        decision = decide(scores, geometry, selection, recipe)
        wanted = steps * sequences_per_step(options.seq_len)
        text = build_calibration(self._texts, self.tokenizer, wanted, options.seq_len, options.seed + 2, at_most=True)
        dense = load_for_pruning(self.source, DTYPE, options.device)
        plan = decision.plan
        problem = SearchProblem(decision.table, geometry, plan.budget_params, selection.shape_rules)
        table, divergences = learn_masks(dense.decoder, problem, text.input_ids, steps, options.batch_size)
        self.found["mask_kl"] = [round(divergence, 4) for divergence in divergences]
        learned = select_within(table, geometry, selection, recipe.collapse_epsilon, plan.provenance)
        self.found["moved"] = round(float((kept_mask(table, plan) != kept_mask(table, learned)).mean()), 4)
        return replace(decision, table=table, plan=plan_for(recipe.reconstruct, learned))

    def _scores(self, dense: LoadedModel, recipe: Recipe, calibration: Calibration | None) -> Scores:
        name = f".{recipe.importance_method}.{recipe.labels}.{recipe.nsamples}.{self._options.seed}.npz"
        path = self._options.output.with_suffix(name)
        taken = path.with_suffix(".json")
        if not path.exists():
            start = time.process_time()
            resources = Resources(self._options.batch_size)
            score(dense, recipe, calibration, resources, base_model=self.source.name, seed=self._options.seed).write(
                path
            )
            taken.write_text(json.dumps({"cpu_seconds": time.process_time() - start}), encoding="utf-8")
        elif not taken.exists():
            self.before = None
        elif self.before is not None:
            self.before += json.loads(taken.read_text(encoding="utf-8"))["cpu_seconds"]
        return Scores.read(path)


def _squared_errors(output: Tensor, target: Tensor, median_energy: float) -> Tensor:
    """Return the squared error of every token over the same number, as ``block_fit`` does not."""
    return (output.float() - target).square().sum(-1) / (2 * median_energy)


#: Changes of ``--reconstruct blocks``: the function that is replaced, and by what.
VARIANTS: dict[str, tuple[str, Any]] = {
    "MLPs alone": ("hgsp.reconstruction.reconstruct.refits_whole", lambda _method, kind, _layer: kind == "mlp"),
    "256 tokens to a step": ("hgsp.reconstruction.block_fit.STEP_TOKENS", 256),
    "squared errors": ("hgsp.reconstruction.block_fit._relative_errors", _squared_errors),
}


def _varied(maker: Maker, budget: int, recipe: Recipe, variant: str) -> Any:
    with patch(*VARIANTS[variant]):
        return maker.pruned(budget, recipe, variant)


def _learned(maker: Maker, budget: int, steps: int) -> Any:
    """Prune by ``balanced`` with learned masks."""
    with patch("hgsp.pipeline.stages.decide", functools.partial(maker.decide_by_learned_masks, steps)):
        return maker.pruned(budget, BALANCED, f"masks learned in {steps} steps")


def _plain(method: str, **settings: Any) -> Recipe:
    return Recipe(importance_method=method, temperature=0.0, **settings)


def _settings() -> dict[str, Recipe]:
    """Return every method alone, refitted and searched, and the recipes with two variants."""
    parts: dict[str, dict[str, Any]] = {
        "": {},
        "+lstsq": {"reconstruct": "lstsq"},
        "+bias": {"reconstruct": "bias"},
        "+search": {"search": SEARCH_STEPS},
        "+search+lstsq": {"search": SEARCH_STEPS, "reconstruct": "lstsq"},
    }
    return {
        "fisher, labels drawn": _plain("fisher", labels="model"),
        **{f"{method}{part}": _plain(method, **changes) for part, changes in parts.items() for method in METHODS},
        **RECIPES,
        "balanced, blocks": replace(BALANCED, reconstruct="blocks"),
        "balanced, attention slope 0, blocks": FLAT_BLOCKS,
        **{f"balanced, attention slope {slope:g}": replace(BALANCED, attention_slope=slope) for slope in SLOPES},
        "balanced, search": replace(BALANCED, search=4),
        "best, lstsq": replace(BEST, reconstruct="lstsq"),
    }


#: Name -> function from a maker and the number of parameters to remove to the pruned model.
SETTINGS: dict[str, Callable[[Maker, int], Any]] = {
    **{name: functools.partial(Maker.pruned, recipe=recipe) for name, recipe in _settings().items()},
    **{
        f"balanced, attention slope 0, blocks, {name}": functools.partial(_varied, recipe=FLAT_BLOCKS, variant=name)
        for name in VARIANTS
    },
    **{f"balanced, masks learned in {steps} steps": functools.partial(_learned, steps=steps) for steps in MASK_STEPS},
    **{name: functools.partial(Maker.baseline, name=name) for name in BASELINES},
}
