"""The forecast of a run: its stages with rough times, its memory and its disk, before anything is loaded.

Times are numbers of operations over the speed of short matrix products on the device. They were within a factor of two
of our runs of SmolLM2-135M, and of the single layers of LLaMA-3-8B in benchmarks/results.

N sequences | T tokens | H hidden | M mlp width | L layers
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import linear

from hgsp.console.disk import check_free_space
from hgsp.console.tables import format_bytes, format_seconds
from hgsp.data.calibration import Calibration
from hgsp.models.blocks import KINDS
from hgsp.models.devices import free_bytes
from hgsp.models.geometry import Geometry
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.models.loading import DTYPES
from hgsp.pipeline.calibrations import Calibrations
from hgsp.pipeline.config import ScoringConfig
from hgsp.pipeline.recipes import DEFAULT_PROFILE_NSAMPLES, Recipe
from hgsp.pipeline.request import Request
from hgsp.reconstruction.block_fit import STEP_TOKENS, num_epochs

#: Forward passes that scoring a token costs (docs/MEMORY.md; a backward pass is two).
PASSES = {"taylor": 3.3, "taylor_2nd": 5.6, "fisher": 2.4, "fisher_token": 3.6, "wanda": 0.9, "flap": 0.7, "reap": 1.5}
#: Operations of one least-squares solution, as multiples of the cubed number of inputs.
SOLVE_FACTOR = 5.0
#: Operations of ``--reconstruct blocks`` per parameter, token and epoch: forward, backward and the optimizer.
BLOCK_OPERATIONS = 9.0
#: Share of the speed of plain matrix products that a whole model reaches.
EFFICIENCY = 0.8
#: Hidden states that a reconstruction keeps: both streams, and the inputs of an output projection as two.
STREAMS = 4
#: Layers that ``--offload`` holds at a time, and bytes that scoring takes per parameter of one, of dense layers and of
#: mixtures of experts, as measured (docs/MEMORY.md).
HELD_LAYERS, SCORING_BYTES = {"dense": 2, "mixture": 1}, {"dense": 12, "mixture": 6}
#: Bytes of Python and PyTorch themselves.
RUNTIME_BYTES = 400_000_000
#: Seconds of products that are timed in each dtype.
TIMED_S = 0.1
#: Side of the square matrices that are timed, and their rows of inputs on a CPU and on an accelerator.
TIMED_SIZE, TIMED_ROWS = 2048, (256, 8192)


@dataclass(frozen=True)
class Speed:
    """Operations per second in the dtype of the run, in float32 and in float64."""

    half: float
    single: float
    double: float


def measure_speed(device: str, dtype: str) -> Speed:
    """Time matrix products, for half a second in all."""
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    double = "cpu" if place == "mps" else place  # mps has no float64
    return Speed(
        _operations_per_second(place, DTYPES[dtype]),
        _operations_per_second(place, torch.float32),
        _operations_per_second(double, torch.float64),
    )


@torch.inference_mode()
@fp32_matmul_fallback()
def _operations_per_second(device: str, dtype: torch.dtype) -> float:
    rows = TIMED_ROWS[device != "cpu"]
    inputs = torch.ones(rows, TIMED_SIZE, dtype=dtype, device=device)
    weight = torch.ones(TIMED_SIZE, TIMED_SIZE, dtype=dtype, device=device)
    linear(inputs, weight)[0, 0].item()  # the first product also sets up libraries; item() waits for an accelerator
    products, seconds, start = 0, 0.0, time.perf_counter()
    while products == 0 or seconds < TIMED_S:
        linear(inputs, weight)[0, 0].item()
        products, seconds = products + 1, time.perf_counter() - start
    return products * 2 * rows * TIMED_SIZE**2 / seconds


def seconds_of_stages(
    geometry: Geometry,
    recipe: Recipe,
    calibrations: Calibrations,
    evaluated_tokens: int,
    speed: Speed,
    *,
    num_results: int = 1,
    empties_blocks: bool = False,
) -> dict[str, float]:
    """Return the estimated seconds of every stage that computes, by the names of ``timings_s``.

    Args:
        evaluated_tokens: of one measurement of all texts.
        num_results: pruned models that are made.
        empties_blocks: whether plans with emptied blocks are tried.
    """
    per_token = 2 * geometry.params_per_token / (EFFICIENCY * speed.half)
    score = recipe.rounds * PASSES.get(recipe.importance_method, 0.0) * per_token * _tokens(calibrations.scoring)
    whole_blocks = search = reconstruct = 0.0
    if calibrations.search is not None:
        tokens = _tokens(calibrations.search)
        once = _refit_seconds(geometry, tokens, speed) if recipe.reconstructs else 4 * per_token * tokens
        search = (recipe.search + 1) * once
    if calibrations.reconstruction is not None:
        tokens = _tokens(calibrations.reconstruction)
        blocks = _block_seconds(geometry, tokens, speed) if recipe.reconstruct == "blocks" else 0.0
        if empties_blocks:  # 0, 1, 2, 4, ... emptied blocks, each refitted on a part of the text
            judged = calibrations.reconstruction.input_ids[:DEFAULT_PROFILE_NSAMPLES].numel()
            whole_blocks = math.log2(4 * geometry.num_layers) * _refit_seconds(geometry, judged, speed)
        reconstruct = recipe.rounds * (_refit_seconds(geometry, tokens, speed) + blocks)
    found = {
        "score": score,
        "whole blocks": num_results * whole_blocks,
        "search": num_results * search,
        "reconstruct": num_results * reconstruct,
        "evaluate": (1 + num_results) * per_token * evaluated_tokens,
    }
    return {stage: seconds for stage, seconds in found.items() if seconds}


def _refit_seconds(geometry: Geometry, tokens: int, speed: Speed) -> float:
    """Return the seconds of one least-squares reconstruction: two passes, second moments, and their solution."""
    widths = [
        (geometry.columns_per_group("attention") * shape.num_kv_groups, shape.mlp_width) for shape in geometry.shapes
    ]
    moments = sum(2 * (columns**2 + width**2) for columns, width in widths)
    solutions = SOLVE_FACTOR * sum(columns**3 + width**3 for columns, width in widths)
    if geometry.prunes_expert_channels:
        moments += sum(2 * geometry.experts_per_token * shape.expert_width**2 for shape in geometry.shapes)
        solutions += SOLVE_FACTOR * sum(shape.num_experts * shape.expert_width**3 for shape in geometry.shapes)
    per_token = 4 * geometry.decoder_params / speed.half + moments / speed.single
    return tokens * per_token / EFFICIENCY + solutions / speed.double


def _block_seconds(geometry: Geometry, tokens: int, speed: Speed) -> float:
    """Return the seconds of the gradient descent on every block."""
    params = sum(geometry.params_of_groups(kind, shape) for shape in geometry.shapes for kind in KINDS)
    epochs = num_epochs(-(-tokens // STEP_TOKENS))
    return BLOCK_OPERATIONS * epochs * tokens * params / (EFFICIENCY * speed.single)


def _tokens(calibration: Calibration | None) -> int:
    return 0 if calibration is None else calibration.input_ids.numel()


def peak_bytes(request: Request, calibrations: Calibrations, eval_seq_len: int | None) -> int:
    """Return a rough peak of memory: weights, the hidden states of the largest stage, and float32 logits."""
    geometry, config = request.geometry, request.config
    value_bytes = DTYPES[config.dtype].itemsize
    largest_layer = max(map(geometry.layer_params, geometry.shapes))
    form = "mixture" if any(shape.num_experts for shape in geometry.shapes) else "dense"
    held = geometry.total_params
    if config.offload:
        held += HELD_LAYERS[form] * largest_layer - geometry.decoder_params
    vocabulary = request.source.config.vocab_size
    score = reconstruct = 0
    if calibrations.scoring is not None:
        states = scoring_states(config, geometry) * (not config.spill_dir)
        hidden = states * _tokens(calibrations.scoring) * geometry.hidden_size * value_bytes
        score = hidden + SCORING_BYTES[form] * largest_layer + 12 * config.batch_size * config.seq_len * vocabulary
    if calibrations.reconstruction is not None:
        streams = STREAMS * (not (config.spill_dir or config.offload))
        hidden = streams * _tokens(calibrations.reconstruction) * geometry.hidden_size * value_bytes
        kept = max(budget.params for budget in request.budgets)
        reconstruct = hidden + refit_bytes(geometry, config.recipe.reconstruct)
        reconstruct += 0 if config.offload else (geometry.total_params - kept) * value_bytes
    evaluate = 10 * (eval_seq_len or 0) * vocabulary
    return RUNTIME_BYTES + held * value_bytes + max(score, reconstruct, evaluate)


def refit_bytes(geometry: Geometry, method: str) -> int:
    """Return the bytes of the largest refit: a linear system, or with "blocks" a whole block in float32 four times."""
    fitted = max(max(shape.mlp_width, shape.expert_width) for shape in geometry.shapes)
    largest = max(geometry.params_of_groups(kind, shape) for shape in geometry.shapes for kind in KINDS)
    return max(20 * fitted**2, 16 * largest * (method == "blocks"))


def scoring_states(config: ScoringConfig, geometry: Geometry) -> int:
    """Return how many layers' inputs are kept while scores are measured."""
    states = 2 if config.importance_method in ("wanda", "flap", "reap") else geometry.num_layers + 1
    return 2 * round(states**0.5) if config.use_gradient_checkpointing else states


