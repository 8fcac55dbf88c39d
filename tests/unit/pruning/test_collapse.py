"""Whole-layer removal: which layers collapse, how the freed budget is spent, and generation afterwards."""

import numpy as np
import pytest
import torch

from conftest import make_tiny
from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.methods import METHODS
from hgsp.scoring.normalization import normalize
from hgsp.scoring.prior import prior_of
from hgsp.scoring.score import score_groups

SIZES = ShapeRules(min_mlp_width=8)


def table_with_a_low_layer(geometry, low):
    importance = []
    for index, shape in enumerate(geometry.shapes):
        scale = 1e-6 if index == low else 1.0
        attention = scale * geometry.kv_group_params * (1 + np.arange(shape.num_kv_groups) / 100)
        mlp = scale * geometry.mlp_channel_params * (1 + np.arange(shape.mlp_width) / 100)
        importance.append({"attention": attention, "mlp": mlp})
    return build_group_table(importance, geometry)


def test_a_collapsed_layer_leaves_and_the_budget_is_spent_again():
    model = make_tiny("llama-8q4kv", num_hidden_layers=4)
    geometry = geometry_of(model)
    table = table_with_a_low_layer(geometry, low=2)
    budget = budget_for_ratio(geometry, 0.4, SIZES)
    plan = select_groups(table, geometry, budget, SIZES, epsilon=0.2)  # the minimum sizes are 0.153 of a layer
    assert plan.removed_layers == (2,)
    assert 0 <= budget - plan.removed_params < geometry.mlp_channel_params
    assert select_groups(table, geometry, budget, SIZES, epsilon=None).removed_layers == ()
    assert select_groups(table, geometry, budget, SIZES, epsilon=0.0).removed_layers == ()

    pruned = apply_plan(model, plan)
    assert len(pruned.model.layers) == pruned.config.num_hidden_layers == 3
    assert geometry.total_params - sum(p.numel() for p in pruned.parameters()) == plan.removed_params
    prompt = torch.randint(0, 256, (1, 7))
    cached, uncached = (
        pruned.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=0)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)


def test_frozen_layers_are_never_touched():
    model = make_tiny("llama-8q4kv", num_hidden_layers=4)
    geometry = geometry_of(model)
    shape_rules = ShapeRules(min_mlp_width=8, freeze_first=1, freeze_last=1)
    for low in (0, 3):
        table = table_with_a_low_layer(geometry, low)
        plan = select_groups(table, geometry, budget_for_ratio(geometry, 0.3, shape_rules), shape_rules, epsilon=1.0)
        for index in (0, 3):
            assert plan.layers[index].shape == geometry.shapes[index]
        assert set(plan.removed_layers) <= {1, 2}


def test_one_layer_always_stays():
    """Epsilon 1 removes every layer that loses a group, except the last one, within the budget."""
    geometry = geometry_of(make_tiny("llama-8q4kv"))
    table = table_with_a_low_layer(geometry, low=0)
    budget = budget_for_ratio(geometry, 0.5, SIZES)
    plan = select_groups(table, geometry, budget, SIZES, epsilon=1.0)
    assert 0 < len(plan.removed_layers) < geometry.num_layers
    assert plan.removed_params <= budget


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 20.0])
def test_no_layer_is_emptied_by_halves(method, temperature):
    """A layer scaled by 1e-3 keeps its minimum sizes or leaves whole, also at the extremes of the prior."""
    model = make_tiny("llama-8q4kv")
    with torch.no_grad():
        for parameter in model.model.layers[1].parameters():
            parameter.mul_(1e-3)
    geometry = geometry_of(model)
    text = Calibration(torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(2)), "random", 0)
    found = score_groups(Decoder(model), method, text, with_influence=True)
    base = normalize(found.by_layer, geometry, METHODS[method].normalization)
    table = build_group_table(found.by_layer, geometry, base)
    budget = budget_for_ratio(geometry, 0.5, SIZES)
    for tau in (0.0, None, float("inf")):
        prior, _ = prior_of(found.influence, temperature, tau)
        for epsilon in (None, 0.0, 0.15, 1.0):
            plan = select_groups(table.with_prior(prior), geometry, budget, SIZES, epsilon)
            assert plan.removed_params <= budget
            assert len(plan.removed_layers) < geometry.num_layers
            for keep in plan.layers:
                whole = keep.shape == LayerShape(0, 0) and epsilon is not None
                assert whole or (keep.shape.num_kv_groups >= 1 and keep.shape.mlp_width >= SIZES.min_mlp_width)
