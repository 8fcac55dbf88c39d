"""Reconstruction: refit the pruned model to the dense one layer by layer, without training.

Dense and pruned model run side by side, block by block. Let x be the input of an output projection (``o_proj`` or
``down_proj``) of the pruned model, whose earlier blocks are pruned AND refitted (the largest single effect in
Tyr-the-Pruner, NeurIPS 2025), and e the dense model's residual stream after the block minus the pruned model's. Over
the calibration tokens,

    A = sum x x^T [S, S],   G = sum x e^T [S, H],   D = (A + lam I)^-1 G,   W_S += D^T,   lam = ridge * mean diag A

is the least-squares fit with a ridge towards the OLD weights: with e = y - W_S x it is W_S^T = (A + lam I)^-1 (B + lam
W_S,old^T), B = sum x y^T (compare OSSCAR, arXiv:2403.12983). A bias is fitted as one more column. Held-out sequences
choose among ridges and the old weights, rounded to the weights' dtype, so that the held-out error of a module never
grows. With the output of the dense block as the target instead of the stream, errors of earlier blocks would remain.

In memory are the moments of one block and two residual streams; on a CPU also the inputs of the output projection,
which take longer to compute again than to keep.

H hidden | S inputs of a pruned output projection, plus one for a bias
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgsp.console.progress import Progress, silent
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError, not_finite
from hgsp.models.blocks import KINDS
from hgsp.models.decoder import Decoder
from hgsp.models.families import LAYER_PREFIX
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.models.linear_attention import has_linear_attention, output_of
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.surgery import Surgery, surviving_layers
from hgsp.reconstruction.block_fit import fit_block
from hgsp.reconstruction.expert_fit import fit_experts, loses_channels
from hgsp.reconstruction.least_squares import Moments, accumulation_dtype, relative_norm, solve
from hgsp.reconstruction.names import RECONSTRUCTIONS
from hgsp.reconstruction.paired_forward import PairedForward, num_held_out
from hgsp.reconstruction.resume import ModuleFit, ResumeState


@dataclass(frozen=True)
class ReconstructionOptions:
    """How to reconstruct.

    Args:
        method: "lstsq" refits ``o_proj`` and ``down_proj`` by least squares, of experts where they lose channels
            (``fit_experts``), "blocks" all weights of attention and of MLPs without experts after that (``fit_block``);
            "bias" nothing but the biases that the plan adds (arXiv:2312.11983).
        batch_size: sequences per call of a layer.
        spill_dir: folder for activations, [sequences, tokens, H] twice, and on a CPU the inputs of one output
            projection; None keeps them in memory.
        frozen: dense indices of layers to leave as they are.

    Raises:
        InputError: unknown method.
    """

    method: str = "lstsq"
    batch_size: int = 4
    spill_dir: Path | None = None
    frozen: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        methods = [name for name in RECONSTRUCTIONS if name != "none"]
        if self.method not in methods:
            raise InputError(
                expected="a reconstruction method", got=f"'{self.method}'", remedy=f"use one of {', '.join(methods)}"
            )


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """Refitted tensors by their names in the pruned model, and the fits in their order.

    ``tensors`` are in memory, or in the files of the resume state until that is closed.
    """

    tensors: Mapping[str, Tensor]
    modules: tuple[ModuleFit, ...]
    calibration: Calibration
    method: str

    def describe(self) -> dict[str, Any]:
        """Return the report's section, JSON types only."""
        return {
            "method": self.method,
            "calibration": self.calibration.describe(),
            "held_out_sequences": num_held_out(len(self.calibration.input_ids)),
            "modules": [module.as_json() for module in self.modules],
        }

    def __repr__(self) -> str:
        changed = sum(module.changed for module in self.modules)
        return f"Reconstruction({self.method}, {changed} of {len(self.modules)} modules refitted)"


def plan_for(method: str, plan: PrunePlan) -> PrunePlan:
    """Return the plan with added biases if the method is "bias" and the plan removes anything, else without."""
    return replace(plan, writer_bias=method == "bias" and plan.removed_params > 0)


