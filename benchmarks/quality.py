#!/usr/bin/env python3
"""Quality after each way of making a model smaller, at the same size. No training. JSON, tables and a plot beside it.

Perplexity and KL to the dense model on the same windows, and with --tasks the mean zero-shot accuracy. A way is a
function in WAYS from the bench and the parameters to remove to the pruned model; published methods are in baselines/.
Cells already in the output file are not computed again, the dense model's included; scores, searches and finished
layers of reconstructions are kept beside it.

    python benchmarks/quality.py --base_model MODEL --calibrate wiki.valid.raw --evaluate wiki.test.raw c4.jsonl \\
        --ways fisher+lstsq llm-pruner flap-published --ratios 0.2 0.3 0.5 --output quality.json \\
        --tasks zeroshot --limit 200 --data_dir DATA
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from baselines import BASELINES
from divergence import DenseReference
from machine import provenance
from quality_report import draw, markdown, mean_accuracy

from evaluation.metrics.harness import load_task, run_task
from evaluation.metrics.ppl import split_windows
from evaluation.metrics.zeroshot import ZERO_SHOT
from evaluation.tasks import parse_tasks
from hgsp.calibration import build_calibration, tokenize
from hgsp.cli import quiet_libraries
from hgsp.config import DEFAULT_PROFILE_NSAMPLES, DEFAULT_SEARCH_NSAMPLES, PruneConfig
from hgsp.data import CALIBRATE, EVALUATE, load_text
from hgsp.finished_layers import FinishedLayers
from hgsp.geometry import geometry_of
from hgsp.importance import METHODS
from hgsp.layerwise import Decoder
from hgsp.loading import inspect_model, load_dense, load_tokenizer
from hgsp.products import wide_products
from hgsp.reconstruct import reconstruct
from hgsp.scores import Scores, sample_weights
from hgsp.scoring import ScoringOptions, score_groups
from hgsp.search import Budgeted, Moves, search
from hgsp.search_by_gradient import GradientMoves
from hgsp.search_by_profile import ProfileMoves
from hgsp.selection import Floors
from hgsp.surgery import Surgery, apply_plan

SEED = 42
DTYPE = "bfloat16"
#: Steps of a budget search.
STEPS = PruneConfig.RECIPES["best"]["search"]
#: Baselines that fit weights to text.
REFITTING = {"osscar"}


@wide_products()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["fisher", "fisher+lstsq"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.3, 0.5], help="of the decoder layers")
    parser.add_argument("--calibrate", nargs="+", default=["wikitext2"], help="several give as many sequences each")
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--reconstruct_nsamples", type=int, default=256)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--evaluate", nargs="+", default=["wikitext2"])
    parser.add_argument("--eval_seq_len", type=int, default=1024)
    parser.add_argument("--eval_windows", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", default=[], help=f"of {', '.join(ZERO_SHOT)}, or zeroshot for all")
    parser.add_argument("--limit", type=int, help="items of each task")
    parser.add_argument("--data_dir", default=os.environ.get("HGSP_DATA_DIR"), help="local texts and tasks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.tasks = parse_tasks(",".join(options.tasks)) if options.tasks else ()
    if others := set(options.tasks) - set(ZERO_SHOT):
        parser.error(f"--tasks takes zero-shot tasks, not {', '.join(sorted(others))}")
    quiet_libraries()

    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"rows": []}
    done = {(row["way"], row["ratio"]) for row in result["rows"]}
    bench = Bench(options)
    result |= {**provenance(), "base_model": Path(options.base_model).name}
    if "dense" not in result:
        result["dense"] = bench.quality(bench.reference)["ppl"]
    if options.tasks and "dense_accuracy" not in result:
        result["dense_accuracy"] = bench.accuracy(bench.reference)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    for way, ratio in itertools.product(options.ways, options.ratios):
        if (way, ratio) not in done:
            make = functools.partial(WAYS[way], bench)
            result["rows"].append({"way": way, "ratio": ratio, **bench.measure(make, ratio)})
            print(json.dumps(result["rows"][-1]), flush=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n")
            options.output.with_suffix(".md").write_text(markdown(result))
            draw(result, options.output.with_suffix(".png"))


class Bench:
    """One model, one calibration text, several evaluation texts; scores are kept per importance method."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.source = inspect_model(options.base_model)
        self.tokenizer = load_tokenizer(options.base_model)
        self._texts = [load_text(name, CALIBRATE, options.data_dir) for name in options.calibrate]
        self._evaluated = [load_text(name, EVALUATE, options.data_dir) for name in options.evaluate]
        self._tasks = [load_task(ZERO_SHOT[name], options.data_dir) for name in options.tasks]
        self._found: dict[str, Any] = {}

    @functools.cached_property
    def reference(self) -> Any:
        """The dense model that is measured and compared with; ways get one of their own, which they may take over."""
        return self.dense()

    def dense(self) -> Any:
        return load_dense(self.source, DTYPE, self._options.device)

    def calibration(self, num_sequences: int, seed: int = SEED) -> Any:
        options = self._options
        return build_calibration(self._texts, self.tokenizer, num_sequences, options.seq_len, seed, at_most=True)

    def measure(self, make: Callable[[int], Any], ratio: float) -> dict[str, Any]:
        """Quality and size of the model made for a budget, what a search found, seconds from the dense model on."""
        self._found = {}
        start = time.perf_counter()
        model = make(round(ratio * self.source.geometry.decoder_params))
        seconds = round(time.perf_counter() - start, 1)
        removed = self.source.geometry.total_params - sum(parameter.numel() for parameter in model.parameters())
        reached = round(removed / self.source.geometry.decoder_params, 4)
        found: dict[str, Any] = self.quality(model)
        if self._tasks:
            found["accuracy"] = self.accuracy(model)
        return {**found, "reached_of_decoder": reached, "seconds": seconds, **self._found}

    def baseline(self, name: str, budget: int) -> Any:
        """The model a published method makes; one that refits gets as much text as our reconstruction."""
        options = self._options
        num_sequences = options.reconstruct_nsamples if name in REFITTING else options.nsamples
        return BASELINES[name](self.dense(), self.calibration(num_sequences), budget, options.batch_size)

    @functools.cached_property
    def _references(self) -> dict[str, DenseReference]:
        """The dense model on windows of every text that is measured on, by the text's name."""
        options = self._options
        return {
            Path(text.name).name: DenseReference(
                self.reference,
                split_windows(tokenize(text.content, self.tokenizer), options.eval_seq_len, None, options.eval_windows),
            )
            for text in self._evaluated
        }

    def quality(self, model: Any) -> dict[str, dict[str, float]]:
        """Perplexity by text, and KL(dense || model) in nats per token."""
        found = {name: reference.compare(model) for name, reference in self._references.items()}
        return {
            "ppl": {name: round(ppl, 2) for name, (ppl, _) in found.items()},
            "kl": {name: round(kl, 4) for name, (_, kl) in found.items()},
        }

    def accuracy(self, model: Any) -> dict[str, Any]:
        """Means over the zero-shot tasks with their standard errors, and every task's own."""
        options = self._options
        scores = {
            task.spec.name: run_task(task, model, self.tokenizer, batch_size=options.batch_size, limit=options.limit)
            for task in self._tasks
        }
        return {"limit": options.limit, **mean_accuracy(scores)}

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
        start = Budgeted(table.with_depth_slope(depth_slope), geometry, budget, Floors())
        if not search_steps:
            return start.plan(np.zeros((geometry.num_layers, 2)))
        state_file = self._options.output.with_suffix(f".{method}.{budget}.search.json")
        state = search(self._moves(start, refit), start, search_steps, state_file=state_file)
        self._found["search_kl"] = [round(divergence, 4) for divergence in state.divergences]
        self._found["log_factors"] = np.round(state.log_factors, 2).tolist()
        return start.plan(np.array(state.log_factors))

    def _moves(self, start: Budgeted, refit: bool) -> Moves:
        model, batch_size = self.dense(), self._options.batch_size
        calibration = self.calibration(DEFAULT_PROFILE_NSAMPLES if refit else DEFAULT_SEARCH_NSAMPLES, SEED + 1)
        if not refit:
            return GradientMoves(Decoder(model), start, calibration, batch_size=batch_size)
        surgery_of = functools.partial(surgery, model)
        return ProfileMoves(Decoder(model), start, calibration, surgery_of, batch_size=batch_size)

    def reconstructed(self, model: Any, plan: Any, num_sequences: int | None = None, whole_blocks: bool = False) -> Any:
        """The pruned model with its writers, or blocks, refitted; consumes the dense one."""
        options = self._options
        calibration = self.calibration(num_sequences or options.reconstruct_nsamples)
        asked = [[asdict(keep) for keep in plan.layers], plan.writer_bias, whole_blocks, calibration.sha256]
        fingerprint = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        finished = FinishedLayers(options.output.with_suffix(f".{fingerprint[:12]}"), fingerprint)
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


