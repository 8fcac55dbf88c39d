"""The budget search: masks and divergences against the pruned models themselves, budgets, resumed searches."""

import copy

import numpy as np
import pytest
import torch

from hgsp.console.state_files import read_state
from hgsp.data.calibration import Calibration
from hgsp.errors import NumericalError
from hgsp.layerwise.walk import LayerWalk
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.score import score_groups
from hgsp.search.by_gradient import GradientProposals
from hgsp.search.kl import DivergenceFromDense
from hgsp.search.search import SearchProblem, SearchState, search
from plans import mixed_plan, plan_dropping

IDS = torch.randint(0, 256, (6, 24), generator=torch.Generator().manual_seed(3))
TEXT = Calibration(IDS, "random bytes", 3)


def masked(model, plan):
    masks = MaskedLayers(Decoder(model), geometry_of(model), plan)
    return Decoder(model, masks), masks


@torch.no_grad()
def divergence_of(dense, pruned, ids=IDS):
    """Return the sum over tokens of KL(dense || pruned) of every sequence, by definition."""
    log_p, log_q = (model(ids).logits.double().log_softmax(-1) for model in (dense, pruned))
    return (log_p.exp() * (log_p - log_q)).sum((1, 2))


@torch.no_grad()
def measured(decoder, dense, batch_size=4):
    with DivergenceFromDense(Decoder(dense), IDS, batch_size, None) as divergence:
        walk = LayerWalk(decoder, IDS, batch_size)
        with walk:
            for layer_pass in walk.forward():
                layer_pass.run()
            return torch.cat([divergence.summed(walk.last()[batch], batch) for batch in walk.batches])


def test_masks_and_divergence_equal_the_pruned_model(tiny):
    plan = mixed_plan(tiny)
    pruned = apply_plan(copy.deepcopy(tiny), plan)
    torch.testing.assert_close(measured(masked(tiny, plan)[0], tiny), divergence_of(tiny, pruned), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["llama-8q4kv", "llama-mha-biased"])
def test_removed_blocks_and_layers_have_no_output(make, family):
    model = make(family, num_hidden_layers=4)
    heads = geometry_of(model).shapes[0].num_kv_groups
    plan = plan_dropping(model, layers=[1], kv={0: range(heads)}, mlp={2: range(96)})
    pruned = apply_plan(copy.deepcopy(model), plan)
    torch.testing.assert_close(
        measured(masked(model, plan)[0], model), divergence_of(model, pruned), rtol=1e-3, atol=1e-5
    )


