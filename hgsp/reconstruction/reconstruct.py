"""Reconstruction after the cut, without training: what is left of ``o_proj`` and ``down_proj`` learns to write what the
dense model wrote.

Dense and pruned model are walked side by side, block by block. Let x be the input of a writer in the pruned model,
whose earlier blocks are cut AND reconstructed already (the largest single effect published, Tyr-the-Pruner, NeurIPS
2025), and e the dense model's residual stream after the block minus the pruned one's: what the block's own cut lost and
what earlier blocks could not make good. Over the calibration tokens

    A = sum x x^T [S, S],   G = sum x e^T [S, H],   D = (A + lam I)^-1 G,   W_S += D^T,   lam = ridge * mean diag A

is the least-squares fit whose ridge pulls towards the OLD weights: with e = y - W_S x it is W_S^T = (A + lam I)^-1 (B +
lam W_S,old^T), B = sum x y^T (compare OSSCAR, arXiv:2403.12983). A writer that has a bias gets it fitted as one more
column. Sequences that took no part in the fit judge the ridge; no change at all is among the choices, so that the
held-out error of a module never grows. Rounding to the weights' dtype is part of what is judged.

Aiming at the dense module's own output instead of the stream leaves the drift of earlier blocks where it is. What least
squares leave of an MLP's error, ``block_fit`` lowers further if asked to.

One block's moments are all that exists at a time, and of the activations only the two streams at one block boundary;
on a CPU also what goes into the writer, because computing it again takes longer there than keeping it.

H hidden | S inputs a pruned writer keeps, plus one for a bias
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgsp.console.progress import Progress, silent
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError, not_finite
from hgsp.models.decoder import Decoder
from hgsp.models.families import KINDS, LAYER_PREFIX, OUTPUT_PROJECTIONS
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.pruning.surgery import Surgery, surviving_layers
from hgsp.reconstruction.block_fit import fit_block
from hgsp.reconstruction.least_squares import Moments, solve, wide_dtype
from hgsp.reconstruction.paired_forward import PairedForward, num_held_out
from hgsp.reconstruction.resume import ResumeState


@dataclass(frozen=True)
class ModuleFit:
    """What became of one writer, or of one whole block. ``layer`` is its dense index.

    ``ridge`` is None where least squares left the old weights, and for a block, which has none. Errors are held out:
    norm of e over the norm of what the dense block writes, None where that writes nothing. ``changed`` says whether
    there are new weights.
    """

    layer: int
    module: str
    ridge: float | None
    error_before: float | None
    error_after: float | None
    changed: bool


@dataclass(frozen=True)
class Reconstruction:
    """The modules in the order they were fitted, and the text they were fitted on."""

    modules: tuple[ModuleFit, ...]
    calibration: Calibration
    method: str

    def describe(self) -> dict[str, Any]:
        """What the report says about it."""
        return {
            "method": self.method,
            "calibration": self.calibration.describe(),
            "held_out_sequences": num_held_out(len(self.calibration.input_ids)),
            "modules": [asdict(module) for module in self.modules],
        }


@torch.no_grad()
@fp32_matmul_fallback()
def reconstruct(
    decoder: Decoder,
    surgery: Surgery,
    calibration: Calibration,
    *,
    batch_size: int = 4,
    spill_dir: Path | None = None,
    frozen: Collection[int] = (),
    whole_blocks: bool = False,
    finished: ResumeState | None = None,
    progress: Progress = silent,
) -> Reconstruction:
    """Refit every writer of the pruned model, first layer to last, and put the new tensors into ``surgery.replaced``.

    Where the plan gives writers a bias, that bias is all that is fitted: it makes good for the mean of what is lost
    (arXiv:2312.11983), at the cost of one parameter per output.

    Args:
        decoder: the dense model, resident or read from files; it is not changed.
        surgery: gives the pruned model's tensors. A plan that removes nothing replaces nothing.
        calibration: the last eighth of its sequences judges, the others fit.
        spill_dir: folder for the two streams, [sequences, tokens, H] each, and on a CPU the writer's inputs on disk;
            None keeps them in memory.
        frozen: dense indices of layers that are never touched.
        whole_blocks: go on from least squares with all weights of the MLP, see ``fit_block``.
        finished: layers that are done are noted there, and not refitted where they are there already; its tensors are
            ``surgery.replaced``. The result is the same.

    Raises:
        InputError: fewer than two sequences.
        NumericalError: the pruned model's residual stream is not finite.
    """
    check_enough(calibration)
    method = "bias" if surgery.plan.writer_bias else "blocks" if whole_blocks else "lstsq"
    if not surgery.plan.removed_params:
        return Reconstruction((), calibration, method)
    new_index_of = {old: new for new, old in enumerate(surviving_layers(surgery.plan))}
    modules: list[ModuleFit] = []
    with PairedForward(decoder, calibration.input_ids, batch_size, spill_dir) as streams:
        for index in progress(range(decoder.num_layers), "reconstruction", decoder.num_layers):
            new_index = new_index_of.get(index)
            with decoder.layer(index) as dense:
                if new_index is None:
                    streams.pass_layer(dense, None)
                    continue
                with _pruned_layer(surgery, new_index, dense) as pruned:
                    earlier = None if finished is None else finished.findings(index)
                    if index in frozen or earlier is not None:
                        streams.pass_layer(dense, pruned)
                        modules += [ModuleFit(**fitted) for fitted in earlier or ()]
                        continue
                    fits: list[ModuleFit] = []
                    for kind in KINDS:
                        seed = calibration.seed + index if method == "blocks" and kind == "mlp" else None
                        fits += _reconstruct_block(streams, kind, index, dense, pruned, surgery.plan.writer_bias, seed)
                    new = _new_tensors(fits, new_index, pruned)
                    surgery.replaced.update(new)
                    if finished is not None:
                        finished.add(index, [asdict(fitted) for fitted in fits], new)
                    modules += fits
    return Reconstruction(tuple(modules), calibration, method)


def check_enough(
    calibration: Calibration, least: int = 2, purpose: str = "to reconstruct, one of them held out"
) -> None:
    """Refuse a calibration that leaves nothing to fit on, or nothing to judge by.

    Raises:
        InputError: fewer sequences than ``least``.
    """
    if len(calibration.input_ids) < least:
        raise InputError(
            expected=f"at least {least} calibration sequences {purpose}",
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
    """Refit one writer, with a seed the whole MLP after it, and let both streams pass the block.

    Empty where the pruned layer has no such block.
    """
    block, _, name = OUTPUT_PROJECTIONS[kind].partition(".")
    writer = getattr(getattr(pruned, block), name, None)
    if writer is None:
        streams.pass_dense(kind, dense)
        return []
    fit = Moments(writer, wide_dtype(writer.weight.device), bias_only=bias_only)
    held = Moments(writer, torch.float32, bias_only=bias_only)
    streams.gather(kind, dense, pruned, writer, fit, held)
    if not (fit.are_finite and held.are_finite):
        raise not_finite("input or output of the pruned model", index, OUTPUT_PROJECTIONS[kind])
    columns = [] if bias_only else [writer.weight.detach()]
    columns += [] if writer.bias is None else [writer.bias.detach()[:, None]]
    old_HS = torch.cat(columns, dim=1)
    new_HS, ridge, error = solve(old_HS, fit, held)
    if ridge is not None:
        # new parameters: the old ones may be the dense model's own
        if not bias_only:
            writer.weight = nn.Parameter(new_HS[:, : writer.in_features].contiguous(), requires_grad=False)
        if writer.bias is not None:
            writer.bias = nn.Parameter(new_HS[:, -1].contiguous(), requires_grad=False)
    errors = held.relative(held.error), held.relative(error)
    fits = [ModuleFit(index, OUTPUT_PROJECTIONS[kind], ridge, *errors, changed=ridge is not None)]
    if seed is not None:
        before, after = fit_block(pruned.mlp, streams.block_text(pruned), seed)
        errors = held.relative(before.energy), held.relative(after.energy)
        fits.append(ModuleFit(index, block, None, *errors, changed=after is not before))
        if fits[-1].changed:
            streams.forget_inputs()
    streams.pass_pruned(kind, pruned, writer)
    return fits


@contextmanager
def _pruned_layer(surgery: Surgery, index: int, dense: nn.Module) -> Iterator[nn.Module]:
    """One layer of the pruned model with its weights, on the dense layer's device; index is the pruned model's."""
    module, prefix = surgery.skeleton.model.layers[index].eval(), f"{LAYER_PREFIX}{index}."
    device = next(dense.parameters()).device
    state = {name: surgery.tensor(prefix + name).to(device) for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    try:
        yield module.requires_grad_(False)
    finally:
        module.to("meta")


def _new_tensors(fits: list[ModuleFit], new_index: int, pruned: nn.Module) -> dict[str, Tensor]:
    """The tensors of one layer that were refitted, by their names in the pruned model."""
    return {
        f"{LAYER_PREFIX}{new_index}.{fitted.module}.{name}": parameter.detach()
        for fitted in fits
        if fitted.changed
        for name, parameter in pruned.get_submodule(fitted.module).named_parameters()
    }
