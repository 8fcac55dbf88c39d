#!/usr/bin/env python3
"""Plans for a target speed ranked by measured latency, by latency with emptied blocks, and by parameters.

python benchmarks/speed_targets.py --base_model HuggingFaceTB/SmolLM2-135M-Instruct --work_dir work --output result.json

All plans reach the same predicted speed. Perplexity is that of the pruning command; measured speeds are medians of
rounds in which dense and pruned models take turns, by default in CPU seconds of one thread. The table, the scores and
the results of finished plans in the work folder are used again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from machine import provenance

from hgsp.console.exit_codes import quiet_libraries
from hgsp.console.report_schema import PRUNING_REPORT
from hgsp.costs.latency import LatencyTable, Workload
from hgsp.costs.names import CLOCKS
from hgsp.costs.passes import TimedPasses
from hgsp.models.checkpoint import load_pruned
from hgsp.models.loading import DTYPES

SETTINGS: dict[str, list[str]] = {
    "parameters": ["--cost", "params"],
    "latency": ["--cost", "latency"],
    "latency, blocks may be emptied": ["--cost", "latency", "--allow_empty_blocks"],
}
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.2, 1.5])
    parser.add_argument("--workload", default="decode,1,512", help="PHASE,BATCH,CONTEXT")
    parser.add_argument("--dataset", default="wikitext2")
    parser.add_argument("--reconstruct_nsamples", type=int, default=128)
    parser.add_argument("--data_dir")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--clock", default="cpu", choices=CLOCKS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    table, scores = profile(options), score(options)
    rows = [prune(options, table, scores, name, speedup) for speedup in options.speedups for name in SETTINGS]
    measure(options, rows)
    result = {**provenance(), "base_model": Path(options.base_model).name, "workload": options.workload, "rows": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(text(rows))


def command(*arguments: Any) -> None:
    """Run a command of this checkout in a process of its own."""
    code = "import sys; from hgsp.cli.main import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, cwd=ROOT)


def profile(options: argparse.Namespace) -> Path:
    """Return the latency table of the workload, measured unless it is there."""
    phase, batch_size, context_length = options.workload.split(",")
    table: Path = options.work_dir.resolve() / "table.json"
    if not table.exists():
        place = ("--device", options.device, "--dtype", options.dtype, "--clock", options.clock, "--threads", 1)
        sizes = ("--mode", phase, "--batch_sizes", batch_size, "--context_lengths", context_length)
        command("profile", options.base_model, "--output", table, *place, *sizes)
    return table


def score(options: argparse.Namespace) -> Path:
    """Return the scores of all plans, made unless they are there."""
    scores: Path = options.work_dir.resolve() / "scores.npz"
    if not scores.exists():
        method = ("--importance_method", "fisher_token", "--nsamples", 64, *texts(options))
        command("score", "--base_model", options.base_model, "--output", scores, *method)
    return scores


def texts(options: argparse.Namespace) -> tuple[Any, ...]:
    """Return the flags of the calibration texts, device and dtype."""
    data = ("--data_dir", options.data_dir) if options.data_dir else ()
    return ("--dataset", options.dataset, "--device", options.device, "--dtype", options.dtype, *data)


def prune(options: argparse.Namespace, table: Path, scores: Path, setting: str, speedup: float) -> dict[str, Any]:
    """Prune to a predicted speed-up, and return the plan's sizes and perplexity."""
    name = f"{setting.replace(', ', '-').replace(' ', '-')}-{speedup:g}"
    folder: Path = options.work_dir.resolve() / name
    if not (folder / PRUNING_REPORT).exists():
        measured = ("--eval_tasks", "wikitext", "--eval_seq_len", 1024, "--eval_max_windows", 8)
        where = ("--base_model", options.base_model, "--results_dir", options.work_dir.resolve(), "--output_name", name)
        target = ("--target_speedup", speedup, "--profile", table, "--workload", options.workload)
        how = ("--recipe", "balanced", "--scores", scores, "--no_bin")
        refits = ("--reconstruct_nsamples", options.reconstruct_nsamples)
        command("cut", *where, *target, *how, *SETTINGS[setting], *refits, *measured, *texts(options))
    report = json.loads((folder / PRUNING_REPORT).read_text(encoding="utf-8"))
    (text,) = report["evaluation"]["after"].values()
    (dense,) = report["evaluation"]["before"].values()
    return {
        "setting": setting,
        "target": speedup,
        "folder": str(folder),
        "predicted": report["speed"]["predicted_speedup"],
        "ppl": text["ppl"],
        "ppl_dense": dense["ppl"],
        "reached_ratio": report["reached_ratio"],
        "emptied": len((report["whole_blocks"] or {}).get("emptied", ())),
    }


def measure(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Add the measured speed-up to every row; all models are in memory and take turns."""
    phase, batch_size, context_length = options.workload.split(",")
    workload, dtype = Workload(phase, int(batch_size), int(context_length)), DTYPES[options.dtype]
    paths = {"dense": options.base_model} | {row["folder"]: row["folder"] for row in rows}
    models = {name: load_pruned(path, device=options.device, dtype=dtype) for name, path in paths.items()}
    clock = LatencyTable.read(options.work_dir / "table.json").clock
    passes = {name: TimedPasses(model, workload, clock) for name, model in models.items()}
    rounds = [{name: one.run() for name, one in passes.items()} for _ in range(options.rounds + 1)][1:]
    for row in rows:
        folder = row.pop("folder")
        row["measured"] = statistics.median(taken["dense"] / taken[folder] for taken in rounds)


def text(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the rows."""
    lines = ["| target | ranked by | removed | predicted | measured | perplexity |", "|---|---|---|---|---|---|"]
    for row in rows:
        setting = row["setting"] + (f" ({row['emptied']} emptied)" if row["emptied"] else "")
        lines.append(
            f"| x {row['target']:g} | {setting} | {row['reached_ratio']:.1%} | x {row['predicted']:.2f} "
            f"| x {row['measured']:.2f} | {row['ppl']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