def test_a_plan_that_drops_nothing_has_no_divergence_and_leaves_no_hooks(make, tmp_path):
    model = make("llama-8q4kv")
    decoder, _ = masked(model, plan_dropping(model))
    assert measured(decoder, model).abs().max() < 1e-4
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    with DivergenceFromDense(Decoder(model), IDS, 4, tmp_path):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["llama-8q4kv", "qwen2-14q2kv", "qwen3-8q2kv"])
def test_gradients_of_masks_are_those_of_the_whole_graph(make, family):
    """Of kept and of dropped groups, against autograd through the model's own forward pass."""
    model = make(family)
    geometry, plan = geometry_of(model), mixed_plan(model)
    decoder, masks = masked(model, plan)
    walk = LayerWalk(decoder, IDS, 4, keep_hidden_states=True)
    with DivergenceFromDense(Decoder(model), IDS, 4, None) as divergence, walk:
        for layer_pass in walk.forward():
            layer_pass.run()
        for back in walk.backward(divergence.with_gradient):
            for _ in back.run([]):
                pass
    expected = {}
    copied = copy.deepcopy(model)
    for index, (layer, keep) in enumerate(zip(copied.model.layers, plan.layers, strict=True)):
        for kind, (projection, kept, columns) in enumerate(
            (
                (layer.self_attn.o_proj, keep.kv_groups, geometry.queries_per_kv * geometry.head_dim),
                (layer.mlp.down_proj, keep.mlp_channels, 1),
            )
        ):
            mask = torch.zeros(projection.in_features // columns)
            mask[list(kept)] = 1
            expected[index, kind] = mask.requires_grad_()
            projection.register_forward_pre_hook(
                lambda _module, args, mask=mask, columns=columns: (args[0] * mask.repeat_interleave(columns),)
            )
    log_p = model(IDS).logits.log_softmax(-1).detach()
    log_q = copied(IDS).logits.log_softmax(-1)
    (log_p.exp() * (log_p - log_q)).sum().backward()
    assert masks.gradients.keys() == expected.keys()
    for key, mask in expected.items():
        torch.testing.assert_close(masks.gradients[key], mask.grad, rtol=2e-3, atol=1e-3)


def searched(model, start, steps, text=TEXT, state_file=None, **settings):
    return search(GradientProposals(Decoder(model), start, text, **settings), start, steps, state_file=state_file)


@pytest.fixture
def start(make):
    """Return a model, and a search problem with a wrong prior."""
    model = make("llama-8q4kv", num_hidden_layers=4)
    geometry = geometry_of(model)
    table = build_group_table(score_groups(Decoder(model), "fisher", TEXT).by_layer, geometry)
    wrong = np.array([[1, 100], [10, 0.01], [0.1, 1], [1, 10]])
    budget = geometry.decoder_params // 4
    return model, SearchProblem(table.with_prior(wrong), geometry, budget, ShapeRules(1, 8))


def test_the_divergence_falls_and_is_that_of_the_plan(start):
    model, problem = start
    state = searched(model, problem, 12)
    assert state.steps == 12
    assert len(state.divergences) == 13
    assert state.lowest < 0.9 * state.divergences[0]
    plans = [problem.plan(np.zeros((4, 2))), problem.plan(np.array(state.log_factors))]
    for plan, divergence in zip(plans, (state.divergences[0], state.lowest), strict=True):
        pruned = apply_plan(copy.deepcopy(model), plan)
        assert float(divergence_of(model, pruned).sum()) / IDS.numel() == pytest.approx(divergence, rel=1e-3)
    # a step is accepted exactly when it is the best so far
    lower = [now < min(state.divergences[: step + 1]) for step, now in enumerate(state.divergences[1:])]
    assert state.accepted == lower
    assert True in lower
    assert False in lower


def test_every_plan_keeps_budget_shape_rules_and_frozen_layers(start, monkeypatch):
    model, given = start
    problem = SearchProblem(
        given.table, given.geometry, given.budget_params, ShapeRules(1, 8, freeze_first=1, freeze_last=1)
    )
    plans, select = [], SearchProblem.plan
    monkeypatch.setattr(SearchProblem, "plan", lambda *arguments: plans.append(select(*arguments)) or plans[-1])
    searched(model, problem, 6)
    assert len({plan.layers for plan in plans}) > 2
    dense = LayerShape(4, 96)
    for plan in plans:
        assert 0 <= given.budget_params - plan.removed_params < given.geometry.mlp_channel_params
        assert plan.layers[0].shape == plan.layers[3].shape == dense
        assert all(len(keep.kv_groups) >= 1 and len(keep.mlp_channels) >= 8 for keep in plan.layers)


def test_an_interrupted_search_resumes_to_the_same_result(start, tmp_path, caplog):
    model, problem = start
    whole = searched(model, problem, 7)
    file = tmp_path / "state.json"
    first = searched(model, problem, 3, state_file=file)
    assert read_state(file, "search", SearchState) == first
    assert searched(model, problem, 7, state_file=file) == whole
    assert searched(model, problem, 2, state_file=file) == whole, "more steps are done already"
    other = Calibration(IDS[:4], "less", 3)
    fresh = searched(model, problem, 1, text=other, state_file=file)
    assert fresh.steps == 1
    assert "discarding" in caplog.text


def test_batch_size_and_disk_offload_change_nothing(start, tmp_path):
    model, problem = start
    expected = searched(model, problem, 3, batch_size=6)
    got = searched(model, problem, 3, batch_size=2, spill_dir=tmp_path)
    np.testing.assert_allclose(got.divergences, expected.divergences, rtol=1e-4)
    assert not list(tmp_path.iterdir())


def test_it_stops_when_no_step_is_large_enough_to_matter(start):
    model, problem = start
    state = searched(model, problem, 400)
    assert state.steps < 400
    assert state.has_converged


def test_a_first_plan_without_a_finite_divergence_is_an_error(start, monkeypatch):
    model, problem = start
    monkeypatch.setattr(DivergenceFromDense, "summed", lambda *_: torch.tensor([float("nan")]))
    with pytest.raises(NumericalError, match="divergence of the first plan"):
        searched(model, problem, 2)
