"""Budget search: where the parameters that may stay do most good, judged by KL(dense || pruned) on text.

Scores of one (layer, kind) block say which of its groups to drop first; how the blocks compare is what a look at the
dense model gets wrong, and what is searched. Every block's scores are multiplied by a factor of its own, and the plan
is cut from the multiplied scores as always, so that budget, floors, frozen layers and collapse hold at every step.

How the factors move and how a plan is judged is one file each: ``search_by_gradient`` for a plain cut,
``search_by_profile`` where the cut is reconstructed. A step whose divergence is not the lowest so far is taken back.

L layers
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from hgsp.console.progress import Progress, silent
from hgsp.environment import write_atomically
from hgsp.errors import NumericalError
from hgsp.models.geometry import Geometry
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import MinimumSizes, select_groups
from hgsp.scoring.groups import Floats, GroupTable

LOG = logging.getLogger(__name__)

GROWTH, SMALLEST_STEP = 1.3, 0.01


class Proposals(Protocol):
    """Ways to change the factors, taken in turn, and the judge of what comes out; a context in which both work.

    ``names`` of the moves, ``first_step`` of each, and what its step is multiplied by ``on_failure``: a negative number
    tries the other way next. ``fingerprint`` tells apart all that the divergences depend on besides the plan.
    """

    report_name: ClassVar[str]
    names: ClassVar[Sequence[str]]
    first_step: ClassVar[float]
    on_failure: ClassVar[float]
    fingerprint: str

    def __enter__(self) -> Proposals: ...

    def __exit__(self, *_: object) -> None: ...

    def measure(self, log_factors_LK: Floats, below: float) -> float:
        """The divergence in nats per token; where it is lower than ``below``, moves go on from these factors."""
        ...

    def direction(self, name: str) -> Floats:
        """By how much the log factors grow in a step of size 1, [L, 2]."""
        ...


@dataclass
class SearchState:
    """All that a search that was stopped needs to go on. ``log_factors`` [L][2]; divergences in nats per token."""

    fingerprint: str
    log_factors: list[list[float]]
    step_sizes: dict[str, float]
    divergences: list[float] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.accepted)

    @property
    def is_stuck(self) -> bool:
        """Whether every kind of move has become too small to matter."""
        return max(map(abs, self.step_sizes.values())) < SMALLEST_STEP

    @property
    def least(self) -> float:
        """The divergence of the best plan so far; the first was measured before any step."""
        return min(self.divergences)

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self)))


@dataclass(frozen=True)
class SearchProblem:
    """What a plan is cut from and how: the arguments of ``select_groups``."""

    table: GroupTable
    geometry: Geometry
    budget_params: int
    minimum_sizes: MinimumSizes
    epsilon: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, log_factors_LK: Floats) -> PrunePlan:
        return select_groups(
            self.reweighted(log_factors_LK),
            self.geometry,
            self.budget_params,
            self.minimum_sizes,
            self.epsilon,
            self.provenance,
        )

    def reweighted(self, log_factors_LK: Floats) -> GroupTable:
        return self.table.reweighted(np.exp(log_factors_LK))

    def fingerprint(self, proposals: Proposals) -> str:
        """Of everything a search depends on."""
        asked = f"{self.budget_params} {self.minimum_sizes} {self.epsilon} {proposals.fingerprint}"
        return hashlib.sha256(self.table.score.tobytes() + asked.encode()).hexdigest()


@fp32_matmul_fallback()
def search(
    proposals: Proposals,
    start: SearchProblem,
    steps: int,
    *,
    state_file: Path | None = None,
    progress: Progress = silent,
) -> SearchState:
    """Take ``steps`` steps from the plan of ``start``; ``start.plan(log_factors)`` is the best plan found.

    Args:
        moves: how plans change and are judged; entered only if there is something left to do.
        steps: of the whole search, those of an interrupted one included.
        state_file: written after every step, and gone on from if it is there and of this very search.

    Raises:
        NumericalError: the divergence of the first plan is not finite.
    """
    state = _state(start, proposals, state_file)
    if state.divergences and (state.steps >= steps or state.is_stuck):
        return state
    with proposals:
        log_factors_LK = np.array(state.log_factors)
        first = proposals.measure(log_factors_LK, math.inf)
        if not math.isfinite(first):
            raise NumericalError(f"the divergence of the plan that the search starts from is {first}")
        if not state.divergences:
            state.divergences.append(first)
        for _ in progress(range(state.steps, steps), "budget search", steps - state.steps):
            if state.is_stuck:
                break
            name = proposals.names[state.steps % len(proposals.names)]
            tried_LK = log_factors_LK + state.step_sizes[name] * proposals.direction(name)
            divergence = proposals.measure(tried_LK, state.least)
            accepted = divergence < state.least
            if accepted:
                log_factors_LK = tried_LK
                state.log_factors = log_factors_LK.tolist()
            state.step_sizes[name] *= GROWTH if accepted else proposals.on_failure
            state.divergences.append(divergence)
            state.accepted.append(accepted)
            verdict = "taken" if accepted else "taken back"
            LOG.info("budget search, step %d (%s): %.4f nats per token, %s", state.steps, name, divergence, verdict)
            if state_file is not None:
                state.write(state_file)
    return state


def _state(start: SearchProblem, proposals: Proposals, state_file: Path | None) -> SearchState:
    """The state in the file if it is that of this very search, else a new one."""
    fingerprint = start.fingerprint(proposals)
    if state_file is not None and state_file.exists():
        state = SearchState(**json.loads(state_file.read_text()))
        if state.fingerprint == fingerprint:
            LOG.info("budget search: goes on after step %d, from %s", state.steps, state_file)
            return state
        LOG.warning("budget search: %s is of another model, text, budget or floor; searching anew", state_file)
    step_sizes = dict.fromkeys(proposals.names, proposals.first_step)
    return SearchState(fingerprint, [[0.0, 0.0]] * start.geometry.num_layers, step_sizes)
