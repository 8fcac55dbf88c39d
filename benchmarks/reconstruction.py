#!/usr/bin/env python3
"""What scoring and reconstruction cost per layer at the shape of a real model, and what the whole model would take.

Both run on a model with few layers and random weights, cut by 20 %, with two amounts of text: the line through them
separates what each token costs from what each layer costs whatever the text. The vocabulary is next to nothing: what is
timed are layers. Beside the seconds stand the operations of one layer by number format, counted from the shapes, so
that the cost on other hardware can be worked out from its data sheet.

    python benchmarks/reconstruction.py --model LLaMA-3-8B --nsamples 2 6 --output reconstruction.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from hgsp.least_squares import RIDGES
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
    parser.add_argument("--nsamples", type=int, nargs=2, default=[2, 6], metavar=("FEW", "MORE"))
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = [measure(options, num_sequences) for num_sequences in options.nsamples]
    result = {
        **provenance(),
        "model": options.model,
        "layers": options.layers,
        "seq_len": options.seq_len,
        "rows": rows,
        "whole_model_s": {name: whole_model(options, rows, recipe) for name, recipe in PruneConfig.RECIPES.items()},
    }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def measure(options: argparse.Namespace, num_sequences: int) -> dict[str, Any]:
    """Seconds per layer of scoring and of reconstruction with some sequences, and the operations of the latter."""
    with torch.device(options.device):
        config = config_of(options.model, num_hidden_layers=options.layers, vocab_size=SMALL_VOCABULARY)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    text = load_text("builtin", CALIBRATE)
    calibration = build_calibration(text, byte_tokenizer(), num_sequences, options.seq_len, 42)
    decoder, geometry, floors = Decoder(model), geometry_of(model), Floors()
    scoring = ScoringOptions(batch_size=options.batch_size)
    found, score_s = timed(lambda: score_groups(decoder, "fisher", calibration, options=scoring))
    plan = select_groups(
        build_group_table(found.by_layer, geometry), geometry, budget_for_ratio(geometry, RATIO, floors), floors
    )
    surgery = Surgery(model.config, geometry, plan, lambda name: model.get_parameter(name).detach())
    fits, reconstruct_s = timed(lambda: reconstruct(decoder, surgery, calibration, batch_size=options.batch_size))
    return {
        "tokens": calibration.input_ids.numel(),
        "score_s_per_layer": round(score_s / options.layers, 2),
        "reconstruct_s_per_layer": round(reconstruct_s / options.layers, 2),
        "refitted": sum(fit.ridge is not None for fit in fits.modules),
        "operations_per_layer": operations(surgery, geometry.decoder_params, calibration.input_ids.numel()),
    }


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def operations(surgery: Surgery, dense_params: int, num_tokens: int) -> dict[str, float]:
    """Multiplications and additions of reconstructing one layer, in 1e12, by the format they are done in.

    bfloat16: the dense layer once and the pruned one twice. float32: the moments. float64: a factorisation and two
    solves' worth of products per ridge.
    """
    layers = surgery.skeleton.model.layers
    pruned_params = sum(parameter.numel() for parameter in layers.parameters())
    inputs, hidden = np.array(
        [layer.get_submodule(name).weight.shape[::-1] for layer in layers for name in (ATTENTION_WRITER, MLP_WRITER)],
        dtype=np.float64,
    ).T
    counted = {
        "bfloat16": 2 * num_tokens * (dense_params + 2 * pruned_params),
        "float32": (2 * num_tokens * inputs * (inputs + hidden)).sum(),
        "float64": (len(RIDGES) * (inputs**3 / 3 + 4 * inputs**2 * hidden)).sum(),
    }
    return {name: round(float(value) / len(layers) / 1e12, 3) for name, value in counted.items()}


def whole_model(options: argparse.Namespace, rows: list[dict[str, Any]], recipe: Mapping[str, Any]) -> dict[str, int]:
    """Seconds of a recipe's parts with all layers and its own amount of text, on the lines through both rows.

    A step of the search is counted as a reconstruction from all its text: more than it is, the judging included.
    """
    depth = config_of(options.model).num_hidden_layers

    def seconds(part: str, num_sequences: int) -> float:
        few, more = (row[f"{part}_s_per_layer"] for row in rows)
        per_token = (more - few) / (rows[1]["tokens"] - rows[0]["tokens"])
        return depth * (few + per_token * (num_sequences * PruneConfig.seq_len - rows[0]["tokens"]))

    parts = {"score": seconds("score", PruneConfig.nsamples)}
    if "search" in recipe:
        parts["search"] = (recipe["search"] + 1) * seconds("reconstruct", DEFAULT_PROFILE_NSAMPLES)
    if "reconstruct" in recipe:
        num_sequences = recipe.get("reconstruct_nsamples", DEFAULT_RECONSTRUCT_NSAMPLES)
        parts["reconstruct"] = seconds("reconstruct", num_sequences)
    return {name: round(value) for name, value in parts.items()}


if __name__ == "__main__":
    main()
