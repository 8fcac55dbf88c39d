"""The search for whole blocks to empty: its ladder, its order, and divergences of refitted models."""

import numpy as np
import pytest
import torch

from hgsp.data.calibration import Calibration
from hgsp.errors import InputError, NumericalError
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.reconstruction.reconstruct import ReconstructionOptions
from hgsp.scoring.groups import ATTENTION, MLP, build_group_table
from hgsp.scoring.score import score_groups
from hgsp.search.reconstructed import ReconstructedDivergence
from hgsp.search.whole_blocks import block_importance, emptying_order, search_whole_blocks
from plans import plan_dropping

ORDER = [(layer, kind) for layer in range(8) for kind in (ATTENTION, MLP)]


def searched(divergence_of_number, order=ORDER, most=99):
    """Search with divergences by the number of emptied blocks; return the result and the numbers in their order."""
    tried = []

    def select(emptied):
        assert emptied == frozenset(order[: len(emptied)])
        if len(emptied) > most:
            raise InputError(expected="fewer", got="more", remedy="none")
        return len(emptied)  # any value serves as a plan

    def divergence_of(plan):
        tried.append(plan)
        return divergence_of_number(plan)

    return search_whole_blocks(order, select, divergence_of), tried


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0, [0, 1, 2]),
        (1, [0, 1, 2, 4]),
        (3, [0, 1, 2, 4, 8, 16, 3]),
        (6, [0, 1, 2, 4, 8, 16, 3, 6]),
        (12, [0, 1, 2, 4, 8, 16, 6, 12]),
    ],
)
def test_numbers_double_until_they_get_worse_and_those_halfway_follow(best, tried):
    found, numbers = searched(lambda number: abs(number - best) + 0.1)
    assert numbers == tried
    lowest = min(numbers, key=lambda number: abs(number - best))
    assert found.plan == lowest
    assert found.emptied == tuple(ORDER[:lowest])
    assert found.divergences == {number: abs(number - best) + 0.1 for number in numbers}


def test_a_target_that_so_many_blocks_exceed_ends_the_search():
    found, numbers = searched(lambda number: 1 / (1 + number), most=3)
    assert numbers == [0, 1, 2]
    assert found.plan == 2
    with pytest.raises(InputError):
        searched(lambda number: 1.0, most=-1)


def test_divergences_must_be_finite():
    with pytest.raises(NumericalError, match="with 0 emptied blocks is nan"):
        searched(lambda number: float("nan"))


def test_the_report_names_kinds():
    found, _ = searched(lambda number: 1 / (1 + number), order=ORDER[:2])
    assert found.describe() == {
        "emptied": [{"layer": 0, "kind": "attention"}, {"layer": 0, "kind": "mlp"}],
        "kl_by_emptied_blocks": {"0": 1.0, "1": 0.5, "2": 1 / 3},
    }


def test_the_order_is_importance_over_cost_and_leaves_one_layer_complete():
    importance_LK = np.array([[1.0, 8.0], [3.0, 4.0], [5.0, 6.0]])
    assert emptying_order(importance_LK, np.ones((3, 2))) == [(0, 0), (1, 0), (1, 1), (0, 1)]
    halved = np.array([[1.0, 1.0], [1.0, 1.0], [0.1, 10.0]])
    assert emptying_order(importance_LK, halved)[0] == (2, 1)
    assert emptying_order(importance_LK, np.ones((3, 2)), frozenset({0, 1})) == [(2, 0), (2, 1)]
    assert emptying_order(importance_LK, np.ones((3, 2)), limit=2) == [(0, 0), (1, 0)]


def test_blocks_that_save_nothing_are_left_out():
    assert emptying_order(np.ones((2, 2)), np.array([[1.0, 0.0], [1.0, 0.0]])) == []
    assert emptying_order(np.ones((3, 2)), np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])) == [(0, 0), (0, 1), (1, 0)]


def test_candidates_are_refitted_models_of_the_same_size(make):
    model = make("llama-8q4kv", num_hidden_layers=4)
    ids = torch.randint(0, 256, (12, 24), generator=torch.Generator().manual_seed(3))
    text = Calibration(ids, "random bytes", 3)
    geometry = geometry_of(model)
    table = build_group_table(score_groups(Decoder(model), "fisher", text).by_layer, geometry)
    importance_LK = block_importance(table)
    assert importance_LK.sum() == pytest.approx((table.score * table.cost).sum())
    assert importance_LK[2, MLP] == pytest.approx(table.importance[(table.layer == 2) & (table.kind == MLP)].sum())
    budget = geometry.decoder_params // 3

    def select(emptied):
        if not emptied:
            return select_groups(table, geometry, budget, ShapeRules(1, 8))
        kv = {layer: range(4) for layer, kind in emptied if kind == ATTENTION}
        mlp = {layer: range(96) for layer, kind in emptied if kind == MLP}
        plan = plan_dropping(model, kv=kv, mlp=mlp)
        if plan.removed_params > budget:
            raise InputError(expected="a smaller removal", got="more", remedy="empty fewer blocks")
        return plan

    order = emptying_order(importance_LK, np.ones((4, 2)))
    with ReconstructedDivergence(Decoder(model), text, ReconstructionOptions()) as divergence:
        found = search_whole_blocks(order, select, divergence.of)
        assert found.divergences[len(found.emptied)] == divergence.of(found.plan) == min(found.divergences.values())
        assert len(found.divergences) > 1
