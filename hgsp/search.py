"""Budget search: where the parameters that may stay do most good, judged by KL(dense || pruned) on text.

Scores of one (layer, kind) block say which of its groups to drop first; how the blocks compare is what a look at the
dense model gets wrong, and what is searched. Every block's scores are multiplied by a factor of its own, and the plan
is cut from the multiplied scores as always, so that budget, floors, frozen layers and collapse hold at every step.

At the right plan, parameters are worth the same in every block. What they are worth is read off the gates of the
groups next to the cut, on both sides of it: minus the gradient of the divergence, per parameter. A step multiplies
the factors by the power of how much a block's worth is above the others', inside one kind or between the two, and is
taken back, with a smaller one next time, if the divergence did not fall. (Widths judged by KL: arXiv:2410.14649; theirs
evolve, ours follow a gradient.)

L layers | G groups
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hgsp.calibration import Calibration
from hgsp.divergence import DivergenceFromDense
from hgsp.errors import NumericalError
from hgsp.gates import GatedLayers
from hgsp.geometry import Geometry
from hgsp.groups import ATTENTION, MLP, Floats, GroupTable
from hgsp.layerwise import Decoder, LayerWalk
from hgsp.progress import Progress, silent
from hgsp.selection import Floors, PrunePlan, kept_mask, select_groups

LOG = logging.getLogger(__name__)

#: What a step moves budget between: MLPs of different layers, the two kinds, attentions of different layers.
MOVES = ("mlp", "kinds", "attention")
FIRST_STEP, GROWTH, SHRINKAGE, SMALLEST_STEP = 0.5, 1.3, 0.4, 0.01
#: A block's worth is at most this many times e above or below the others', whatever the gradient says.
LARGEST_LOG = 2.0
#: Fraction of a block's groups on each side of the cut whose gates are read.
BAND = 0.08


@dataclass
class SearchState:
    """All that a search that was stopped needs to go on. ``log_factors`` [L][2]; divergences in nats per token."""

    fingerprint: str
    log_factors: list[list[float]]
    step_sizes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MOVES, FIRST_STEP))
    divergences: list[float] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.accepted)

    @property
    def is_stuck(self) -> bool:
        """Whether every kind of move has become too small to matter."""
        return max(self.step_sizes.values()) < SMALLEST_STEP

    @property
    def least(self) -> float:
        """The divergence of the best plan so far; the first was measured before any step."""
        return min(self.divergences)

    def write(self, path: Path) -> None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(path)


@dataclass(frozen=True)
class Budgeted:
    """What a plan is cut from and how: the arguments of ``select_groups``."""

    table: GroupTable
    geometry: Geometry
    budget_params: int
    floors: Floors
    epsilon: float | None = None

    def plan(self, log_factors_LK: Floats, provenance: Any = None) -> PrunePlan:
        table = self.reweighted(log_factors_LK)
        return select_groups(table, self.geometry, self.budget_params, self.floors, self.epsilon, provenance)

    def reweighted(self, log_factors_LK: Floats) -> GroupTable:
        return self.table.reweighted(np.exp(log_factors_LK))

    def fingerprint(self, calibration: Calibration) -> str:
        """Of everything a search depends on."""
        asked = f"{self.budget_params} {self.floors} {self.epsilon} {calibration.sha256}"
        return hashlib.sha256(self.table.score.tobytes() + asked.encode()).hexdigest()


def search(
    decoder: Decoder,
    start: Budgeted,
    calibration: Calibration,
    steps: int,
    *,
    batch_size: int = 4,
    spill_dir: Path | None = None,
    state_file: Path | None = None,
    progress: Progress = silent,
) -> SearchState:
    """Take ``steps`` steps from the plan of ``start``; ``start.plan(log_factors)`` is the best plan found.

    A step costs one forward pass over the text, and two more where it is accepted. Holds the dense model's last
    hidden states and one boundary activation per layer besides the model.

    Args:
        decoder: the dense model, resident or read from files; it is not changed.
        calibration: the text of the judge.
        steps: of the whole search, those of an interrupted one included.
        spill_dir: folder for activations; None keeps them in CPU memory.
        state_file: written after every step, and gone on from if it is there and of this very search.

    Raises:
        NumericalError: the divergence of the first plan is not finite.
    """
    state = _state(start, calibration, state_file)
    if state.divergences and (state.steps >= steps or state.is_stuck):
        return state
    with DivergenceFromDense(decoder, calibration.input_ids, batch_size, spill_dir) as judge:

        def measure(log_factors_LK: Floats, below: float) -> tuple[float, Floats | None]:
            """The divergence, and what parameters are worth where it is lower than ``below``. [L, 2]"""
            plan = start.plan(log_factors_LK)
            gates = GatedLayers(decoder, start.geometry, plan)
            gated = Decoder(decoder.model, gates)
            walk = LayerWalk(gated, calibration.input_ids, batch_size, keep_boundaries=True, spill_dir=spill_dir)
            with walk:
                for layer_pass in walk.forward():
                    layer_pass.run()
                total = sum(float(judge.summed(walk.last()[batch], batch).sum()) for batch in walk.batches)
                divergence = total / calibration.input_ids.numel()
                if not divergence < below:
                    return divergence, None
                for back in walk.backward(judge.with_gradient):
                    for _ in back.run([]):
                        pass
            return divergence, _worth(start, plan, gates)

        log_factors_LK = np.array(state.log_factors)
        first, worth_LK = measure(log_factors_LK, float("inf"))
        if worth_LK is None:
            raise NumericalError(f"the divergence of the plan that the search starts from is {first}")
        if not state.divergences:
            state.divergences.append(first)
        for _ in progress(range(state.steps, steps), "budget search", steps - state.steps):
            if state.is_stuck:
                break
            move = MOVES[state.steps % len(MOVES)]
            tried_LK = log_factors_LK + state.step_sizes[move] * _direction(move, worth_LK)
            divergence, found_LK = measure(tried_LK, state.least)
            if found_LK is not None:
                log_factors_LK, worth_LK = tried_LK, found_LK
            _record(state, move, divergence, found_LK is not None, log_factors_LK)
            if state_file is not None:
                state.write(state_file)
    return state


def _state(start: Budgeted, calibration: Calibration, state_file: Path | None) -> SearchState:
    """The state in the file if it is that of this very search, else a new one."""
    fingerprint = start.fingerprint(calibration)
    if state_file is not None and state_file.exists():
        state = SearchState(**json.loads(state_file.read_text()))
        if state.fingerprint == fingerprint:
            LOG.info("budget search: goes on after step %d, from %s", state.steps, state_file)
            return state
        LOG.warning("budget search: %s is of another model, text, budget or floor; searching anew", state_file)
    return SearchState(fingerprint, [[0.0, 0.0]] * start.geometry.num_layers)


def _record(state: SearchState, move: str, divergence: float, accepted: bool, log_factors_LK: Floats) -> None:
    state.log_factors = log_factors_LK.tolist()
    state.step_sizes[move] *= GROWTH if accepted else SHRINKAGE
    state.divergences.append(divergence)
    state.accepted.append(accepted)
    verdict = "taken" if accepted else "taken back"
    LOG.info("budget search, step %d (%s): %.4f nats per token, %s", state.steps, move, divergence, verdict)


def _worth(start: Budgeted, plan: PrunePlan, gates: GatedLayers) -> Floats:
    """How much one more parameter in each block lowers the divergence sum, by the gates next to the cut. [L, 2]"""
    table, kept = start.table, kept_mask(start.table, plan)
    bounds = np.searchsorted(table.layer * 2 + table.kind, np.arange(2 * start.geometry.num_layers + 1))
    worth_LK = np.empty((start.geometry.num_layers, 2))
    for block, (first, stop) in enumerate(itertools.pairwise(bounds)):
        layer, kind = divmod(block, 2)
        own = slice(first, stop)
        near = _next_to_the_cut(table.score[own], kept[own])
        gradient = gates.gradients[layer, kind].double().numpy()
        worth_LK[layer, kind] = -(gradient[near] / table.cost[own][near]).mean()
    return worth_LK


def _next_to_the_cut(score: Floats, kept: Any) -> Sequence[int]:
    """Indices of the lowest scores that stay and of the highest that leave."""
    band = max(1, round(BAND * len(score)))
    order = np.argsort(score, kind="stable")
    stays = kept[order]
    return np.concatenate([order[stays][:band], order[~stays][-band:]]).tolist()


def _direction(move: str, worth_LK: Floats) -> Floats:
    """By how much the log factors grow in a step of size 1, [L, 2]."""
    least = 0.05 * np.median(np.abs(worth_LK))
    log_LK = np.log(np.maximum(worth_LK, max(least, np.finfo(float).tiny)))
    middle_K = np.median(log_LK, axis=0)
    direction_LK = np.zeros_like(log_LK)
    if move == "kinds":
        direction_LK[:, ATTENTION] = middle_K[ATTENTION] - middle_K[MLP]
    else:
        kind = MLP if move == "mlp" else ATTENTION
        direction_LK[:, kind] = log_LK[:, kind] - middle_K[kind]
    return np.clip(direction_LK, -LARGEST_LOG, LARGEST_LOG)
