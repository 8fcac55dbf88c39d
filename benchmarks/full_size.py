#!/usr/bin/env python3
"""Prune a random-weight checkpoint of the exact shape of a published model with --offload, and check the result.

The checkpoint is written, scored on a few short sequences, pruned by 20 %, saved, and read back layer by layer: its
logits must equal those of the dense model with the removed groups masked.

    python benchmarks/full_size.py --model LLaMA-3-8B --work_dir scratch --output full_size.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import provenance
from shapes import SHAPES, byte_tokenizer, config_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from hgsp.environment import peak_memory_bytes
from hgsp.models.checkpoint import save_streamed
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model
from hgsp.models.offload import load_offloaded
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import kept_mask, select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.scores import Scores

REPOSITORY = Path(__file__).resolve().parent.parent
RATIO = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="LLaMA-3-8B")
    parser.add_argument("--method", default="taylor")
    parser.add_argument("--layers", type=int, help="number of layers, for a quick try (default: all)")
    parser.add_argument("--nsamples", default="4")
    parser.add_argument("--seq_len", default="64")
    parser.add_argument(
        "--work_dir", type=Path, required=True, help="scratch folder; needs about three times the model's size"
    )
    parser.add_argument("--no_bin", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    dense = options.work_dir / "dense"
    write_random_checkpoint(options.model, options.layers, dense)
    command = [
        *(sys.executable, "run_global_pruning.py", "--base_model", str(dense.resolve()), "--output_name", "pruned"),
        *("--results_dir", str(options.work_dir.resolve()), "--pruning_ratio", str(RATIO), "--temperature", "0.0"),
        *("--importance_method", options.method, "--dataset", "builtin", "--nsamples", options.nsamples),
        *("--seq_len", options.seq_len, "--offload", "--skip_evaluation", "--overwrite", "--device", "cpu"),
        *(["--no_bin"] if options.no_bin else []),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    if status:
        sys.exit(f"pruning failed with status {status}")
    result = {
        **provenance(),
        "model": options.model,
        "layers": options.layers or SHAPES[options.model][1]["num_hidden_layers"],
        "method": options.method,
        "tokens": int(options.nsamples) * int(options.seq_len),
        "weight_bytes": sum(file.stat().st_size for file in dense.glob("*.safetensors")),
        "pruning_wall_s": round(wall_s, 1),
        "pruning_peak_rss_bytes": usage.ru_maxrss * 1024,
        **check(dense, options.work_dir / "pruned"),
        **time_selection(options.work_dir / "pruned", dense),
        "checking_peak_rss_bytes": peak_memory_bytes("cpu"),
    }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def write_random_checkpoint(name: str, layers: int | None, folder: Path) -> None:
    """Write random weights one shard at a time, unless the checkpoint exists."""
    if (folder / "config.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = config_of(name, **({"num_hidden_layers": layers} if layers else {}))
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shapes = {tensor_name: tensor.shape for tensor_name, tensor in skeleton.state_dict().items()}

    def random(tensor_name: str) -> Tensor:
        if "norm" in tensor_name:
            return torch.ones(shapes[tensor_name], dtype=torch.bfloat16)
        return torch.empty(shapes[tensor_name], dtype=torch.bfloat16).normal_(std=0.02)

    save_streamed(skeleton, random, byte_tokenizer(), folder, skeleton.generation_config, max_shard_bytes=10**9)


@torch.no_grad()
def check(dense_folder: Path, pruned_folder: Path) -> dict[str, Any]:
    """Compare last-token logits of the pruned and the masked dense model, relative to their standard deviation."""
    plan = PrunePlan.read_json(pruned_folder / "prune_plan.json")
    input_ids = torch.randint(0, 256, (1, 16), generator=torch.Generator().manual_seed(0))
    small, dense = (
        load_offloaded(inspect_model(str(folder)), "bfloat16", "cpu")[0] for folder in (pruned_folder, dense_folder)
    )
    pruned = logits(small, small, input_ids)
    masked = logits(dense, MaskedLayers(dense, geometry_of(dense.model), plan), input_ids)
    report = json.loads((pruned_folder / "pruning_analysis.json").read_text(encoding="utf-8"))
    difference = float((pruned - masked).abs().max() / masked.std())
    if difference > 0.1:  # bf16 sums in another order
        sys.exit(f"pruned and masked logits differ by {difference} standard deviations")
    return {
        "asked_ratio": RATIO,
        "reached_ratio": report["reached_ratio"],
        "timings_s": report["timings_s"],
        "max_logit_difference_in_std": round(difference, 4),
    }


def logits(decoder: Decoder, layers: Decoder | MaskedLayers, input_ids: Tensor) -> Tensor:
    """Return last-token logits [V], float32, loading one layer at a time."""
    hidden = decoder.embed(input_ids)
    for index in range(decoder.num_layers):
        with layers.layer(index) as module:
            hidden = decoder.call(module, hidden)
    return decoder.logits(hidden[:, -1])[0].float()


def time_selection(pruned_folder: Path, dense_folder: Path) -> dict[str, Any]:
    """Return the seconds needed to select from all groups, and to write them as CSV."""
    geometry = inspect_model(str(dense_folder)).geometry
    scores = Scores.read(pruned_folder / "scores.npz")
    start = time.perf_counter()
    table = build_group_table(scores.by_layer, geometry)
    plan = select_groups(table, geometry, budget_for_ratio(geometry, RATIO, ShapeRules()), ShapeRules())
    select_s = time.perf_counter() - start
    start = time.perf_counter()
    table.write_csv(pruned_folder / "global_group_table.csv", kept_mask(table, plan))
    return {"groups": len(table), "cut_s": round(select_s, 3), "csv_s": round(time.perf_counter() - start, 2)}


if __name__ == "__main__":
    main()
