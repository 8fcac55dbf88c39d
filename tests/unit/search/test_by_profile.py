"""The budget search with reconstruction: divergences of the models themselves, budgets, resumed searches."""

import copy

import numpy as np
import pytest
import torch

from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.reconstruction.reconstruct import ReconstructionOptions, reconstruct
from hgsp.scoring.groups import ATTENTION, MLP, build_group_table
from hgsp.scoring.score import score_groups
from hgsp.search.by_profile import PROFILES, ProfileProposals
from hgsp.search.search import SearchProblem, search

IDS = torch.randint(0, 256, (16, 24), generator=torch.Generator().manual_seed(3))
TEXT = Calibration(IDS, "random bytes", 3)


def problem_of(model, shape_rules=None, text=TEXT):
    """Return a search problem with a wrong prior, which favours early layers."""
    geometry = geometry_of(model)
    table = build_group_table(score_groups(Decoder(model), "fisher", text).by_layer, geometry)
    wrong = np.array([[1, 1000], [1, 100], [1, 10], [1, 1]])
    return SearchProblem(
        table.with_prior(wrong), geometry, geometry.decoder_params // 4, shape_rules or ShapeRules(1, 8)
    )


def proposals_of(model, problem, text=TEXT, tensors_dir=None, **options):
    return ProfileProposals(Decoder(model), problem, text, ReconstructionOptions(**options), tensors_dir=tensors_dir)


@torch.no_grad()
def divergence_of(dense, pruned, ids):
    log_p, log_q = (model(ids).logits.double().log_softmax(-1) for model in (dense, pruned))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.fixture
def model(make):
    return make("llama-8q4kv", num_hidden_layers=4)


@pytest.mark.parametrize("family", ["llama-8q4kv", "qwen2-14q2kv", "qwen3-8q2kv"])
def test_the_divergence_is_that_of_the_reconstructed_model_on_held_out_text(make, family):
    model = make(family, num_hidden_layers=4)
    problem, factors = problem_of(model), np.array([[0, -1], [0, 0], [0.5, 0], [0, 1]])
    with proposals_of(model, problem) as proposals:
        divergence = proposals.measure(factors, np.inf)
    plan = problem.plan(factors)
    fitted = reconstruct(Decoder(model), Surgery(model, plan), Calibration(IDS[:12], "random bytes", 3))
    pruned = apply_plan(copy.deepcopy(model), plan, fitted.tensors)
    assert divergence == pytest.approx(divergence_of(model, pruned, IDS[12:]), rel=1e-3)


def test_the_divergence_falls_and_every_plan_keeps_budget_and_shape_rules(model, monkeypatch):
    problem = problem_of(model, ShapeRules(1, 8, freeze_first=1))
    plans, select = [], SearchProblem.plan
    monkeypatch.setattr(SearchProblem, "plan", lambda *arguments: plans.append(select(*arguments)) or plans[-1])
    state = search(proposals_of(model, problem, frozen=frozenset({0})), problem, 10)
    assert state.lowest < state.divergences[0]
    lower = [now < min(state.divergences[: step + 1]) for step, now in enumerate(state.divergences[1:])]
    assert state.accepted == lower
    assert len({plan.layers for plan in plans}) > 4
    for plan in plans:
        assert 0 <= problem.budget_params - plan.removed_params < problem.geometry.mlp_channel_params
        assert plan.layers[0].shape == LayerShape(4, 96)
        assert all(len(keep.kv_groups) >= 1 and len(keep.mlp_channels) >= 8 for keep in plan.layers)


def test_a_rejected_step_is_tried_in_the_opposite_direction_and_smaller(model):
    problem = problem_of(model)
    state = search(proposals_of(model, problem), problem, len(PROFILES))
    for name, accepted in zip(PROFILES, state.accepted, strict=True):
        assert state.step_sizes[name] == pytest.approx(0.7 * (1.3 if accepted else -0.6))


def test_an_interrupted_search_resumes_to_the_same_result(model, tmp_path):
    problem, file = problem_of(model), tmp_path / "state.json"
    whole = search(proposals_of(model, problem), problem, 6)
    search(proposals_of(model, problem), problem, 2, state_file=file)
    assert search(proposals_of(model, problem), problem, 6, state_file=file) == whole


def test_bias_and_least_squares_are_different_searches(model, tmp_path, caplog):
    problem, file = problem_of(model), tmp_path / "state.json"
    by_squares = search(proposals_of(model, problem), problem, 1, state_file=file)
    by_bias = search(proposals_of(model, problem, method="bias"), problem, 1, state_file=file)
    assert "discarding" in caplog.text
    assert by_bias.divergences != by_squares.divergences


def test_refitted_tensors_and_activations_on_disk_are_removed(model, tmp_path):
    problem = problem_of(model)
    (tmp_path / "streams").mkdir()
    expected = search(proposals_of(model, problem), problem, 2)
    on_disk = proposals_of(
        model, problem, tensors_dir=tmp_path / "refitted", spill_dir=tmp_path / "streams", batch_size=3
    )
    np.testing.assert_allclose(search(on_disk, problem, 2).divergences, expected.divergences, rtol=1e-3)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", PROFILES)
def test_slopes_and_bends_leave_the_mean_of_a_kind_alone(model, name):
    direction = proposals_of(model, problem_of(model)).direction(name)
    kind, power = PROFILES[name]
    assert not direction[:, ATTENTION if kind == MLP else MLP].any()
    assert direction[:, kind].sum() == pytest.approx(0 if power else 4)
    if power == 1:
        assert (np.diff(direction[:, kind]) > 0).all()


def test_a_model_with_one_layer_can_be_searched(make):
    model = make("llama-8q4kv", num_hidden_layers=1)
    geometry = geometry_of(model)
    table = build_group_table(score_groups(Decoder(model), "fisher", TEXT).by_layer, geometry)
    problem = SearchProblem(table, geometry, geometry.decoder_params // 4, ShapeRules(1, 8))
    assert search(proposals_of(model, problem), problem, 5).steps == 5


def test_too_little_text_is_refused(model):
    with pytest.raises(InputError, match="at least 3 calibration sequences to search with"):
        proposals_of(model, problem_of(model), Calibration(IDS[:2], "random bytes", 3))
