"""Channels inside experts as groups: each expert loses its own weakest ones, all experts of a layer equally many."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from experts import EXPERT_WIDTH, WITH_CHANNELS, channel_scores, channels_plan, last_hidden, make_moe
from hgsp.errors import InputError
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.decoder import Decoder
from hgsp.models.families import FAMILIES
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model
from hgsp.models.offload import load_offloaded
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.select import kept_mask, select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.pruning.zero_padded import zero_padded_decoder

NAMES = pytest.mark.parametrize("name", WITH_CHANNELS)
RULES = ShapeRules(min_mlp_width=8)


def mixtures(model, plan):
    return [
        (keep, layer.mlp.experts)
        for keep, layer in zip(plan.layers, model.model.layers, strict=True)
        if hasattr(layer.mlp, "experts")
    ]


def silenced(model, plan):
    """The dense model with zeros for what leaves an expert, and logits of -inf for experts that leave."""
    for keep, experts in mixtures(model, plan):
        for expert, channels in zip(keep.experts if keep.expert_channels else (), keep.expert_channels, strict=True):
            experts.down_proj.data[expert][:, sorted(set(range(EXPERT_WIDTH)) - set(channels))] = 0
    return model


@NAMES
@torch.no_grad()
def test_a_sliced_model_computes_what_the_masked_one_does(name, tokens):
    model = make_moe(name)
    plan = channels_plan(model)
    widths = [len(keep.expert_slots) for keep, _ in mixtures(model, plan)]
    assert len(set(widths)) > 1
    assert any(len(keep.experts) < 8 for keep, _ in mixtures(model, plan))
    geometry, pruned = geometry_of(model), apply_plan(model, plan, inplace=False)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == geometry.total_params - plan.removed_params
    assert [experts.down_proj.shape[2] for _, experts in mixtures(pruned, plan)] == widths
    expected = last_hidden(Decoder(pruned), tokens)
    dense = Decoder(model)
    masked = Decoder(model, MaskedLayers(dense, geometry, plan))
    torch.testing.assert_close(last_hidden(masked, tokens), expected)
    torch.testing.assert_close(last_hidden(zero_padded_decoder(dense, Surgery(model, plan)), tokens), expected)
    whole = replace(plan, layers=tuple(replace(keep, expert_slots=(), expert_channels=()) for keep in plan.layers))
    assert not torch.allclose(last_hidden(Decoder(model, MaskedLayers(dense, geometry, whole)), tokens), expected)
    by_hand = MaskedLayers(Decoder(silenced(model, plan)), geometry, whole)
    torch.testing.assert_close(last_hidden(Decoder(model, by_hand), tokens), expected)


@NAMES
def test_save_load_and_offload_are_bit_equal(name, tokenizer, tokens, tmp_path):
    model = make_moe(name)
    pruned = apply_plan(model, channels_plan(model))
    save_pruned(pruned, tokenizer, tmp_path)
    expected = pruned(tokens).logits
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path), load_pruned(tmp_path / "pruned_model.bin")):
        assert torch.equal(again(tokens).logits, expected)
        assert geometry_of(again).shapes == geometry_of(pruned).shapes
    decoder, _ = load_offloaded(inspect_model(str(tmp_path)), "float32", "cpu")
    with decoder.layer(2) as module:
        own = pruned.model.layers[2].state_dict()
        assert all(torch.equal(value, own[key]) for key, value in module.state_dict().items())


def test_experts_of_another_width_per_layer_can_be_pruned_again_and_keep_it(tokens):
    model = make_moe("mixtral")
    pruned = apply_plan(model, channels_plan(model))
    geometry = geometry_of(pruned)
    assert len({shape.expert_width for shape in geometry.shapes}) > 1
    table = channel_scores(pruned).ranked(geometry)[0]
    plan = select_groups(table, geometry, 2 * geometry.expert_params, RULES)
    twice = apply_plan(pruned, plan, inplace=False)
    kept = geometry_of(twice).shapes
    assert [shape.expert_width for shape in kept] == [shape.expert_width for shape in geometry.shapes]
    assert sum(shape.num_experts for shape in kept) < sum(shape.num_experts for shape in geometry.shapes)
    assert geometry_of(twice).total_params == geometry.total_params - plan.removed_params


@NAMES
def test_each_expert_loses_its_weakest_channels_and_plans_survive_their_files(name, tmp_path):
    model = make_moe(name)
    plan, scores = channels_plan(model), channel_scores(model)
    narrow = [(index, keep) for index, keep in enumerate(plan.layers) if keep.expert_channels]
    assert narrow
    for index, keep in narrow:
        for expert, channels in zip(keep.experts, keep.expert_channels, strict=True):
            importance = scores.by_layer[index]["expert_channel.output"][expert]  # wanda ranks by it
            strongest = np.argsort(importance, kind="stable")[-len(channels) :]
            assert channels == tuple(sorted(strongest.tolist()))
    plan.write_json(tmp_path / "plan.json")
    assert PrunePlan.read_json(tmp_path / "plan.json") == plan
    assert "of 24 │" in str(plan)


@NAMES
@pytest.mark.parametrize("multiple", [None, 16])
def test_one_budget_covers_experts_and_their_channels(name, multiple):
    model = make_moe(name)
    geometry = geometry_of(model).with_expert_channels(True)
    rules, step = replace(RULES, mlp_multiple_of=multiple), multiple or 8
    table = channel_scores(model, "random").ranked(geometry)[0]
    most = geometry.decoder_params - rules.smallest_params(geometry)
    for budget in (0, most // 7, most // 3, most):
        plan = select_groups(table, geometry, budget, rules)
        assert 0 <= budget - plan.removed_params < 8 * 3 * 64 * step
        assert kept_mask(table, plan).sum() == sum(
            sum(keep.shape.block_sizes) + len(keep.expert_slots) for keep in plan.layers
        )
        assert all(len(keep.expert_slots) % 8 == 0 for keep in plan.layers)
    assert [len(keep.expert_slots) for keep in plan.layers if keep.experts] == [step] * len(mixtures(model, plan))
    assert all(len(keep.experts) in (0, 2) for keep in plan.layers)


def test_a_dropped_slot_costs_what_the_experts_that_are_left_hold():
    """With all but two experts gone, the budget of eight slots of eight experts pays for 32."""
    model = make_moe("mixtral")
    geometry = geometry_of(model).with_expert_channels(True)
    table = channel_scores(model, "random").ranked(geometry)[0]
    experts_first = np.where(table.kind == 2, 0.0, np.where(table.kind == 3, table.score, 1e9))
    table = replace(table, score=experts_first)
    experts = 3 * 6 * geometry.expert_params
    plan = select_groups(table, geometry, experts + 64 * geometry.expert_channel_params, RULES)
    assert [len(keep.experts) for keep in plan.layers] == [2, 2, 2]
    assert sum(24 - len(keep.expert_slots) for keep in plan.layers) == 32
    assert plan.removed_params == plan.budget_params


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
def test_uniform_plans_give_stock_models_of_another_width(name, tokenizer, tokens, tmp_path):
    model = make_moe(name)
    geometry, rules = geometry_of(model).with_expert_channels(True), replace(RULES, uniform=True)
    table = channel_scores(model, "magnitude").ranked(geometry)[0]
    plan = select_groups(table, geometry, budget_for_ratio(geometry, 0.5, rules), rules)
    (shape,) = {keep.shape for keep in plan.layers}
    assert 8 <= shape.expert_width < 24
    pruned = apply_plan(model, plan)
    assert pruned.config.model_type == FAMILIES[pruned.config.model_type].model_type
    save_pruned(pruned, tokenizer, tmp_path, with_bin=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["moe_intermediate_size" if name == "qwen3-moe" else "intermediate_size"] == shape.expert_width
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, pruned(tokens).logits)


def test_a_mixture_that_leaves_whole_takes_its_slots_with_it():
    model = make_moe("mixtral")
    geometry, rules = geometry_of(model).with_expert_channels(True), replace(RULES, allow_empty_blocks=True)
    table = channel_scores(model, "random").ranked(geometry)[0]
    plan = select_groups(table, geometry, geometry.decoder_params - rules.smallest_params(geometry), rules)
    assert {(len(keep.experts), len(keep.expert_slots)) for keep in plan.layers} == {(0, 0), (2, 8)}
    pruned = apply_plan(model, plan)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == geometry.total_params - plan.removed_params


def test_a_plan_that_does_not_name_the_channels_is_refused():
    model = make_moe("mixtral")
    plan = channels_plan(model)
    nameless = replace(plan, layers=tuple(replace(keep, expert_channels=()) for keep in plan.layers))
    with pytest.raises(InputError, match="a plan for 3 layers"):
        apply_plan(model, nameless)
    with pytest.raises(InputError, match="2 channels of 1 experts"):
        PrunePlan((LayerKeep((0,), (), (1,), (0, 1), ((3,),)),), 0, 0)
