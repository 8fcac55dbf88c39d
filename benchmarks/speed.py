#!/usr/bin/env python3
"""Speed of pruned models beside the dense one, in Transformers, llama.cpp and vLLM.

Prunes a model at several ratios, with odd and aligned widths and equal sizes in every layer, or takes finished folders:

python benchmarks/speed.py --dense FOLDER --ratios 0.2 0.3 0.5 --output benchmarks/results/speed_smollm2.json
python benchmarks/speed.py --models dense=FOLDER p20=FOLDER --output speed.json

Every model runs in a process of its own. The processes take turns within each repeat, and the least seconds of all
repeats count, so that a busy machine slows all models alike. A speed is the dense model's seconds over the model's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import provenance

import run_global_pruning
from hgsp.console.exit_codes import quiet_libraries
from hgsp.exports.export import export
from hgsp.exports.source import read_source

#: Variant -> flags of the recipe.
VARIANTS = {
    "odd": ["--mlp_multiple_of", "1"],
    "aligned": ["--mlp_multiple_of", "64"],
    "uniform": ["--mlp_multiple_of", "1", "--uniform"],
    "uniform-aligned": ["--mlp_multiple_of", "64", "--uniform"],
}
DENSE = "dense"
#: Bytes of a key or value in the caches of all engines measured.
CACHE_BYTES = 2


@dataclass(frozen=True)
class Workload:
    """Phases and batch sizes to measure; ``decode_len`` tokens follow prompts of ``prompt_len``."""

    prompt_len: int
    decode_len: int
    batch_sizes: tuple[int, ...]
    repeats: int

    def points(self) -> list[dict[str, Any]]:
        lengths = {"prompt_len": self.prompt_len, "decode_len": self.decode_len}
        phases = ("prefill", "decode")
        return [{"phase": phase, "batch_size": size, **lengths} for phase in phases for size in self.batch_sizes]


class Worker:
    """A process that holds one model in one engine."""

    def __init__(self, python: str, engine: str, model: Path, workload: Workload, threads: int) -> None:
        limits = {"max_batch": max(workload.batch_sizes), "max_len": workload.prompt_len + workload.decode_len + 8}
        flags = [part for name, value in limits.items() for part in (f"--{name}", str(value))]
        script = Path(__file__).with_name("speed_worker.py")
        command = [python, script, engine, model, "--threads", str(threads), *flags]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.name = f"{model.name} in {engine}"
        self.load_seconds: float = self._answer()["load_seconds"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def measure(self, point: dict[str, Any]) -> dict[str, float]:
        assert self._process.stdin is not None
        print(json.dumps(point), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: run speed_worker.py by hand to see why")
        answer: dict[str, float] = json.loads(line)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--dense", type=Path, help="a model to prune in every variant")
    models.add_argument("--models", nargs="+", metavar="NAME=FOLDER", help="finished folders, the dense one first")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3, 0.5])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--gguf_types", nargs="*", default=["f16", "q8_0"], help="types to run in llama.cpp")
    parser.add_argument("--no_transformers", action="store_true")
    parser.add_argument("--vllm_python", help="the Python of an environment with vLLM (default: vLLM is not measured)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt_len", type=int, default=256)
    parser.add_argument("--decode_len", type=int, default=32)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="JSON; a table goes beside it as Markdown")
    options = parser.parse_args()
    quiet_libraries()
    workload = Workload(options.prompt_len, options.decode_len, tuple(options.batch_sizes), options.repeats)
    with tempfile.TemporaryDirectory() as work:
        folders = named_folders(options.models) if options.models else pruned_folders(options, Path(work))
        engines = {} if options.no_transformers else {"transformers bf16": ("transformers", sys.executable, None)}
        engines |= {f"llama.cpp {kind}": ("llama.cpp", sys.executable, kind) for kind in options.gguf_types}
        if options.vllm_python:
            engines["vllm bf16"] = ("vllm", options.vllm_python, None)
        measured = {}
        for name, (engine, python, gguf_type) in engines.items():
            files = {
                model: folder if gguf_type is None else gguf_of(folder, gguf_type, Path(work))
                for model, folder in folders.items()
            }
            measured[name] = measure(files, engine, python, workload, options.threads)
        sizes = {name: sizes_of(folder) for name, folder in folders.items()}
    result = {**provenance(), "engine_threads": options.threads, "workload": asdict(workload)}
    result |= {"models": sizes, "engines": measured}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = table_of(result)
    options.output.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)


def named_folders(models: list[str]) -> dict[str, Path]:
    return {name: Path(folder) for name, folder in (item.split("=", 1) for item in models)}


def pruned_folders(options: argparse.Namespace, work: Path) -> dict[str, Path]:
    """Prune the dense model in every variant at every ratio, from one set of scores."""
    folders, scores = {DENSE: options.dense}, work / "scores.npz"
    common = ["--base_model", options.dense, "--results_dir", work, "--device", "cpu", "--skip_evaluation", "--no_bin"]
    common += ["--dataset", "builtin", "--nsamples", "8", "--recipe", "fast", "--temperature", "0"]
    for variant in options.variants:
        for ratio in options.ratios:
            name = f"{variant}-{ratio * 100:g}"
            known = ["--scores", scores] if scores.is_file() else []
            flags = [*common, *known, "--pruning_ratio", ratio, "--output_name", name, *VARIANTS[variant]]
            if run_global_pruning.main([str(flag) for flag in flags]):
                raise SystemExit(f"{name} could not be pruned")
            folders[name] = work / name
            if not scores.is_file():
                scores.write_bytes((work / name / "scores.npz").read_bytes())
    return folders


def gguf_of(folder: Path, gguf_type: str, work: Path) -> Path:
    """Export a folder; the self-check is the tests' business."""
    written = export(folder, "gguf", work / f"{folder.name}-{gguf_type}", gguf_type=gguf_type, self_check=False)
    return written.folder / written.exported.files[0]


