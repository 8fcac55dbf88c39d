"""Budget search: the widths per layer and kind with the lowest KL(dense || pruned) on text, at a fixed budget.

Scores rank the groups of one block; how blocks compare is a weaker estimate, and is searched. The scores of every block
are multiplied by a factor, and the plan is selected from the products as usual, so that every step keeps to the budget,
minimum sizes, frozen layers and epsilon. A step that does not lower the divergence is rejected.

``by_gradient`` proposes and measures steps for plans without reconstruction, ``by_profile`` for reconstructed ones.

L layers
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np

from hgsp.console.progress import Progress, silent
from hgsp.console.schemas import Between
from hgsp.console.state_files import read_state, write_state
from hgsp.errors import NumericalError
from hgsp.models.geometry import Geometry
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import BlockIndex, select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.scoring.groups import Floats, GroupTable

LOG = logging.getLogger(__name__)

#: Factor on the size of an accepted step, and the size below which steps of a kind are too small to matter.
GROWTH, SMALLEST_STEP = 1.3, 0.01
#: The kind of its state file.
KIND = "search"


class Proposals(Protocol):
    """Proposed changes of the factors, and the measure of the plans that follow; a context manager.

    Attributes:
        report_name: value of "moves" in the report's schema.
        names: kinds of step, taken in turn.
        first_step: size of the first step of every kind.
        rejection_factor: multiplies the size after a rejected step; a negative number tries the opposite direction.
        fingerprint: of everything that divergences depend on besides the plan.
    """

    report_name: ClassVar[str]
    names: ClassVar[Sequence[str]]
    first_step: ClassVar[float]
    rejection_factor: ClassVar[float]
    fingerprint: str

    def __enter__(self) -> Proposals: ...

    def __exit__(self, *_: object) -> None: ...

    def measure(self, log_factors_LK: Floats, below: float) -> float:
        """Return the divergence in nats per token; below ``below``, ``direction`` starts from these factors."""
        ...

    def direction(self, name: str) -> Floats:
        """Return the change of the log factors in a step of size 1, [L, 2]."""
        ...


_LogFactor = Annotated[float, Between(-100, 100)]


@dataclass
class SearchState:
    """State from which an interrupted search resumes; ``log_factors`` [L][2], divergences in nats per token."""

    fingerprint: str
    log_factors: list[list[_LogFactor]]
    step_sizes: dict[str, float]
    divergences: list[float] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.accepted)

    @property
    def has_converged(self) -> bool:
        """Whether the steps of every kind have become too small to matter."""
        return max(map(abs, self.step_sizes.values())) < SMALLEST_STEP

    @property
    def lowest(self) -> float:
        """The divergence of the best plan so far; the first one is measured before any step."""
        return min(self.divergences)

    def fits(self, num_layers: int, names: Sequence[str]) -> bool:
        """Return whether the parts belong together, in a search over these layers and kinds of step."""
        return (
            [len(factors) for factors in self.log_factors] == [2] * num_layers
            and set(self.step_sizes) == set(names)
            and len(self.divergences) in (len(self.accepted) + 1, 0)
            and len(self.accepted) <= len(self.divergences)
        )

    def write(self, path: Path) -> None:
        write_state(path, KIND, asdict(self))


@dataclass(frozen=True)
class SearchProblem:
    """A ranked table and the arguments of ``select_groups``; ``weights_sha256`` identifies the model."""

    table: GroupTable
    geometry: Geometry
    budget_params: int
    shape_rules: ShapeRules
    epsilon: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    emptied: frozenset[BlockIndex] = frozenset()
    weights_sha256: str = ""

    def plan(self, log_factors_LK: Floats) -> PrunePlan:
        """Select a plan from scores multiplied by the factors of their blocks."""
        return select_groups(
            self.reweighted(log_factors_LK),
            self.geometry,
            self.budget_params,
            self.shape_rules,
            self.epsilon,
            self.provenance,
            self.emptied,
        )

    def reweighted(self, log_factors_LK: Floats) -> GroupTable:
        return self.table.reweighted(np.exp(log_factors_LK))

    def fingerprint(self, proposals: Proposals) -> str:
        """Hash everything that a search depends on."""
        settings = (
            f"{self.budget_params} {self.shape_rules} {self.epsilon} {sorted(self.emptied)} {proposals.fingerprint} "
            f"{self.weights_sha256}"
        )
        return hashlib.sha256(self.table.score.tobytes() + settings.encode()).hexdigest()


@fp32_matmul_fallback()
def search(
    proposals: Proposals,
    problem: SearchProblem,
    steps: int,
    *,
    state_file: Path | None = None,
    progress: Progress = silent,
) -> SearchState:
    """Search for the log factors of the best plan, which is ``problem.plan(np.array(state.log_factors))``.

    Args:
        proposals: entered only if steps remain.
        steps: of the whole search, those of an interrupted one included.
        state_file: written after every step; a search of the same problem resumes from it.

    Raises:
        NumericalError: the divergence of the first plan is not finite.
    """
    state = _state(problem, proposals, state_file)
    if state.divergences and (state.steps >= steps or state.has_converged):
        return state
    with proposals:
        log_factors_LK = np.array(state.log_factors)
        first = proposals.measure(log_factors_LK, math.inf)
        if not math.isfinite(first):
            raise NumericalError(f"the divergence of the first plan of the budget search is {first}")
        if not state.divergences:
            state.divergences.append(first)
        for _ in progress(range(state.steps, steps), "budget search", steps - state.steps):
            if state.has_converged:
                break
            name = proposals.names[state.steps % len(proposals.names)]
            candidate_LK = log_factors_LK + state.step_sizes[name] * proposals.direction(name)
            divergence = proposals.measure(candidate_LK, state.lowest)
            accepted = divergence < state.lowest
            if accepted:
                log_factors_LK = candidate_LK
                state.log_factors = log_factors_LK.tolist()
            state.step_sizes[name] *= GROWTH if accepted else proposals.rejection_factor
            state.divergences.append(divergence)
            state.accepted.append(accepted)
            verdict = "accepted" if accepted else "rejected"
            LOG.info("budget search, step %d (%s): %.4f nats per token, %s", state.steps, name, divergence, verdict)
            if state_file is not None:
                state.write(state_file)
    return state


def _state(problem: SearchProblem, proposals: Proposals, state_file: Path | None) -> SearchState:
    """Return the state of the file if it is of the same search, else a new one."""
    fingerprint = problem.fingerprint(proposals)
    state = None if state_file is None else read_state(state_file, KIND, SearchState)
    if state is not None:
        if state.fingerprint == fingerprint and state.fits(problem.geometry.num_layers, proposals.names):
            LOG.info("budget search: resuming after step %d, from %s", state.steps, state_file)
            return state
        LOG.warning(
            "budget search: discarding %s, the state of another model, text, budget or minimum size", state_file
        )
    step_sizes = dict.fromkeys(proposals.names, proposals.first_step)
    return SearchState(fingerprint, [[0.0, 0.0]] * problem.geometry.num_layers, step_sizes)
