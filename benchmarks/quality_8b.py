#!/usr/bin/env python3
"""Quality of an 8B model with its real weights by the protocol of the published numbers in docs/QUALITY.md.

Prunes 25 and 50 % of the decoder layers' parameters with the recipe best, measures WikiText-2 perplexity in windows of
4096 tokens and zero-shot accuracy, and prints rows for the table there. Resumes from the work folder. Other models,
texts and sizes work as well.

    python benchmarks/quality_8b.py --base_model meta-llama/Meta-Llama-3-8B --calibrate fineweb_edu.jsonl \\
        --work_dir WORK --output quality_8b.json --device cuda:0
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from machine import provenance

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--calibrate", required=True, help="texts, as --dataset of run_global_pruning.py")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.5], help="fractions of the decoder layers")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--seq_len", default="2048", help="tokens of a calibration sequence")
    parser.add_argument(
        "--prune_flags", nargs="*", default=["search_nsamples=128"], help="further flags, as name=value"
    )
    parser.add_argument("--tasks", default="wikitext,zeroshot")
    parser.add_argument("--eval_flags", nargs="*", default=["seq_len=4096"], help="others, as name=value")
    parser.add_argument("--data_dir", help="local texts and tasks")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    common = ["--device", options.device, *(["--data_dir", options.data_dir] if options.data_dir else [])]
    prune_all(options, common)
    rows = [row for ratio in options.ratios for row in measure(options, ratio, common)]
    unique = {(row["way"], row["ratio"]): row for row in rows}
    result = {**provenance(), "base_model": Path(options.base_model).name, "rows": list(unique.values())}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result["rows"]))


def folder_of(options: argparse.Namespace, ratio: float) -> Path:
    return Path(options.work_dir) / f"{options.recipe}_{100 * ratio:g}"


def prune_all(options: argparse.Namespace, common: list[str]) -> None:
    """Prune to every size that the work folder lacks, from one scoring."""
    missing = [ratio for ratio in options.ratios if not folder_of(options, ratio).exists()]
    if not missing:
        return
    name = options.recipe if len(missing) > 1 else folder_of(options, missing[0]).name  # of several, each adds its own
    run(
        "run_global_pruning.py",
        *("--base_model", options.base_model, "--output_name", name, "--results_dir", str(options.work_dir)),
        *("--pruning_ratio", *(f"{ratio:g}" for ratio in missing), "--ratio_of", "decoder", "--no_bin"),
        *("--recipe", options.recipe, "--dataset", options.calibrate, "--seq_len", options.seq_len),
        *("--skip_evaluation", *flags_of(options.prune_flags), *common),
    )


def measure(options: argparse.Namespace, ratio: float, common: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the dense and the pruned model's numbers of one size; what was measured before is not measured again."""
    folder = folder_of(options, ratio)
    models = ("--model_path", str(folder), "--base_model", options.base_model, "--compare")
    run("evaluation/run_evaluation.py", *models, "--tasks", options.tasks, *flags_of(options.eval_flags), *common)
    found = json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    seconds = json.loads((folder / "pruning_analysis.json").read_text(encoding="utf-8"))["timings_s"]
    for role, way in (("dense", "dense"), ("pruned", options.recipe)):
        values = {
            f"{item['task']} {metric['name']}": round(metric["value"], 4)
            for item in found["results"]
            for metric in item["metrics"]
            if item["role"] == role
        }
        average = found["zero_shot_average"].get(role)
        pruning = {"seconds": seconds} if role == "pruned" else {}
        size = {"way": way, "ratio": ratio if role == "pruned" else 0.0}
        yield {**size, "values": values, "zero_shot_average": average, **pruning}


def run(script: str, *arguments: str) -> None:
    command = [sys.executable, str(REPOSITORY / script), *arguments]
    print(shlex.join(["python", script, *arguments]), file=sys.stderr, flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def flags_of(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in (f"--{setting.partition('=')[0]}", setting.partition("=")[2])]


def table(rows: list[Mapping[str, Any]]) -> str:
    """Return the rows as Markdown: every perplexity, and the mean accuracy."""
    texts = list(dict.fromkeys(name for row in rows for name in row["values"] if name.endswith("token_ppl")))
    lines = ["| | removed | " + " | ".join([*texts, "mean accuracy, %"]) + " |", "|" + "---|" * (len(texts) + 3)]
    for row in rows:
        values = [f"{row['values'][text]:.2f}" if text in row["values"] else "" for text in texts]
        mean = row["zero_shot_average"]
        values.append("" if mean is None else f"{100 * mean['acc_norm']:.1f}")
        lines.append(f"| `{row['way']}` | {row['ratio']:.0%} | " + " | ".join(values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