@torch.no_grad()
@fp32_matmul_fallback()
def reconstruct(
    decoder: Decoder,
    surgery: Surgery,
    calibration: Calibration,
    options: ReconstructionOptions | None = None,
    *,
    resume: ResumeState | None = None,
    progress: Progress = silent,
) -> Reconstruction:
    """Refit the pruned model to the dense one, first layer to last.

    Args:
        decoder: the dense model, in memory or offloaded; it is not changed.
        surgery: the pruned model before the fit. A plan that removes nothing has nothing to refit.
        calibration: the last eighth of its sequences is held out.
        resume: takes the tensors of every layer that is done; layers it already holds are not refitted. The result is
            the same.

    Raises:
        InputError: fewer than two sequences, or the plan adds biases and the method is not "bias", or the reverse.
        NumericalError: the residual stream of the pruned model is not finite.
    """
    options = options or ReconstructionOptions()
    check_enough(calibration)
    tensors: MutableMapping[str, Tensor] = {} if resume is None else resume.tensors
    if not surgery.plan.removed_params:
        return Reconstruction(tensors, (), calibration, options.method)
    _check_biases(surgery.plan, options.method)
    surgery = surgery.replacing(tensors)
    new_index_of = {old: new for new, old in enumerate(surviving_layers(surgery.plan))}
    finished = {} if resume is None else {index: resume.fits(index) for index in new_index_of}
    fits_of = {index: fits for index, fits in finished.items() if fits is not None}
    waiting = new_index_of.keys() - options.frozen - fits_of.keys()
    if not waiting:
        return Reconstruction(tensors, _in_order(fits_of), calibration, options.method)
    num_layers = max(waiting) + 1  # no layer behind the last one to fit is run
    with PairedForward(decoder, calibration.input_ids, options.batch_size, options.spill_dir) as streams:
        for index in progress(range(num_layers), "reconstruction", num_layers):
            new_index = new_index_of.get(index)
            with decoder.layer(index) as dense:
                if new_index is None:
                    streams.pass_layer(dense, None)
                    continue
                with _pruned_layer(surgery, new_index, dense) as pruned:
                    if index not in waiting:
                        streams.pass_layer(dense, pruned)
                        continue
                    fits = _fit_layer(streams, index, dense, pruned, surgery.plan, options.method, calibration.seed)
                    new = _new_tensors(fits, new_index, pruned)
                    if resume is None:
                        tensors.update(new)
                    else:
                        resume.add(index, fits, new)
                    fits_of[index] = fits
    return Reconstruction(tensors, _in_order(fits_of), calibration, options.method)


def _fit_layer(
    streams: PairedForward, index: int, dense: nn.Module, pruned: nn.Module, plan: PrunePlan, method: str, seed: int
) -> list[ModuleFit]:
    """Refit the blocks of one layer in turn, and run both models through it."""
    fits: list[ModuleFit] = []
    for kind in KINDS:
        if kind == "mlp" and loses_channels(dense, pruned):
            fits += fit_experts(streams, index, dense, pruned, plan.layers[index].experts)
            continue
        block_seed = seed + index if refits_whole(method, kind, dense) else None
        fits += _reconstruct_block(streams, kind, index, dense, pruned, method == "bias", block_seed)
    return fits


def _in_order(fits_of: Mapping[int, Sequence[ModuleFit]]) -> tuple[ModuleFit, ...]:
    """Return the fits of all layers, first layer to last."""
    return tuple(fit for index in sorted(fits_of) for fit in fits_of[index])


def refits_whole(method: str, kind: str, layer: nn.Module) -> bool:
    """Return whether all weights of a block of a layer are refitted; those of linear attention never are."""
    return method == "blocks" and not (kind == "attention" and has_linear_attention(layer))


