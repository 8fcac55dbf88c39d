#!/usr/bin/env python3
"""Perplexity after each way of making a model smaller, at the same size. No training. JSON, and a table beside it.

A way is a function in WAYS from the bench and the parameters to remove to the pruned model; a baseline is one more.
Cells already in the output file are not computed again, and scores are kept beside it.

    python benchmarks/quality.py --base_model MODEL --calibrate wiki.valid.raw --evaluate wiki.test.raw c4.jsonl \\
        --ways fisher fisher+lstsq --ratios 0.2 0.3 0.5 --output quality.json
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baselines import BASELINES
from machine import provenance

from evaluation.metrics.ppl import perplexity
from hgsp.calibration import build_calibration
from hgsp.cli import quiet_libraries
from hgsp.data import CALIBRATE, EVALUATE, load_text
from hgsp.geometry import geometry_of
from hgsp.importance import METHODS
from hgsp.layerwise import Decoder
from hgsp.loading import inspect_model, load_dense, load_tokenizer
from hgsp.reconstruct import reconstruct
from hgsp.scores import Scores, sample_weights
from hgsp.scoring import ScoringOptions, score_groups
from hgsp.selection import Floors, select_groups
from hgsp.surgery import Surgery, apply_plan

SEED = 42
DTYPE = "bfloat16"
#: Baselines that fit weights to text.
REFITTING = {"osscar"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["fisher", "fisher+lstsq"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.3, 0.5], help="of the decoder layers")
    parser.add_argument("--calibrate", default="wikitext2")
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--reconstruct_nsamples", type=int, default=256)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--evaluate", nargs="+", default=["wikitext2"])
    parser.add_argument("--eval_seq_len", type=int, default=1024)
    parser.add_argument("--eval_windows", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()

    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"rows": []}
    done = {(row["way"], row["ratio"]) for row in result["rows"]}
    bench = Bench(options)
    result |= {**provenance(), "base_model": Path(options.base_model).name}
    if "dense" not in result:
        result["dense"] = bench.perplexities(bench.dense())
    for way, ratio in itertools.product(options.ways, options.ratios):
        if (way, ratio) not in done:
            result["rows"].append({"way": way, "ratio": ratio, **bench.measure(way, ratio)})
            print(json.dumps(result["rows"][-1]), flush=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n")
            options.output.with_suffix(".md").write_text(markdown(result))


class Bench:
    """One model, one calibration text, several evaluation texts; scores are kept per importance method."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.source = inspect_model(options.base_model)
        self.tokenizer = load_tokenizer(options.base_model)
        self._text = load_text(options.calibrate, CALIBRATE)
        self._evaluated = [load_text(name, EVALUATE) for name in options.evaluate]

    def dense(self) -> Any:
        return load_dense(self.source, DTYPE, self._options.device)

    def calibration(self, num_sequences: int) -> Any:
        options = self._options
        return build_calibration(self._text, self.tokenizer, num_sequences, options.seq_len, SEED, at_most=True)

    def measure(self, way: str, ratio: float) -> dict[str, Any]:
        """Perplexities and shape of one cell, and the seconds it took to make the model from the dense one."""
        start = time.perf_counter()
        model = WAYS[way](self, round(ratio * self.source.geometry.decoder_params))
        seconds = round(time.perf_counter() - start, 1)
        removed = self.source.geometry.total_params - sum(parameter.numel() for parameter in model.parameters())
        reached = round(removed / self.source.geometry.decoder_params, 4)
        return {"ppl": self.perplexities(model), "reached_of_decoder": reached, "seconds": seconds}

    def perplexities(self, model: Any) -> dict[str, float]:
        options = self._options
        return {
            Path(text.name).name: round(
                perplexity(
                    model,
                    self.tokenizer,
                    text,
                    seq_len=options.eval_seq_len,
                    max_windows=options.eval_windows,
                    batch_size=4,
                ).ppl,
                2,
            )
            for text in self._evaluated
        }

    def baseline(self, name: str, budget: int) -> Any:
        """The model a published method makes; one that refits gets as much text as our reconstruction."""
        options = self._options
        num_sequences = options.reconstruct_nsamples if name in REFITTING else options.nsamples
        return BASELINES[name](self.dense(), self.calibration(num_sequences), budget, options.batch_size)

    def plan(self, method: str, budget: int) -> Any:
        geometry = self.source.geometry
        table, _ = self._scores(method).table(geometry, METHODS[method].normalization, 0.0, None)
        return select_groups(table, geometry, budget, Floors())

    def reconstructed(self, model: Any, plan: Any) -> Any:
        """The pruned model with its writers refitted; consumes the dense one."""
        surgery = Surgery(model.config, geometry_of(model), plan, lambda name: model.get_parameter(name).detach())
        options = self._options
        calibration = self.calibration(options.reconstruct_nsamples)
        reconstruct(Decoder(model), surgery, calibration, batch_size=options.batch_size)
        return apply_plan(model, plan, surgery.replaced)

    def _scores(self, method: str) -> Scores:
        path = self._options.output.with_suffix(f".{method}.npz")
        if not path.exists():
            model = self.dense()
            found = score_groups(
                Decoder(model),
                method,
                self.calibration(self._options.nsamples),
                options=ScoringOptions(batch_size=self._options.batch_size),
            )
            state = model.state_dict()
            sample = sample_weights(lambda name: state[name][:1], self.source.geometry.num_layers)
            Scores(found.by_layer, None, sample, {"importance_method": method}).write(path)
        return Scores.read(path)


def cut_only(bench: Bench, budget: int, method: str) -> Any:
    return apply_plan(bench.dense(), bench.plan(method, budget))


def cut_and_reconstruct(bench: Bench, budget: int, method: str) -> Any:
    return bench.reconstructed(bench.dense(), bench.plan(method, budget))


def published(bench: Bench, budget: int, name: str) -> Any:
    return bench.baseline(name, budget)


WAYS: dict[str, Callable[[Bench, int], Any]] = {
    **{method: functools.partial(cut_only, method=method) for method in METHODS},
    **{f"{method}+lstsq": functools.partial(cut_and_reconstruct, method=method) for method in METHODS},
    **{name: functools.partial(published, name=name) for name in BASELINES},
}


def markdown(result: dict[str, Any]) -> str:
    """One table per evaluation text: ways by ratios."""
    ratios = sorted({row["ratio"] for row in result["rows"]})
    ways = list(dict.fromkeys(row["way"] for row in result["rows"]))
    cells = {(row["way"], row["ratio"]): row["ppl"] for row in result["rows"]}
    lines = [f"{result['base_model']}, `{result['command']}`, commit {result['commit']}, {result['processor']}", ""]
    for text, dense in result["dense"].items():
        lines += [f"| {text} | dense | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |"]
        lines += ["|" + "---|" * (len(ratios) + 2)]
        for way in ways:
            found = [cells.get((way, ratio), {}).get(text) for ratio in ratios]
            values = ["" if ppl is None else f"{ppl:,.1f}" for ppl in found]
            lines += [f"| `{way}` | {dense:,.1f} | " + " | ".join(values) + " |"]
        lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
