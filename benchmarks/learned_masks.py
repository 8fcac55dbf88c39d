"""Mask learning: which groups stay, by gradient descent on KL(dense || pruned) with all masks in force.

Scores judge one group at a time, in the dense model. Here the logarithms of the scores are the parameters of a descent,
so that groups are judged in the model without all others that leave. Every step selects a plan from the scores as
usual, and measures KL and its gradient with respect to the masks, of dropped groups too, on text of its own. Backwards
the mask of a group counts as a sigmoid of its log score over the threshold (straight-through estimator,
arXiv:1308.3432), and the threshold as moving with the scores, so that the size is kept: a group gains by its gradient
less what its parameters are worth elsewhere. (arXiv:2603.08065 learns masks of other values than 0 and 1 too.)

G groups | N sequences | T tokens
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hgsp.models.decoder import Decoder
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import kept_mask
from hgsp.pruning.units import Mask
from hgsp.scoring.groups import Floats, GroupTable
from hgsp.search.masked import MaskedDivergence
from hgsp.search.search import SearchProblem

#: Tokens of one step: a sequence at least.
STEP_TOKENS = 512
#: Change of a log score in one step, of Adam (arXiv:1412.6980); rises over the first steps and falls to a tenth.
LEARNING_RATE, WARMUP_STEPS, LAST_RATE = 0.03, 10, 0.1
BETAS = (0.9, 0.99)
#: Width of the sigmoid around the threshold, in nats of log score.
WIDTH = 0.5


def sequences_per_step(seq_len: int) -> int:
    """Return how many sequences one step measures on."""
    return max(1, STEP_TOKENS // seq_len)


def learn_masks(
    decoder: Decoder, problem: SearchProblem, input_ids_NT: Tensor, steps: int, batch_size: int = 4
) -> tuple[GroupTable, list[float]]:
    """Return the table with learned scores, and KL in nats per token at every step.

    Args:
        decoder: the dense model without experts; it is not changed.
        input_ids_NT: text that is read in turn, and again where steps are left.
    """
    lowest = problem.table.score[problem.table.score > 0].min()
    log_scores_G = torch.from_numpy(np.log(np.maximum(problem.table.score, lowest)))
    optimizer = torch.optim.Adam([log_scores_G], betas=BETAS, eps=torch.finfo(torch.float32).tiny)
    divergences = []
    size = sequences_per_step(input_ids_NT.shape[1])
    for step in range(steps):
        plan = plan_of(problem, log_scores_G.numpy())
        ids = input_ids_NT[torch.arange(step * size, (step + 1) * size) % len(input_ids_NT)]
        with MaskedDivergence(decoder, problem.geometry, ids, batch_size, None) as measured:
            divergence, gradients = measured.of(plan)
        assert gradients is not None, "the divergence is not finite"
        gradient_G = torch.cat([gradients[block].double() for block in sorted(gradients)]).numpy() / ids.numel()
        log_scores_G.grad = torch.from_numpy(gradient_of_scores(problem, plan, log_scores_G.numpy(), gradient_G))
        optimizer.param_groups[0]["lr"] = _learning_rate(step, steps)
        optimizer.step()
        divergences.append(divergence)
    return _rescored(problem, log_scores_G.numpy()).table, divergences


def plan_of(problem: SearchProblem, log_scores_G: Floats) -> PrunePlan:
    """Select from other scores, by their logarithms."""
    return _rescored(problem, log_scores_G).plan(np.zeros((problem.geometry.num_layers, 2)))


def gradient_of_scores(problem: SearchProblem, plan: PrunePlan, log_scores_G: Floats, gradient_G: Floats) -> Floats:
    """Return the gradient of KL with respect to log scores, at a size that does not change, float64 [G].

    Args:
        gradient_G: of KL with respect to the masks.
    """
    table = problem.table
    threshold = threshold_of(log_scores_G, table, kept_mask(table, plan))
    soft_G = 1 / (1 + np.exp(np.clip((threshold - log_scores_G) / WIDTH, -60, 60)))
    slope_G = soft_G * (1 - soft_G) / WIDTH
    price = float(slope_G @ gradient_G) / float(slope_G @ table.cost)  # of a parameter, in KL
    gradient: Floats = slope_G * (gradient_G - price * table.cost)
    return gradient


def threshold_of(log_scores_G: Floats, table: GroupTable, kept_G: Mask) -> float:
    """Return the log score below which groups cost as much as those that leave."""
    order = np.argsort(log_scores_G, kind="stable")
    spent = np.cumsum(table.cost[order])
    place = int(np.searchsorted(spent, table.cost[~kept_G].sum()))
    return float(log_scores_G[order[min(place, len(order) - 1)]])


def _learning_rate(step: int, steps: int) -> float:
    return LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (1 - (1 - LAST_RATE) * step / steps)


def _rescored(problem: SearchProblem, log_scores_G: Floats) -> SearchProblem:
    """Return the problem with other scores; they are 1 at most, and ``select_groups`` compares them alone."""
    return replace(problem, table=replace(problem.table, score=np.exp(log_scores_G - log_scores_G.max())))
