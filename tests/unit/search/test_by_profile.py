"""The budget search of reconstructed cuts: judges what will be written, holds the budget, goes on after a stop."""

import copy

import numpy as np
import pytest
import torch

from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.pruning.select import MinimumSizes
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.reconstruction.reconstruct import ReconstructionOptions, reconstruct
from hgsp.scoring.groups import ATTENTION, MLP, build_group_table
from hgsp.scoring.score import score_groups
from hgsp.search.by_profile import PROFILES, ProfileProposals
from hgsp.search.search import SearchProblem, search

IDS = torch.randint(0, 256, (16, 24), generator=torch.Generator().manual_seed(3))
TEXT = Calibration(IDS, "random bytes", 3)


def start_of(model, minimum_sizes=None, text=TEXT):
    """A model whose late layers are taken for worthless by a wrong prior, and what to cut from."""
    geometry = geometry_of(model)
    table = build_group_table(score_groups(Decoder(model), "fisher", text).by_layer, geometry)
    wrong = np.array([[1, 1000], [1, 100], [1, 10], [1, 1]])
    return SearchProblem(
        table.with_prior(wrong), geometry, geometry.decoder_params // 4, minimum_sizes or MinimumSizes(1, 8)
    )


def moves_of(model, start, text=TEXT, tensors_dir=None, **options):
    return ProfileProposals(Decoder(model), start, text, ReconstructionOptions(**options), tensors_dir=tensors_dir)


@torch.no_grad()
def divergence_of(dense, pruned, ids):
    log_p, log_q = (model(ids).logits.double().log_softmax(-1) for model in (dense, pruned))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.fixture
def model(make):
    return make("llama-8q4kv", num_hidden_layers=4)


@pytest.mark.parametrize("family", ["llama-8q4kv", "qwen2-14q2kv", "qwen3-8q2kv"])
def test_a_plan_is_judged_by_the_reconstructed_model_on_text_it_was_not_fitted_on(make, family):
    model = make(family, num_hidden_layers=4)
    start, factors = start_of(model), np.array([[0, -1], [0, 0], [0.5, 0], [0, 1]])
    with moves_of(model, start) as proposals:
        told = proposals.measure(factors, np.inf)
    plan = start.plan(factors)
    fitted = reconstruct(Decoder(model), Surgery(model, plan), Calibration(IDS[:12], "random bytes", 3))
    pruned = apply_plan(copy.deepcopy(model), plan, fitted.tensors)
    assert told == pytest.approx(divergence_of(model, pruned, IDS[12:]), rel=1e-3)


def test_the_divergence_falls_and_every_plan_holds_budget_floors_and_frozen_layers(model, monkeypatch):
    start = start_of(model, MinimumSizes(1, 8, freeze_first=1))
    plans, cut = [], SearchProblem.plan
    monkeypatch.setattr(SearchProblem, "plan", lambda *arguments: plans.append(cut(*arguments)) or plans[-1])
    state = search(moves_of(model, start, frozen=frozenset({0})), start, 10)
    assert state.lowest < state.divergences[0]
    lower = [now < min(state.divergences[: step + 1]) for step, now in enumerate(state.divergences[1:])]
    assert state.accepted == lower
    assert len({plan.layers for plan in plans}) > 4
    for plan in plans:
        assert 0 <= start.budget_params - plan.removed_params < start.geometry.mlp_channel_params
        assert plan.layers[0].shape == LayerShape(4, 96)
        assert all(len(keep.kv_groups) >= 1 and len(keep.mlp_channels) >= 8 for keep in plan.layers)


def test_a_move_that_fails_is_tried_the_other_way_and_smaller(model):
    start = start_of(model)
    state = search(moves_of(model, start), start, len(PROFILES))
    for name, accepted in zip(PROFILES, state.accepted, strict=True):
        assert state.step_sizes[name] == pytest.approx(0.7 * (1.3 if accepted else -0.6))


def test_a_search_that_was_stopped_goes_on_to_the_same_end(model, tmp_path):
    start, file = start_of(model), tmp_path / "state.json"
    whole = search(moves_of(model, start), start, 6)
    search(moves_of(model, start), start, 2, state_file=file)
    assert search(moves_of(model, start), start, 6, state_file=file) == whole


def test_bias_and_least_squares_are_different_searches(model, tmp_path, caplog):
    start, file = start_of(model), tmp_path / "state.json"
    by_squares = search(moves_of(model, start), start, 1, state_file=file)
    by_bias = search(moves_of(model, start, method="bias"), start, 1, state_file=file)
    assert "discarding" in caplog.text
    assert by_bias.divergences != by_squares.divergences


def test_refitted_tensors_and_activations_on_disk_are_gone_in_the_end(model, tmp_path):
    start = start_of(model)
    (tmp_path / "streams").mkdir()
    expected = search(moves_of(model, start), start, 2)
    spilled = moves_of(model, start, tensors_dir=tmp_path / "refitted", spill_dir=tmp_path / "streams", batch_size=3)
    np.testing.assert_allclose(search(spilled, start, 2).divergences, expected.divergences, rtol=1e-3)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", PROFILES)
def test_slopes_and_bends_leave_the_mean_of_a_kind_alone(model, name):
    direction = moves_of(model, start_of(model)).direction(name)
    kind, power = PROFILES[name]
    assert not direction[:, ATTENTION if kind == MLP else MLP].any()
    assert direction[:, kind].sum() == pytest.approx(0 if power else 4)
    if power == 1:
        assert (np.diff(direction[:, kind]) > 0).all()


def test_a_model_with_one_layer_can_be_searched(make):
    model = make("llama-8q4kv", num_hidden_layers=1)
    geometry = geometry_of(model)
    table = build_group_table(score_groups(Decoder(model), "fisher", TEXT).by_layer, geometry)
    start = SearchProblem(table, geometry, geometry.decoder_params // 4, MinimumSizes(1, 8))
    assert search(moves_of(model, start), start, 5).steps == 5


def test_too_little_text_is_refused(model):
    with pytest.raises(InputError, match="at least 3 calibration sequences to search with"):
        moves_of(model, start_of(model), Calibration(IDS[:2], "random bytes", 3))