def check_spill(config: ScoringConfig, geometry: Geometry, calibrations: Calibrations) -> None:
    """Refuse a ``--spill_dir`` that is too small for the hidden states of the largest stage.

    Raises:
        InputError: names both sizes.
    """
    if config.spill_dir is None:
        return
    tokens = max(
        scoring_states(config, geometry) * _tokens(calibrations.scoring), STREAMS * _tokens(calibrations.reconstruction)
    )
    needed = tokens * geometry.hidden_size * DTYPES[config.dtype].itemsize
    remedy = "choose another --spill_dir, a smaller --nsamples or a smaller --seq_len"
    check_free_space(Path(config.spill_dir), needed, "hidden states", remedy)


def memory_warnings(request: Request) -> list[str]:
    """Warn of weights that do not fit into the memory of the GPU."""
    device = torch.device(request.device) if request.device.startswith("cuda") else None
    weights = request.geometry.total_params * DTYPES[request.config.dtype].itemsize
    if device is None or request.config.offload or weights <= free_bytes(device):
        return []
    return [f"{format_bytes(weights)} of weights, {format_bytes(free_bytes(device))} of free GPU memory: use --offload"]


def describe(request: Request, seconds: Mapping[str, float], memory: int) -> str:
    """Return the forecast as lines for the terminal.

    Args:
        seconds: of every stage that computes.
        memory: bytes at the peak.
    """
    weights = request.geometry.total_params * DTYPES[request.config.dtype].itemsize
    disk = request.disk
    saving = f", {format_bytes(disk.saved_by_no_bin)} less with --no_bin" if disk.saved_by_no_bin else ""
    rows = {"load": f"{format_bytes(weights)} of weights"}
    rows |= {stage: f"about {format_seconds(value)}" for stage, value in seconds.items()}
    rows |= {"save": f"{format_bytes(disk.needed)} on disk ({format_bytes(disk.free)} free){saving}"}
    rows |= {"in all": f"about {format_seconds(sum(seconds.values()))}, memory about {format_bytes(memory)}"}
    lines = [f"  {stage:<12} {text}" for stage, text in rows.items()]
    return "\n".join(["stages, with times within about a factor of two:", *lines])