def cut_only(bench: Bench, budget: int, method: str, search_steps: int = 0, labels: str = "text") -> Any:
    return apply_plan(bench.dense(), bench.plan(method, budget, search_steps, labels))


def cut_and_reconstruct(
    bench: Bench, budget: int, method: str, search_steps: int = 0, writer_bias: bool = False
) -> Any:
    plan = replace(bench.plan(method, budget, search_steps, refit=True), writer_bias=writer_bias)
    return bench.reconstructed(bench.dense(), plan)


def by_recipe(bench: Bench, budget: int, name: str, **flags: Any) -> Any:
    """What ``--recipe NAME`` makes of this bench's text, and of as many sequences where it names no number."""
    recipe = {**PruneConfig.RECIPES[name], **flags}
    refit = "reconstruct" in recipe
    settings = {"refit": refit, "depth_slope": recipe.get("depth_slope", 0.0), "num_sequences": recipe.get("nsamples")}
    plan = bench.plan(recipe["importance_method"], budget, recipe.get("search", 0), **settings)
    if not refit:
        return apply_plan(bench.dense(), plan)
    whole_blocks = recipe["reconstruct"] == "blocks"
    return bench.reconstructed(bench.dense(), plan, recipe.get("reconstruct_nsamples"), whole_blocks)


def published(bench: Bench, budget: int, name: str) -> Any:
    return bench.baseline(name, budget)


WAYS: dict[str, Callable[[Bench, int], Any]] = {
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


if __name__ == "__main__":
    main()
