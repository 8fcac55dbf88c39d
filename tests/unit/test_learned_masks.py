"""The benchmark's mask learning: lower divergence at the same size, and the gradient of scores against differences."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import REPOSITORY
from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.pruning.select import kept_mask
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.score import score_groups
from hgsp.search.search import SearchProblem

sys.path.append(str(REPOSITORY / "benchmarks"))
from learned_masks import WIDTH, gradient_of_scores, learn_masks, plan_of, threshold_of

IDS = torch.randint(0, 256, (63, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def start(make):
    """Return a model, and a problem whose scores are in the wrong order."""
    model = make("llama-8q4kv", num_hidden_layers=4)
    geometry = geometry_of(model)
    table = build_group_table(
        score_groups(Decoder(model), "fisher", Calibration(IDS[:6], "random", 3)).by_layer, geometry
    )
    wrong = replace(table, score=np.maximum(table.score, 1e-12) ** -0.1)
    return model, SearchProblem(wrong, geometry, geometry.decoder_params // 4, ShapeRules(1, 8))


@torch.no_grad()
def divergence_of(dense, plan, ids):
    """Return KL(dense || pruned) per token, by definition."""
    pruned = apply_plan(copy.deepcopy(dense), plan)
    log_p, log_q = (model(ids).logits.double().log_softmax(-1) for model in (dense, pruned))
    return float((log_p.exp() * (log_p - log_q)).sum() / ids.numel())


def test_the_learned_plan_is_closer_to_the_dense_model_on_other_text_at_the_same_size(start):
    model, problem = start
    table, divergences = learn_masks(Decoder(model), problem, IDS, steps=24)
    plans = [plan_of(problem, np.log(scores)) for scores in (problem.table.score, table.score)]
    assert divergences[0] == pytest.approx(divergence_of(model, plans[0], IDS[:21]), rel=1e-3)
    assert len(divergences) == 24
    unseen = torch.randint(0, 256, (8, 24), generator=torch.Generator().manual_seed(4))
    before, after = (divergence_of(model, plan, unseen) for plan in plans)
    assert after < 0.8 * before
    assert all(0 <= problem.budget_params - plan.removed_params < problem.geometry.mlp_channel_params for plan in plans)


def test_the_gradient_of_scores_is_that_of_a_sigmoid_at_a_constant_size(start):
    """The threshold is solved for at every point."""
    table, problem = start[1].table, start[1]
    generator = np.random.default_rng(0)
    log_scores, gradient = generator.normal(size=(2, len(table)))
    plan = plan_of(problem, log_scores)
    got = gradient_of_scores(problem, plan, log_scores, gradient)
    threshold = threshold_of(log_scores, table, kept_mask(table, plan))

    def soft(scores, at):
        return 1 / (1 + np.exp((at - scores) / WIDTH))

    def loss(scores):
        size = table.cost @ soft(log_scores, threshold)
        low, high = threshold - 1, threshold + 1
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if table.cost @ soft(scores, middle) > size else (low, middle)
        return gradient @ soft(scores, middle)

    for index in (0, 5, len(table) - 1, int(np.abs(log_scores - threshold).argmin())):
        step = np.zeros(len(table))
        step[index] = 1e-4
        expected = (loss(log_scores + step) - loss(log_scores - step)) / 2e-4
        assert got[index] == pytest.approx(expected, rel=1e-4, abs=1e-8)
