#!/usr/bin/env python3
"""What scoring and reconstruction cost per layer at the shape of a real model, and what the whole model would take.

Both run on a model with few layers and random weights, cut by 20 %. Solving the least squares takes the same time
whatever the text, and is timed apart; all else grows with the tokens. The vocabulary is next to nothing: what is timed
are layers. Beside the seconds stand the operations of one layer by number format, counted from the shapes, so that the
cost on other hardware can be worked out from its data sheet.

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

import numpy as np
import torch
from machine import provenance
from shapes import SHAPES, byte_tokenizer, config_of
from transformers import AutoModelForCausalLM

from hgsp.calibration import build_calibration
from hgsp.config import DEFAULT_PROFILE_NSAMPLES, DEFAULT_RECONSTRUCT_NSAMPLES, PruneConfig
from hgsp.data import CALIBRATE, load_text
from hgsp.families import ATTENTION_WRITER, MLP_WRITER
from hgsp.geometry import geometry_of
from hgsp.groups import build_group_table
from hgsp.layerwise import Decoder
from hgsp.least_squares import JUDGED_OUTPUTS, RIDGES, solve
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
    """Seconds per layer of scoring and of reconstruction, and the operations of the latter."""
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
        "operations": operations(surgery, geometry.decoder_params, calibration.input_ids.numel()),
    }


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def operations(surgery: Surgery, dense_params: int, num_tokens: int) -> dict[str, float]:
    """Multiplications and additions of reconstructing one layer, in 1e12, by the format they are done in.

    Per token, bfloat16: the dense layer once and the pruned one twice; float32: the moments. Whatever the text, the
    ridges tried on some outputs and the best one used on all: a factorisation and a solution in float64, the held-out
    error in float32.
    """
    layers = surgery.skeleton.model.layers
    pruned_params = sum(parameter.numel() for parameter in layers.parameters())
    inputs, hidden = np.array(
        [layer.get_submodule(name).weight.shape[::-1] for layer in layers for name in (ATTENTION_WRITER, MLP_WRITER)],
        dtype=np.float64,
    ).T
    solved = len(RIDGES) * hidden // np.maximum(1, hidden // JUDGED_OUTPUTS) + hidden
    products = (2 * inputs**2 * solved).sum()
    counted = {
        "bfloat16, by tokens": 2 * num_tokens * (dense_params + 2 * pruned_params),
        "float32, by tokens": (2 * num_tokens * inputs * (inputs + hidden)).sum(),
        "float32": products,
        "float64": products + ((len(RIDGES) + 1) * inputs**3 / 3).sum(),
    }
    return {name: round(float(value) / len(layers) / 1e12, 3) for name, value in counted.items()}


def whole_model(name: str, layer: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and operations of a recipe's parts with all layers and its own amount of text.

    A step of the search is counted as a reconstruction from all its text: more than it is, the judging included.
    """
    depth = config_of(name).num_hidden_layers

    def scaled(num_sequences: int, times: int = 1) -> dict[str, Any]:
        share = num_sequences * PruneConfig.seq_len / layer["tokens"]
        seconds = layer["solve_s"] + share * layer["rest_of_reconstruct_s"]
        counted = {
            kind: round(times * depth * value * (share if "by tokens" in kind else 1), 1)
            for kind, value in layer["operations"].items()
        }
        return {"seconds": round(times * depth * seconds), "operations": counted}

    num_scoring = recipe.get("nsamples", PruneConfig.nsamples)
    score_s = depth * layer["score_s"] * num_scoring * PruneConfig.seq_len / layer["tokens"]
    parts: dict[str, Any] = {"score": {"seconds": round(score_s)}}
    if "search" in recipe:
        parts["search"] = scaled(DEFAULT_PROFILE_NSAMPLES, recipe["search"] + 1)
    if "reconstruct" in recipe:
        parts["reconstruct"] = scaled(recipe.get("reconstruct_nsamples", DEFAULT_RECONSTRUCT_NSAMPLES))
    return parts


if __name__ == "__main__":
    main()
