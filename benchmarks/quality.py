#!/usr/bin/env python3
"""Quality after pruning with different settings to the same size, without training. Writes JSON, tables and a plot.

Measures perplexity and KL to the dense model on the same windows and, with --tasks, mean zero-shot accuracy. Settings
are defined in quality_settings.py, published methods in baselines/. Resumes from the output file; scores and the state
of searches and reconstructions are kept next to it.

    python benchmarks/quality.py --base_model MODEL --calibrate wiki.valid.raw --evaluate wiki.test.raw c4.jsonl \\
        --ways fisher+lstsq llm-pruner flap-published --ratios 0.2 0.3 0.5 --output quality.json \\
        --tasks zeroshot --limit 200 --data_dir DATA
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from divergence import DenseReference
from machine import provenance
from quality_report import draw, markdown, mean_accuracy
from quality_settings import SETTINGS, Maker

from hgsp.console.exit_codes import quiet_libraries
from hgsp.data.calibration import tokenize
from hgsp.data.texts import EVALUATE, load_text
from hgsp.evaluation.metrics.harness import load_task, run_task
from hgsp.evaluation.metrics.ppl import split_windows
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT
from hgsp.evaluation.tasks import parse_tasks
from hgsp.models.half_precision import fp32_matmul_fallback


@fp32_matmul_fallback()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--ways", dest="settings", nargs="+", choices=SETTINGS, default=["fisher", "fisher+lstsq"])
    parser.add_argument(
        "--ratios",
        nargs="+",
        type=float,
        default=[0.2, 0.3, 0.5],
        help="fractions of the decoder layers' parameters to remove",
    )
    parser.add_argument("--calibrate", nargs="+", default=["wikitext2"], help="texts, which contribute equally")
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--reconstruct_nsamples", type=int, default=256)
    parser.add_argument("--mlp_multiple_of", type=int, help="as of the pruning command; 1 = any width")
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--seed", type=int, default=42, help="of the choice of sequences")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--evaluate", nargs="+", default=["wikitext2"])
    parser.add_argument("--eval_seq_len", type=int, default=1024)
    parser.add_argument("--eval_windows", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", default=[], help=f"{', '.join(ZERO_SHOT)}, or zeroshot for all")
    parser.add_argument("--limit", type=int, help="items per task")
    parser.add_argument("--data_dir", default=os.environ.get("HGSP_DATA_DIR"), help="local texts and tasks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.tasks = parse_tasks(",".join(options.tasks)) if options.tasks else ()
    if others := set(options.tasks) - set(ZERO_SHOT):
        parser.error(f"--tasks takes zero-shot tasks, not {', '.join(sorted(others))}")
    quiet_libraries()

    result: dict[str, Any] = (
        json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"rows": []}
    )
    done = {(row["way"], row["ratio"]) for row in result["rows"]}
    bench = Bench(options)
    result |= {**provenance(), "base_model": Path(options.base_model).name}
    if "dense" not in result:
        result["dense"] = bench.quality(bench.reference)["ppl"]
    if options.tasks and "dense_accuracy" not in result:
        result["dense_accuracy"] = bench.accuracy(bench.reference)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for setting, ratio in itertools.product(options.settings, options.ratios):
        if (setting, ratio) not in done:
            prune = functools.partial(SETTINGS[setting], bench.maker)
            result["rows"].append({"way": setting, "ratio": ratio, **bench.measure(prune, ratio)})
            print(json.dumps(result["rows"][-1]), flush=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            options.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
            draw(result, options.output.with_suffix(".png"))


class Bench:
    """Measures pruned versions of one model on several texts and tasks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.maker = Maker(options)
        self._evaluated = [load_text(name, EVALUATE, options.data_dir) for name in options.evaluate]
        self._tasks = [load_task(ZERO_SHOT[name], options.data_dir) for name in options.tasks]

    @functools.cached_property
    def reference(self) -> Any:
        """The dense model to measure and to compare with; settings load their own copy."""
        return self.maker.dense()

    def measure(self, prune: Callable[[int], Any], ratio: float) -> dict[str, Any]:
        """Prune and return quality, size, search results and the seconds that pruning took.

        ``cpu_seconds`` include scoring, which settings share, and are missing if a stage was resumed.
        """
        geometry = self.maker.source.geometry
        self.maker.found.clear()
        self.maker.before = 0.0
        start, cpu_start = time.perf_counter(), time.process_time()
        model = prune(round(ratio * geometry.decoder_params))
        taken = {"seconds": round(time.perf_counter() - start, 1)}
        if self.maker.before is not None:
            taken["cpu_seconds"] = round(time.process_time() - cpu_start + self.maker.before, 1)
        removed = geometry.total_params - sum(parameter.numel() for parameter in model.parameters())
        reached = round(removed / geometry.decoder_params, 4)
        found: dict[str, Any] = self.quality(model)
        if self._tasks:
            found["accuracy"] = self.accuracy(model)
        return {**found, "reached_of_decoder": reached, **taken, **self.maker.found}

    @functools.cached_property
    def _references(self) -> dict[str, DenseReference]:
        """The dense reference on the windows of every evaluation text, by the text's name."""
        options, references = self._options, {}
        for text in self._evaluated:
            ids = tokenize(text.content, self.maker.tokenizer)
            windows = split_windows(ids, options.eval_seq_len, None, options.eval_windows)
            references[Path(text.name).name] = DenseReference(self.reference, windows)
        return references

    def quality(self, model: Any) -> dict[str, dict[str, float]]:
        """Return perplexity, and KL(dense || model) in nats per token, by text."""
        found = {name: reference.compare(model) for name, reference in self._references.items()}
        return {
            "ppl": {name: round(ppl, 2) for name, (ppl, _) in found.items()},
            "kl": {name: round(kl, 4) for name, (_, kl) in found.items()},
        }

    def accuracy(self, model: Any) -> dict[str, Any]:
        """Return mean zero-shot accuracies with standard errors, and the accuracies of every task."""
        options, tokenizer = self._options, self.maker.tokenizer
        scores = {
            task.spec.name: run_task(task, model, tokenizer, batch_size=options.batch_size, limit=options.limit)
            for task in self._tasks
        }
        return {"limit": options.limit, **mean_accuracy(scores)}


if __name__ == "__main__":
    main()
