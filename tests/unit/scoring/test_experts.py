"""Importances of experts against a slow reference, and selection over all kinds of groups under one budget."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from experts import TEXT, channel_scores, make_moe
from hgsp.errors import InputError
from hgsp.models.decoder import Decoder
from hgsp.models.experts import expert_parameters, has_experts, router_of
from hgsp.models.geometry import geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.pruning.select import kept_mask, select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.methods import METHODS
from hgsp.scoring.score import ScoringOptions, score_groups
from hgsp.scoring.score_model import score_model
from hgsp.scoring.scores import RankingOptions, Scores
from hgsp.scoring.slots import importance_of_slots

NAMES = ("qwen2-moe", "qwen3-moe-mixed", "olmoe", "mixtral", "gpt-oss")
#: Float32 sums in another order than in the reference.
ROUNDING = 1e-4


def mean_loss(model, ids):
    logits = model(ids[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:])


def expert_calls(model, ids):
    """Return the arguments of the experts of every layer that has some, for one sequence."""
    calls = {}
    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda _module, args, index=index: calls.__setitem__(index, args))
        for index, layer in enumerate(model.model.layers)
        if hasattr(layer.mlp, "experts")
    ]
    model(ids[None])
    for handle in handles:
        handle.remove()
    return calls


def outputs(experts, index, hidden):
    """Return the inner activations and the output of one expert for one token."""
    if experts.is_transposed:  # GPT-OSS
        both = hidden @ experts.gate_up_proj[index] + experts.gate_up_proj_bias[index]
        gate, up = both[::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
        inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        return inner, inner @ experts.down_proj[index] + experts.down_proj_bias[index]
    gate, up = linear(hidden, experts.gate_up_proj[index]).chunk(2)
    inner = torch.nn.functional.silu(gate) * up
    return inner, linear(inner, experts.down_proj[index])


def reference(name, model):
    """Compute importances of experts token by token, and by autograd over the whole graph."""
    found = {}
    if name in ("fisher", "fisher_token", "taylor", "taylor_2nd"):
        return by_gradient(name, copy.deepcopy(model).requires_grad_(True))
    tokens = TEXT.input_ids.numel()
    for index, layer in enumerate(model.model.layers):
        if not hasattr(layer.mlp, "experts"):
            continue
        experts, router = layer.mlp.experts, router_of(layer).weight
        biases = [value.detach() for key, value in expert_parameters(layer).items() if key.endswith("bias")]
        added = sum((bias.reshape(8, -1).abs().sum(1) for bias in biases), torch.zeros(8))
        norms, reached = torch.zeros(8), torch.zeros(8)
        inner, squares = torch.zeros(8, 24), torch.zeros(8, 24)
        inputs, all_inputs = torch.zeros(8, 64), torch.zeros(64)
        for ids in TEXT.input_ids:
            hidden, chosen, weights = expert_calls(model, ids)[index]
            for token in range(len(ids)):
                all_inputs += hidden[token] ** 2 / tokens
                for expert, weight in zip(chosen[token].tolist(), weights[token], strict=True):
                    middle, output = outputs(experts, expert, hidden[token])
                    norms[expert] += weight * output.norm()
                    reached[expert] += 1
                    inner[expert] += weight * middle / tokens
                    squares[expert] += (weight * middle) ** 2 / tokens
                    inputs[expert] += hidden[token] ** 2 / tokens
        down, gate_up = experts.down_proj, experts.gate_up_proj
        if experts.is_transposed:
            down, gate_up = down.transpose(1, 2), gate_up.transpose(1, 2)
        found[index] = {
            "reap": norms / reached.clamp(min=1),
            "flap": ((squares - inner**2) * down.square().sum(1)).sum(1),
            "magnitude": router.abs().sum(1) + gate_up.abs().sum((1, 2)) + down.abs().sum((1, 2)) + added,
            "wanda": added
            + (router.abs() * all_inputs.sqrt()).sum(1)
            + (gate_up.abs() * inputs.sqrt()[:, None]).sum((1, 2))
            + (down.abs() * squares.sqrt()[:, None]).sum((1, 2)),
        }[name]
    return found


def by_gradient(name, model):
    sparse = {index: layer.mlp for index, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")}
    masks = {index: torch.ones(12, 8, requires_grad=True) for index in sparse}  # one for each token and expert

    def masked(index):
        def hook(_module, args):
            hidden, chosen, weights = args
            return hidden, chosen, weights * masks[index].gather(1, chosen)

        return hook

    for index, block in sparse.items():
        block.experts.register_forward_pre_hook(masked(index))
    weights = {index: tuple(expert_parameters(model.model.layers[index]).values()) for index in sparse}
    squares, summed = {index: torch.zeros(8) for index in sparse}, {}
    for ids in TEXT.input_ids:
        loss = mean_loss(model, ids)
        gradients = torch.autograd.grad(loss, [*masks.values(), *(w for own in weights.values() for w in own)])
        for number, index in enumerate(sparse):
            mask_TE = gradients[number]
            squares[index] += (mask_TE.sum(0) ** 2 if name == "fisher" else (mask_TE**2).sum(0)) / len(TEXT.input_ids)
            first, count = len(sparse) + number * len(weights[index]), len(weights[index])
            own = gradients[first : first + count]
            summed.setdefault(index, []).append(own)
    if name.startswith("fisher"):
        return squares
    found = {}
    for index in sparse:
        parts = []
        for part, weight in enumerate(weights[index]):
            grads = torch.stack([own[part] for own in summed[index]])
            saliency = (weight * grads.mean(0)).abs()
            if name == "taylor_2nd":
                saliency = saliency + weight**2 * grads.square().mean(0) / 2
            parts.append(saliency.reshape(8, -1).sum(1))
        found[index] = sum(parts).detach()
    return found


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
@pytest.mark.parametrize("name", NAMES)
def test_experts_are_scored_as_by_the_slow_reference(name, method):
    model = make_moe(name)
    found = score_groups(Decoder(model), method, TEXT, options=ScoringOptions(batch_size=2))
    with torch.set_grad_enabled(method in ("fisher", "fisher_token", "taylor", "taylor_2nd")):
        expected = reference(method, model)
    assert len(expected) == sum(map(has_experts, model.model.layers))
    for index, importance in expected.items():
        assert found.by_layer[index].keys() >= {"attention", "expert"}
        assert "mlp" not in found.by_layer[index]
        np.testing.assert_allclose(found.by_layer[index]["expert"], importance, rtol=ROUNDING, atol=1e-9)


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_the_sinks_of_query_heads_count_in_their_group(method):
    model = make_moe("gpt-oss")
    found = [score_groups(Decoder(model), method, TEXT).by_layer[1]["attention"]]
    sinks = model.model.layers[1].self_attn.sinks
    whole = copy.deepcopy(model).requires_grad_(True)
    loss = sum(mean_loss(whole, ids) for ids in TEXT.input_ids) / len(TEXT.input_ids)
    (gradient,) = torch.autograd.grad(loss, whole.model.layers[1].self_attn.sinks)
    expected = sinks.abs() if method == "magnitude" else (sinks * gradient).abs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hgsp.scoring.folding.head_parameters", lambda _layer: {})
        found.append(score_groups(Decoder(model), method, TEXT).by_layer[1]["attention"])
    np.testing.assert_allclose(found[0] - found[1], expected.view(4, 2).sum(1).detach(), rtol=1e-3, atol=1e-6)


def test_an_expert_that_no_token_reaches_has_importance_zero():
    statistics = {"output_norm": torch.tensor([0.0, 2.0]), "reached": torch.tensor([0.0, 0.5])}
    assert METHODS["reap"].groups(statistics).tolist() == [0.0, 4.0]


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_experts_survive_their_file_and_know_their_model(name, tmp_path):
    loaded = LoadedModel(Decoder(make_moe(name)), None, "float32")
    scores = score_model(loaded, "fisher", TEXT, base_model=name, layer_importance="cosine")
    scores.write(tmp_path / "scores.npz")
    again = Scores.read(tmp_path / "scores.npz")
    again.check_belongs_to(loaded)
    geometry = geometry_of(loaded.model)
    options = RankingOptions(temperature=1.0)
    assert np.array_equal(again.ranked(geometry, options)[0].score, scores.ranked(geometry, options)[0].score)
    with pytest.raises(InputError, match="other weights"):
        again.check_belongs_to(LoadedModel(Decoder(make_moe(name, seed=1)), None, "float32"))


def table_of(model, method="random"):
    geometry = geometry_of(model)
    return build_group_table(score_groups(Decoder(model), method, TEXT).by_layer, geometry), geometry


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rules", [ShapeRules(min_mlp_width=4), ShapeRules(min_mlp_width=4, min_experts=5)])
def test_one_budget_covers_all_kinds_and_every_layer_keeps_enough_experts(name, rules):
    model = make_moe(name)
    table, geometry = table_of(model)
    assert table.cost.sum() == geometry.decoder_params - sum(
        geometry.extra_params(kind.name) for shape in geometry.shapes for kind in shape.kinds
    )
    most = geometry.decoder_params - rules.smallest_params(geometry)
    for budget in (most // 3, most):
        plan = select_groups(table, geometry, budget, rules)
        assert 0 <= budget - plan.removed_params < max(geometry.kv_group_params, geometry.expert_params)
        assert kept_mask(table, plan).sum() == sum(sum(keep.shape.block_sizes) for keep in plan.layers)
        for keep, shape in zip(plan.layers, geometry.shapes, strict=True):
            assert len(keep.experts) >= min(shape.num_experts, max(2, rules.min_experts))
    assert len(plan.layers[0].experts) == max(2, rules.min_experts)
    if name == "olmoe":  # its norms of queries and keys span all heads
        assert all(len(keep.kv_groups) == 4 for keep in plan.layers)


def test_uniform_plans_keep_the_same_experts_in_number_and_a_mixed_model_is_refused():
    table, geometry = table_of(make_moe("mixtral"))
    rules = ShapeRules(uniform=True)
    plan = select_groups(table, geometry, budget_for_ratio(geometry, 0.3, rules), rules)
    assert len({keep.shape for keep in plan.layers}) == 1
    assert 2 <= len(plan.layers[0].experts) < 8
    mixed_table, mixed = table_of(make_moe("qwen3-moe-mixed"))
    with pytest.raises(InputError, match="same sizes"):
        select_groups(mixed_table, mixed, 0, rules)


def test_a_layer_may_lose_its_experts_whole_where_that_is_allowed():
    table, geometry = table_of(make_moe("mixtral"))
    rules = ShapeRules(allow_empty_blocks=True)
    plan = select_groups(table, geometry, geometry.decoder_params - rules.smallest_params(geometry), rules)
    assert {len(keep.experts) for keep in plan.layers} == {0, 2}


def reference_of_channels(name, model):
    """Compute importances of channels inside experts token by token, by autograd where the method needs it."""
    squares, seen = {}, {}
    gradients = name not in ("reap", "flap", "magnitude", "wanda")
    with torch.set_grad_enabled(gradients):
        for ids in TEXT.input_ids:
            calls = expert_calls(model, ids)
            masks = {index: torch.ones(12, 8, 24, requires_grad=gradients) for index in calls}
            handles = [
                model.model.layers[index].mlp.experts.register_forward_hook(
                    lambda module, args, _output, mask=masks[index]: by_hand(module, args, mask, seen)
                )
                for index in calls
            ]
            loss = mean_loss(model, ids)
            for handle in handles:
                handle.remove()
            for index, mask in masks.items():
                if gradients:
                    (gradient,) = torch.autograd.grad(loss, mask, retain_graph=True)
                    part = gradient.sum(0).square() if name == "fisher" else gradient.square().sum(0)
                    squares[index] = squares.get(index, 0) + part / len(TEXT.input_ids)
    if gradients:
        return squares
    found = {}
    for index, layer in enumerate(model.model.layers):
        experts = getattr(layer.mlp, "experts", None)
        if experts is None:
            continue
        down, gate_up = experts.down_proj, experts.gate_up_proj.unflatten(1, (2, 24))
        inner_sq, inner, inner_abs, inputs_sq, reached = (value / TEXT.input_ids.numel() for value in seen[experts])
        found[index] = {
            "reap": inner_abs * down.norm(dim=1) / reached.clamp(min=1e-9)[:, None],
            "flap": (inner_sq - inner**2) * down.square().sum(1),
            "magnitude": gate_up.abs().sum((1, 3)) + down.abs().sum(1),
            "wanda": (gate_up.abs() * inputs_sq.sqrt()[:, None, None]).sum((1, 3))
            + down.abs().sum(1) * inner_sq.sqrt(),
        }[name]
    return found


def by_hand(experts, args, mask, seen):
    """Return the output of the experts with a mask on every channel at every token, and add up inner activations."""
    hidden, chosen, weights = args
    output = torch.zeros_like(hidden)
    zeros = [torch.zeros(8, 24) for _ in range(3)] + [torch.zeros(8, 64), torch.zeros(8)]
    sums = seen.setdefault(experts, zeros)
    for token in range(len(hidden)):
        for expert, weight in zip(chosen[token].tolist(), weights[token], strict=True):
            inner = outputs(experts, expert, hidden[token])[0] * weight
            output[token] += linear(inner * mask[token, expert], experts.down_proj[expert])
            with torch.no_grad():
                amounts = (inner.square(), inner, inner.abs(), hidden[token].square(), 1.0)
                for total, amount in zip(sums, amounts, strict=True):
                    total[expert] += amount
    return output


@pytest.mark.parametrize("method", ["fisher", "fisher_token", "reap", "flap", "magnitude", "wanda"])
@pytest.mark.parametrize("name", ["qwen3-moe-mixed", "mixtral"])
def test_channels_of_experts_are_scored_as_by_the_slow_reference(name, method):
    model = make_moe(name)
    options = ScoringOptions(batch_size=2)
    found = score_groups(Decoder(model), method, TEXT, options=options, expert_channels=True)
    whole = score_groups(Decoder(model), method, TEXT, options=options)
    for index, importance in reference_of_channels(method, model).items():
        np.testing.assert_allclose(found.by_layer[index]["expert_channel"], importance.detach(), ROUNDING, 1e-9)
        assert np.array_equal(found.by_layer[index]["expert"], whole.by_layer[index]["expert"])
        assert "expert_channel" not in whole.by_layer[index]


@pytest.mark.parametrize("method", ["taylor", "taylor_2nd", "magnitude"])
def test_channels_and_rows_of_the_router_are_all_of_an_expert(method):
    model = make_moe("mixtral")
    found = score_groups(Decoder(model), method, TEXT, expert_channels=True)
    router = model.model.layers[0].mlp.gate.weight
    by_channel = found.by_layer[0]["expert_channel"].sum(1)
    if method == "magnitude":
        by_channel = by_channel + router.detach().abs().sum(1).numpy()
    else:
        assert (by_channel > 0).any()
    assert (by_channel <= found.by_layer[0]["expert"] * (1 + ROUNDING)).all()
    np.testing.assert_allclose(by_channel, found.by_layer[0]["expert"], rtol=ROUNDING if method == "magnitude" else 0.5)


def test_slots_are_the_mean_over_experts_that_tokens_reach():
    geometry = geometry_of(make_moe("mixtral")).with_expert_channels(True)
    channels = np.zeros((8, 24))
    channels[2], channels[5] = np.arange(24)[::-1], np.arange(24) * 3
    layer = {"attention": np.ones(4), "expert": np.ones(8), "expert_channel": channels}
    (found, *_), orders = importance_of_slots([layer] * 3, geometry, "none")
    assert found["expert_channel"].tolist() == [8 * 2 * channel for channel in range(24)]
    assert orders[0][2].tolist() == list(range(24))[::-1]
    assert orders[0][5].tolist() == list(range(24))
    silent = {**layer, "expert_channel": np.zeros((8, 24))}
    assert not importance_of_slots([silent] * 3, geometry, "none")[0][0]["expert_channel"].any()


def test_scores_of_channels_survive_their_file_and_whole_experts_have_none(tmp_path):
    model = make_moe("qwen3-moe-mixed")
    scores, geometry = channel_scores(model), geometry_of(model)
    scores.write(tmp_path / "scores.npz")
    again = Scores.read(tmp_path / "scores.npz")
    both = geometry.with_expert_channels(True)
    again.check_sizes(both)
    assert again.ranked(both)[0].channel_order.keys() == {0, 2}
    assert np.array_equal(again.ranked(both)[0].score, scores.ranked(both)[0].score)
    assert set(again.ranked(geometry)[0].kind.tolist()) == {0, 1, 2}
    loaded = LoadedModel(Decoder(model), None, "float32")
    whole = score_model(loaded, "magnitude", base_model="tiny")
    whole.check_sizes(geometry)
    with pytest.raises(InputError, match="score again with --expert_channels"):
        whole.check_sizes(both)
