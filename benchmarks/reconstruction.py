#!/usr/bin/env python3
"""What scoring and reconstruction cost per layer at the shape of a real model, and what the whole model would take.

Both run on a model with few layers and random weights, cut by 20 %. Solving the least squares takes the same time
whatever the text, and is timed apart; all else grows with the tokens. The vocabulary is next to nothing: what is timed
are layers.

    python benchmarks/reconstruction.py --model LLaMA-3-8B --output reconstruction.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from machine import provenance
from shapes import SHAPES, byte_tokenizer, config_of
from transformers import AutoModelForCausalLM

from hgsp.calibration import build_calibration
from hgsp.config import DEFAULT_PROFILE_NSAMPLES, DEFAULT_RECONSTRUCT_NSAMPLES, PruneConfig
from hgsp.data import CALIBRATE, load_text
from hgsp.geometry import geometry_of
from hgsp.groups import build_group_table
from hgsp.layerwise import Decoder
from hgsp.least_squares import solve
from hgsp.reconstruct import reconstruct
from hgsp.scoring import ScoringOptions, score_groups
from hgsp.selection import Floors, budget_for_ratio, select_groups
from hgsp.surgery import Surgery

RATIO = 0.2
SMALL_VOCABULARY = 258


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="LLaMA-3-8B")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--nsamples", type=int, default=8)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = measure(options)
    result = {
        **provenance(),
        "model": options.model,
        "layers": options.layers,
        "one_layer": found,
        "whole_model": {
            name: whole_model(options.model, found, recipe) for name, recipe in PruneConfig.RECIPES.items()
        },
    }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per layer of scoring and of reconstruction."""
    with torch.device(options.device):
        config = config_of(options.model, num_hidden_layers=options.layers, vocab_size=SMALL_VOCABULARY)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    text = load_text("builtin", CALIBRATE)
    calibration = build_calibration(text, byte_tokenizer(), options.nsamples, options.seq_len, 42)
    decoder, geometry, floors = Decoder(model), geometry_of(model), Floors()
    scoring = ScoringOptions(batch_size=options.batch_size)
    found, score_s = timed(lambda: score_groups(decoder, "fisher", calibration, options=scoring))
    plan = select_groups(
        build_group_table(found.by_layer, geometry), geometry, budget_for_ratio(geometry, RATIO, floors), floors
    )
    surgery = Surgery(model.config, geometry, plan, lambda name: model.get_parameter(name).detach())
    solve_s = 0.0

    def timed_solve(*arguments: Any) -> Any:
        nonlocal solve_s
        solved, seconds = timed(lambda: solve(*arguments))
        solve_s += seconds
        return solved

    with patch("hgsp.reconstruct.solve", timed_solve):
        _, reconstruct_s = timed(lambda: reconstruct(decoder, surgery, calibration, batch_size=options.batch_size))
    return {
        "tokens": calibration.input_ids.numel(),
        "score_s": round(score_s / options.layers, 2),
        "solve_s": round(solve_s / options.layers, 2),
        "rest_of_reconstruct_s": round((reconstruct_s - solve_s) / options.layers, 2),
    }


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def whole_model(name: str, layer: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a recipe's parts with all layers and its own amount of text.

    A step of the search is counted as a reconstruction from all its text: more than it is, the judging included.
    """
    depth = config_of(name).num_hidden_layers

    def rebuilding(num_sequences: int, times: int = 1) -> dict[str, int]:
        share = num_sequences * PruneConfig.seq_len / layer["tokens"]
        return {"seconds": round(times * depth * (layer["solve_s"] + share * layer["rest_of_reconstruct_s"]))}

    num_scoring = recipe.get("nsamples", PruneConfig.nsamples)
    score_s = depth * layer["score_s"] * num_scoring * PruneConfig.seq_len / layer["tokens"]
    parts = {"score": {"seconds": round(score_s)}}
    if "search" in recipe:
        parts["search"] = rebuilding(DEFAULT_PROFILE_NSAMPLES, recipe["search"] + 1)
    if "reconstruct" in recipe:
        parts["reconstruct"] = rebuilding(recipe.get("reconstruct_nsamples", DEFAULT_RECONSTRUCT_NSAMPLES))
    return parts


if __name__ == "__main__":
    main()
