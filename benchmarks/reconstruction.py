#!/usr/bin/env python3
"""Time of scoring and reconstruction per layer at the shape of a real model, and an estimate for the whole model.

Both run on a model with few layers and random weights, pruned by 20 %. Solving the least squares takes the same time
for any amount of text and is timed separately, as is an epoch of refitting whole blocks; everything else is linear in
the number of tokens. The vocabulary is tiny, so that only layers are timed. On a GPU, peaks of memory are measured, and
a reconstruction that takes more than docs/MEMORY.md says is a failure. gpu_quality.sh starts this on one GPU.

    python benchmarks/reconstruction.py --model LLaMA-3-8B --output reconstruction.json
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from machine import provenance
from shapes import DENSE_SHAPES, byte_tokenizer, config_of
from transformers import AutoModelForCausalLM

from hgsp.data.calibration import build_calibration
from hgsp.data.texts import CALIBRATE, load_text
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.forecast import STREAMS, refit_bytes
from hgsp.pipeline.recipes import DEFAULT_PROFILE_NSAMPLES, DEFAULT_RECONSTRUCT_NSAMPLES
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.pruning.surgery import Surgery
from hgsp.reconstruction.block_fit import STEP_TOKENS, fit_block, num_epochs
from hgsp.reconstruction.least_squares import solve
from hgsp.reconstruction.paired_forward import HELD_OUT
from hgsp.reconstruction.reconstruct import ReconstructionOptions, reconstruct
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.score import ScoringOptions, score_groups

RATIO = 0.2
SMALL_VOCABULARY = 258
#: What a reconstruction may take beyond the forecast of its parts: a batch in both layers, and the allocator's slack.
SLACK = 1.25
TINY = {
    "hidden_size": 64,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=DENSE_SHAPES, default="LLaMA-3-8B")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--nsamples", type=int, default=8)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to check this script on a CPU")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU was found: name another --device, with --tiny for a check on a CPU")
    found = measure(options)
    result = {
        **provenance(),
        "model": "a tiny shape" if options.tiny else options.model,
        "layers": options.layers,
        "one_layer": found,
    }
    if not options.tiny:
        recipes = PruneConfig.PRESETS["recipe"]
        result["whole_model"] = {name: whole_model(options.model, found, recipe) for name, recipe in recipes.items()}
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if found.get("reconstruct_peak_bytes", 0) > found["reconstruct_bound_bytes"]:
        sys.exit("error: the reconstruction takes more memory than docs/MEMORY.md says")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds per layer of scoring and of each part of reconstruction."""
    with torch.device(options.device):
        changes = {"num_hidden_layers": options.layers, "vocab_size": SMALL_VOCABULARY}
        config = config_of(options.model, **changes, **(TINY if options.tiny else {}))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    text = load_text("builtin", CALIBRATE)
    calibration = build_calibration(text, byte_tokenizer(), options.nsamples, options.seq_len, 42)
    decoder, geometry, shape_rules = Decoder(model), geometry_of(model), ShapeRules()
    scoring = ScoringOptions(batch_size=options.batch_size)
    found, score_s, score_peak = with_peak(
        lambda: score_groups(decoder, "fisher", calibration, options=scoring), options.device
    )
    plan = select_groups(
        build_group_table(found.by_layer, geometry),
        geometry,
        budget_for_ratio(geometry, RATIO, shape_rules),
        shape_rules,
    )
    surgery = Surgery(model, plan)
    solving, fitting = Timed(solve), Timed(fit_block)
    with (
        patch("hgsp.reconstruction.reconstruct.solve", solving),
        patch("hgsp.reconstruction.reconstruct.fit_block", fitting),
    ):
        _, reconstruct_s, reconstruct_peak = with_peak(
            lambda: reconstruct(decoder, surgery, calibration, ReconstructionOptions("blocks", options.batch_size)),
            options.device,
        )
    tokens = calibration.input_ids.numel()
    rest_s = reconstruct_s - solving.seconds - fitting.seconds
    hidden_states = STREAMS * tokens * geometry.hidden_size * model.dtype.itemsize
    layer = geometry.layer_params(geometry.shapes[0]) * model.dtype.itemsize
    peaks = {"score_peak_bytes": score_peak, "reconstruct_peak_bytes": reconstruct_peak}
    return {
        "tokens": tokens,
        "score_s": round(score_s / options.layers, 2),
        "solve_s": round(solving.seconds / options.layers, 2),
        "rest_of_reconstruct_s": round(rest_s / options.layers, 2),
        "epoch_of_blocks_s": round(fitting.seconds / options.layers / epochs_for(tokens), 2),
        **{name: peak for name, peak in peaks.items() if peak is not None},
        "reconstruct_bound_bytes": round(SLACK * (hidden_states + refit_bytes(geometry, "blocks") + layer)),
    }


class Timed:
    """A function that accumulates the duration of its calls."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run, self.seconds = run, 0.0

    def __call__(self, *arguments: Any) -> Any:
        found, seconds = timed(lambda: self._run(*arguments))
        self.seconds += seconds
        return found


def with_peak(run: Callable[[], Any], device: str) -> tuple[Any, float, int | None]:
    """Return a call's result, its seconds, and on a GPU the bytes that it allocated at most."""
    if not device.startswith("cuda"):
        return *timed(run), None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    found, seconds = timed(run)
    return found, seconds, torch.cuda.max_memory_allocated(device) - before


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return a call's result and its duration in seconds, including queued GPU work."""
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def whole_model(name: str, layer: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Estimate the seconds of a recipe's stages with all layers and its own amount of text.

    A search step counts as a reconstruction from all its text, an upper bound that covers the evaluation of the
    candidate. Whole blocks are omitted if they were not timed.
    """
    depth = config_of(name).num_hidden_layers

    def seconds(of_all_text: float, num_sequences: int, fixed: float = 0.0, times: int = 1) -> dict[str, int]:
        share = num_sequences * PruneConfig.seq_len / layer["tokens"]
        return {"seconds": round(times * depth * (fixed + share * of_all_text))}

    refit = functools.partial(seconds, layer["rest_of_reconstruct_s"], fixed=layer["solve_s"])
    parts = {"score": seconds(layer["score_s"], recipe.get("nsamples", PruneConfig.nsamples))}
    if "search" in recipe:
        parts["search"] = refit(DEFAULT_PROFILE_NSAMPLES, times=recipe["search"] + 1)
    if "reconstruct" in recipe:
        num_sequences = recipe.get("reconstruct_nsamples", DEFAULT_RECONSTRUCT_NSAMPLES)
        parts["reconstruct"] = refit(num_sequences)
        if recipe["reconstruct"] == "blocks" and "epoch_of_blocks_s" in layer:
            epochs = epochs_for(num_sequences * PruneConfig.seq_len)
            parts["blocks"] = seconds(layer["epoch_of_blocks_s"], num_sequences, times=epochs)
    return parts


def epochs_for(tokens: int) -> int:
    """Return the epochs of a block fit on a text of which one sequence in ``HELD_OUT`` is held out."""
    return num_epochs(math.ceil(tokens * (1 - 1 / HELD_OUT) / STEP_TOKENS))


if __name__ == "__main__":
    main()