def _check_biases(plan: PrunePlan, method: str) -> None:
    if plan.writer_bias != (method == "bias"):
        raise InputError(
            expected="a plan that adds biases with method 'bias', and one that adds none with any other",
            got=f"writer_bias={plan.writer_bias} with method '{method}'",
            remedy="use plan_for(method, plan)",
        )


def check_enough(
    calibration: Calibration, minimum: int = 2, purpose: str = "to reconstruct, one of them held out"
) -> None:
    """Refuse a calibration with too few sequences to fit and to hold out.

    Raises:
        InputError: fewer sequences than ``minimum``.
    """
    if len(calibration.input_ids) < minimum:
        raise InputError(
            expected=f"at least {minimum} calibration sequences {purpose}",
            got=str(len(calibration.input_ids)),
            remedy="use a longer text or a smaller --seq_len",
        )


def _reconstruct_block(
    streams: PairedForward,
    kind: str,
    index: int,
    dense: nn.Module,
    pruned: nn.Module,
    bias_only: bool,
    seed: int | None,
) -> list[ModuleFit]:
    """Refit one output projection and, with a seed, its whole block, and run the block of both models.

    Returns an empty list if the pruned layer has no such block, one of experts with all their channels, which keep
    their weights, or linear attention, which takes no bias, where biases alone are fitted.
    """
    output = output_of(pruned, kind)
    block, _, name = output.partition(".")
    projection = getattr(getattr(pruned, block, None), name, None)
    if projection is None or (bias_only and projection.bias is None):
        streams.pass_dense(kind, dense)
        if getattr(pruned, block, None) is not None:
            streams.pass_pruned(kind, pruned, None)
        return []
    fit = Moments(projection, accumulation_dtype(projection.weight.device), bias_only=bias_only)
    held_out = Moments(projection, torch.float32, bias_only=bias_only)
    streams.gather(kind, dense, pruned, projection, fit, held_out)
    if not (fit.are_finite and held_out.are_finite):
        raise not_finite("input or output of the pruned model", index, output)
    columns = [] if bias_only else [projection.weight.detach()]
    columns += [] if projection.bias is None else [projection.bias.detach()[:, None]]
    new_HS, ridge, error = solve(torch.cat(columns, dim=1), fit, held_out)
    if ridge is not None:
        # new parameters, because the old ones may be the dense model's own
        if not bias_only:
            projection.weight = nn.Parameter(new_HS[:, : projection.in_features].contiguous(), requires_grad=False)
        if projection.bias is not None:
            projection.bias = nn.Parameter(new_HS[:, -1].contiguous(), requires_grad=False)
    errors = held_out.relative(held_out.error), held_out.relative(error)
    fits = [ModuleFit(index, output, ridge, *errors, changed=ridge is not None)]
    if seed is not None:
        before, after = fit_block(streams.branch(kind, pruned), streams.block_batches(kind, pruned), seed)
        worse, better = (relative_norm(found.energy, streams.block_energy) for found in (before, after))
        fits.append(ModuleFit(index, block, None, worse, better, changed=after is not before))
        if fits[-1].changed:
            streams.drop_inputs()
    streams.pass_pruned(kind, pruned, projection)
    return fits


@contextmanager
def _pruned_layer(surgery: Surgery, index: int, dense: nn.Module) -> Iterator[nn.Module]:
    """Load one layer of the pruned model, by its index there, on the device of the dense layer."""
    module, prefix = surgery.skeleton.model.layers[index].eval(), f"{LAYER_PREFIX}{index}."
    device = next(dense.parameters()).device
    state = {name: surgery.tensor(prefix + name).to(device) for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    try:
        yield module.requires_grad_(False)
    finally:
        module.to("meta")


def _new_tensors(fits: list[ModuleFit], new_index: int, pruned: nn.Module) -> dict[str, Tensor]:
    """Return the refitted tensors of one layer, by their names in the pruned model."""
    return {
        f"{LAYER_PREFIX}{new_index}.{name}": parameter.detach()
        for fit in fits
        if fit.changed
        for name, parameter in pruned.named_parameters()
        if f"{name}.".startswith(f"{fit.module}.")
    }
