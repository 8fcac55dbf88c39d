#!/usr/bin/env python3
"""Perplexity after pruning, per importance method, score normalisation, temperature and ratio. No training.

Each method scores once; every combination is selected from those scores, applied and measured. Resumes from the output
file.

    python benchmarks/methods.py --base_model MODEL --calibrate wiki.valid.raw --evaluate wiki.test.raw \\
        --methods taylor fisher wanda --normalizations none rank --ratios 0.2 0.5 --output methods.json
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from machine import provenance

from hgsp.console.exit_codes import quiet_libraries
from hgsp.data.calibration import build_calibration
from hgsp.data.texts import CALIBRATE, EVALUATE, load_text
from hgsp.evaluation.metrics.ppl import perplexity
from hgsp.models.loaded import load_for_pruning
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.tokenizers import load_tokenizer
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.methods import METHODS
from hgsp.scoring.score import ScoringOptions
from hgsp.scoring.score_model import score_model
from hgsp.scoring.scores import RankingOptions, Scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--normalizations", nargs="+", default=["auto"])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2])
    parser.add_argument("--denominator", choices=("all", "decoder"), default="decoder")
    parser.add_argument("--calibrate", default="wikitext2")
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--evaluate", default="wikitext2")
    parser.add_argument("--eval_seq_len", type=int, default=1024)
    parser.add_argument("--eval_windows", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()

    result: dict[str, Any] = (
        json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"rows": []}
    )
    done = {key(row) for row in result["rows"]}
    bench = Bench(options)
    result |= {**provenance(), "base_model": Path(options.base_model).name, "dense": bench.dense}
    for method in options.methods:
        cells = itertools.product(options.normalizations, options.temperatures, options.ratios)
        for normalization, temperature, ratio in cells:
            row = {"method": method, "normalization": normalization, "temperature": temperature, "ratio": ratio}
            if key(row) not in done:
                result["rows"].append(row | bench.measure(method, normalization, temperature, ratio))
                print(json.dumps(result["rows"][-1]), flush=True)
                options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the settings that identify a row."""
    return row["method"], row["normalization"], row["temperature"], row["ratio"]


class Bench:
    """One model with one calibration and one evaluation text; caches the scores of each method."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._source = inspect_model(options.base_model)
        self._tokenizer = load_tokenizer(options.base_model)
        text = load_text(options.calibrate, CALIBRATE)
        self._calibration = build_calibration(text, self._tokenizer, options.nsamples, options.seq_len, 42)
        self._text = load_text(options.evaluate, EVALUATE)
        self._scores: dict[str, Scores] = {}
        self.dense = self._perplexity(load_dense(self._source, "bfloat16", options.device))

    def measure(self, method: str, normalization: str, temperature: float, ratio: float) -> dict[str, Any]:
        """Return perplexity and shape of one pruned model."""
        if method not in self._scores:
            self._scores[method] = self._score(method)
        geometry = self._source.geometry
        denominator = geometry.decoder_params if self._options.denominator == "decoder" else geometry.total_params
        table, _ = self._scores[method].ranked(geometry, RankingOptions(normalization, temperature))
        plan = select_groups(table, geometry, int(ratio * denominator), ShapeRules())
        pruned = apply_plan(load_dense(self._source, "bfloat16", self._options.device), plan)
        return {
            **self._perplexity(pruned),
            "reached_of_all": round(plan.removed_params / geometry.total_params, 4),
            "kept_kv_groups": sum(len(keep.kv_groups) for keep in plan.layers),
            "narrowest_mlp": min(len(keep.mlp_channels) for keep in plan.layers),
        }

    def _score(self, method: str) -> Scores:
        loaded = load_for_pruning(self._source, "bfloat16", self._options.device)
        name, options = Path(self._options.base_model).name, ScoringOptions(batch_size=8)
        return score_model(loaded, method, self._calibration, options, base_model=name, layer_importance="cosine")

    def _perplexity(self, model: Any) -> dict[str, Any]:
        options = self._options
        measured = perplexity(
            model,
            self._tokenizer,
            self._text,
            seq_len=options.eval_seq_len,
            max_windows=options.eval_windows,
            batch_size=4,
        )
        return {"ppl": round(measured.ppl, 2), "stderr": round(measured.stderr or 0.0, 2)}


if __name__ == "__main__":
    main()
