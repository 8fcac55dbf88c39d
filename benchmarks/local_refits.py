#!/usr/bin/env python3
"""What least squares restores of blocks that lose their weakest groups, one block at a time, by way of refitting.

Every block of the dense model loses half of its MLP channels or one KV group; all others stay as they are, so that
nothing has accumulated. Its output projection is refitted from one half of the sequences, ridges are chosen on a
quarter, and the error of the block's output is measured on the rest: its energy, and the second-order loss, the sum
over tokens of (error * gradient of the loss)^2. Writes JSON with medians over layers, relative to no refit.

    python benchmarks/local_refits.py --base_model MODEL --data_dir DATA --output local_refits.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import provenance
from torch import Tensor, nn

from hgsp.console.exit_codes import quiet_libraries
from hgsp.data.calibration import build_calibration
from hgsp.data.texts import CALIBRATE, load_text
from hgsp.models.blocks import OUTPUT_PROJECTIONS
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.tokenizers import load_tokenizer
from hgsp.reconstruction.least_squares import Moments, energy, solve

#: Ridge, relative to the mean square of the channels, of the fit of each channel by all others.
RIDGE = 1e-3


@dataclass(frozen=True)
class Part:
    """Inputs [T, S] of an output projection at some tokens, and gradients [T, H] of the summed loss at its outputs."""

    inputs: Tensor
    gradients: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--calibrate", nargs="+", default=["wikitext2", "c4"], help="texts, which contribute equally")
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--data_dir", help="local texts")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    texts = [load_text(name, CALIBRATE, options.data_dir) for name in options.calibrate]
    tokenizer = load_tokenizer(options.base_model)
    input_ids = build_calibration(texts, tokenizer, options.nsamples, options.seq_len, seed=42).input_ids
    model = load_dense(inspect_model(options.base_model), "float32", "cpu").requires_grad_(False)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    columns_of = geometry_of(model).columns_per_group
    for kind, linear, tokens in blocks(model, input_ids):
        for way, errors in measure(kind, linear, split(tokens, options.seq_len), columns_of(kind)):
            found.setdefault(kind, {}).setdefault(way, []).append(errors)
    rows = [
        {
            "kind": kind,
            "way": way,
            **dict(zip(("energy", "loss"), map(_median, zip(*errors, strict=True)), strict=True)),
        }
        for kind, ways in found.items()
        for way, errors in ways.items()
    ]
    result = {**provenance(), "base_model": Path(options.base_model).name, "rows": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def blocks(model: Any, input_ids_NT: Tensor) -> Iterator[tuple[str, nn.Linear, Part]]:
    """Yield kind, output projection, and inputs and gradients at all tokens of every block."""
    linears = {
        (index, kind): layer.get_submodule(name)
        for index, layer in enumerate(model.model.layers)
        for kind, name in OUTPUT_PROJECTIONS.items()
    }
    inputs: dict[Any, list[Tensor]] = {key: [] for key in linears}
    gradients: dict[Any, list[Tensor]] = {key: [] for key in linears}

    def watch(key: Any) -> Callable[..., None]:
        def observe(_module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
            inputs[key].append(arguments[0].detach().flatten(0, 1).bfloat16())
            output.register_hook(lambda gradient: gradients[key].append(gradient.flatten(0, 1).bfloat16()))

        return observe

    hooks = [linear.register_forward_hook(watch(key)) for key, linear in linears.items()]
    for ids in input_ids_NT.split(4):
        embedded = model.model.embed_tokens(ids).requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
        nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    for key in linears:
        yield key[1], linears[key], Part(torch.cat(inputs.pop(key)).float(), torch.cat(gradients.pop(key)).float())


def split(tokens: Part, seq_len: int) -> tuple[Part, Part, Part]:
    """Return every second sequence to fit, a quarter to choose ridges on, and one to judge by."""
    place = torch.arange(len(tokens.inputs)) // seq_len % 4
    fit, held_out, judged = (
        Part(tokens.inputs[chosen], tokens.gradients[chosen]) for chosen in (place % 2 == 0, place == 1, place == 3)
    )
    return fit, held_out, judged


@torch.no_grad()
def measure(
    kind: str, linear: nn.Linear, parts: tuple[Part, Part, Part], columns_per_group: int
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the ways to refit one block, and the energy and loss of the error that is left, relative to no refit."""
    fit, held_out, judged = parts
    importance = (fit.gradients @ linear.weight) * fit.inputs
    scores = importance.unflatten(1, (-1, columns_per_group)).sum(2).square().sum(0)
    kept = _strongest(scores, kind, columns_per_group)
    before = _errors(linear, judged, kept, linear.weight[:, kept])
    gradient_norm = fit.gradients.norm(dim=1, keepdim=True)
    ways: dict[str, tuple[Tensor, Tensor | None]] = {
        "least squares": (kept, None),
        "tokens weighted by their gradients": (kept, gradient_norm / gradient_norm.square().mean().sqrt()),
    }
    if kind == "mlp":
        unpredicted = _unpredicted(fit.inputs) * (fit.gradients @ linear.weight)
        ways["channels chosen by what others cannot predict"] = _strongest(unpredicted.square().sum(0), kind, 1), None
    for way, (chosen, token_scale) in ways.items():
        weight = _refitted(linear, chosen, fit, held_out, token_scale)
        after = _errors(linear, judged, chosen, weight)
        yield way, (after[0] / before[0], after[1] / before[1])


def _strongest(scores_G: Tensor, kind: str, columns_per_group: int) -> Tensor:
    """Return the columns of the groups that stay: half of the channels, or all KV groups but one."""
    num_dropped = 1 if kind == "attention" else len(scores_G) // 2
    groups = scores_G.argsort()[num_dropped:].sort().values
    return (groups[:, None] * columns_per_group + torch.arange(columns_per_group)).flatten()


def _unpredicted(inputs_TS: Tensor) -> Tensor:
    """Return what least squares on all other channels leaves of every channel."""
    moments_SS = (inputs_TS.T @ inputs_TS).double()
    moments_SS.diagonal().add_(RIDGE * moments_SS.diagonal().mean())
    inverse_SS = torch.linalg.inv(moments_SS).float()
    return inputs_TS @ inverse_SS / inverse_SS.diagonal()


def _refitted(linear: nn.Linear, kept: Tensor, fit: Part, held_out: Part, token_scale: Tensor | None) -> Tensor:
    """Return the columns that stay, refitted to the output of all."""
    small = nn.Linear(len(kept), linear.out_features, bias=False)
    moments = Moments(small, torch.float64), Moments(small, torch.float64)
    for sums, part, scale in zip(moments, (fit, held_out), (token_scale, None), strict=True):
        output = part.inputs @ linear.weight.T
        error = output - part.inputs[:, kept] @ linear.weight[:, kept].T
        scale_BT1 = None if scale is None else scale[None]
        error = error if scale is None else error * scale
        sums.add(part.inputs[None, :, kept], error[None], output[None], scale_BT1)
    return solve(linear.weight[:, kept], *moments)[0]


def _errors(linear: nn.Linear, part: Part, kept: Tensor, weight: Tensor) -> tuple[float, float]:
    """Return the energy of the error of the output, and the sum of (error * gradient)^2."""
    error = part.inputs @ linear.weight.T - part.inputs[:, kept] @ weight.T
    return energy(error), energy((error * part.gradients).sum(1))


def _median(values: tuple[float, ...]) -> float:
    return round(median(values), 3)


if __name__ == "__main__":
    main()