def measure(
    files: dict[str, Path], engine: str, python: str, workload: Workload, threads: int
) -> dict[str, dict[str, Any]]:
    """Return load seconds, file size, and the least wall and CPU seconds of every point, per model."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(python, engine, file, workload, threads)) for name, file in files.items()
        }
        rows: dict[str, dict[str, Any]] = {
            name: {"load_seconds": worker.load_seconds, "bytes": num_bytes(files[name]), "points": workload.points()}
            for name, worker in workers.items()
        }
        for repeat in range(workload.repeats + 1):  # the first warms up
            for index, point in enumerate(workload.points()):
                for name, worker in workers.items():
                    seconds, kept = worker.measure(point), rows[name]["points"][index]
                    if repeat:
                        kept |= {clock: min(value, kept.get(clock, value)) for clock, value in seconds.items()}
    return rows


def num_bytes(model: Path) -> int:
    """Return the size of the weights: of a file, or of a folder's safetensors files."""
    files = [model] if model.is_file() else model.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def sizes_of(folder: Path) -> dict[str, Any]:
    """Return widths and KV groups of all layers, and the bytes that a token adds to the KV cache."""
    source = read_source(folder)
    groups = [shape.num_kv_groups for shape in source.shapes]
    return {
        "mlp_widths": [shape.mlp_width for shape in source.shapes],
        "kv_groups": groups,
        "kv_bytes_per_token": 2 * sum(groups) * source.head_dim * CACHE_BYTES,
    }


def table_of(result: dict[str, Any]) -> str:
    """Return a Markdown table per engine: speeds relative to the first model, in CPU seconds (wall seconds)."""
    blocks = []
    for engine, rows in result["engines"].items():
        dense = next(iter(rows.values()))
        points = [f"{point['phase']}, batch {point['batch_size']}" for point in dense["points"]]
        lines = [
            f"**{engine}**: times as fast as dense in CPU seconds (wall seconds)\n",
            f"| model | MB | load s | KV bytes per token | {' | '.join(points)} |",
            f"|---|{'---|' * (3 + len(points))}",
        ]
        for name, row in rows.items():
            speeds = [
                f"{base['cpu'] / point['cpu']:.2f} ({base['wall'] / point['wall']:.2f})"
                for base, point in zip(dense["points"], row["points"], strict=True)
            ]
            cache = result["models"][name]["kv_bytes_per_token"]
            start = f"{name} | {row['bytes'] / 1e6:.1f} | {row['load_seconds']:.1f} | {cache:,}"
            lines.append(f"| {start} | {' | '.join(speeds)} |")
        blocks.append("\n".join(lines))
    threads, processor = result["engine_threads"], result["processor"]
    origin = f"`{result['command']}`, commit {result['commit']}, {threads} thread(s) of {processor}."
    return "\n\n".join([*blocks, origin]) + "\n"


if __name__ == "__main__":
    main()
