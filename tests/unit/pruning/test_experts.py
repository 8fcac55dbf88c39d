"""Experts as groups: sliced models compute what masked ones do, and are counted, saved and loaded as planned."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from experts import TINY_MOE, last_hidden, make_moe, plan_keeping, uneven_plan
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.decoder import Decoder
from hgsp.models.experts import router_of
from hgsp.models.families import FAMILIES, family_of
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.models.loading import inspect_model
from hgsp.models.offload import load_offloaded
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.pruning.zero_padded import zero_padded_decoder

pytestmark = pytest.mark.parametrize("name", TINY_MOE)


def test_geometry_counts_what_the_model_has(name):
    model = make_moe(name)
    geometry = geometry_of(model)
    assert geometry.decoder_params == sum(parameter.numel() for parameter in model.model.layers.parameters())
    assert geometry.shapes[0] == LayerShape(4, 0, 8, 24)
    biases = 2 * 24 + 64 + 1 if name == "gpt-oss" else 0
    assert geometry.expert_params == 3 * 64 * 24 + 64 + biases  # three matrices and a row of the router
    assert geometry.experts_per_token == 2


@torch.no_grad()
def test_a_sliced_model_computes_what_the_masked_one_does(name, tokens):
    """The router's logits of removed experts are -inf in the masked model; both ways of masking agree."""
    model = make_moe(name)
    plan = uneven_plan(model)
    geometry = geometry_of(model)
    pruned = apply_plan(model, plan, inplace=False)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == geometry.total_params - plan.removed_params
    expected = last_hidden(Decoder(pruned), tokens)
    dense = Decoder(model)
    masked = Decoder(model, MaskedLayers(dense, geometry, plan))
    torch.testing.assert_close(last_hidden(masked, tokens), expected)
    padded = zero_padded_decoder(dense, Surgery(model, plan))
    torch.testing.assert_close(last_hidden(padded, tokens), expected)
    assert not torch.allclose(last_hidden(dense, tokens), expected)


@torch.no_grad()
def test_the_router_of_a_pruned_layer_is_the_stock_router_with_logits_of_minus_infinity(name, tokens):
    model = make_moe(name)
    pruned = apply_plan(model, plan_keeping(model, {0: (1, 4, 6)}, {}), inplace=False)
    hidden = model.model.embed_tokens(tokens).flatten(0, 1)
    router = router_of(model.model.layers[0])
    logits, weights, chosen = router_of(pruned.model.layers[0])(hidden)
    dense_logits = router(hidden)[0]
    torch.testing.assert_close(logits, dense_logits[:, [1, 4, 6]])
    masked = torch.full_like(dense_logits, -torch.inf)
    masked[:, [1, 4, 6]] = dense_logits[:, [1, 4, 6]]
    probabilities, expected = masked.softmax(-1).topk(2)
    if getattr(model.config, "norm_topk_prob", True):
        probabilities /= probabilities.sum(-1, keepdim=True)
    assert torch.equal(torch.tensor([1, 4, 6])[chosen], expected)
    torch.testing.assert_close(weights, probabilities)


def test_save_and_load_are_bit_equal_in_every_form(name, tokenizer, tokens, tmp_path):
    model = make_moe(name)
    pruned = apply_plan(model, uneven_plan(model))
    assert pruned.config.model_type == family_of(pruned.config).pruned_model_type
    save_pruned(pruned, tokenizer, tmp_path)
    expected = pruned(tokens).logits
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path), load_pruned(tmp_path / "pruned_model.bin")):
        assert torch.equal(again(tokens).logits, expected)
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in pruned.state_dict().items())
    again.save_pretrained(tmp_path / "again")  # by transformers alone
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again")(tokens).logits, expected)


def test_files_name_experts_as_transformers_does(name, tokenizer, tmp_path):
    """Engines read the names of the stock checkpoint: three matrices per expert."""
    model = make_moe(name)
    save_pruned(model, tokenizer, tmp_path, with_bin=False)
    model.save_pretrained(tmp_path / "stock")
    ours, stock = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "stock" / "model.safetensors")
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[key], stock[key]) for key in stock)


@torch.no_grad()
def test_offloaded_layers_are_those_of_the_model_and_one_is_in_memory(name, tokenizer, tokens, tmp_path):
    model = make_moe(name)
    pruned = apply_plan(model, uneven_plan(model))
    save_pruned(pruned, tokenizer, tmp_path, with_bin=False)
    decoder, files = load_offloaded(inspect_model(str(tmp_path)), "float32", "cpu")
    router = "router" if name == "gpt-oss" else "gate"
    assert files.file_of(f"model.layers.0.mlp.{router}.weight").name == "model.safetensors"
    for index in range(3):
        with decoder.layer(index) as module:
            expected = pruned.model.layers[index].state_dict()
            assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())
            others = [layer for other, layer in enumerate(decoder.model.model.layers) if other != index]
            assert all(parameter.is_meta for layer in others for parameter in layer.parameters())
    torch.testing.assert_close(decoder.model(tokens).logits, pruned(tokens).logits)


def test_equal_layers_give_a_stock_model(name, tokenizer, tokens, tmp_path):
    model = make_moe(name)
    kept = tuple(range(1, 8, 2))
    pruned = apply_plan(model, plan_keeping(model, {0: kept, 1: kept, 2: kept}, {}))
    assert pruned.config.model_type == FAMILIES[pruned.config.model_type].model_type
    save_pruned(pruned, tokenizer, tmp_path, with_bin=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in config
    assert config.get("num_experts", config.get("num_local_experts")) == 4
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, pruned(tokens).logits)


@torch.no_grad()
def test_removed_layers_and_blocks_leave_the_others_their_experts(name, tokenizer, tokens, tmp_path):
    model = make_moe(name)
    layers = list(uneven_plan(model).layers)
    layers[1] = LayerKeep((), ())
    layers[2] = LayerKeep(layers[2].kv_groups, ())
    geometry = geometry_of(model)
    removed = geometry.decoder_params - sum(geometry.layer_params(keep.shape) for keep in layers)
    plan = PrunePlan(tuple(layers), removed, removed)
    pruned = apply_plan(model, plan, inplace=False)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == geometry.total_params - removed
    expected = last_hidden(Decoder(pruned), tokens)
    masked = Decoder(model, MaskedLayers(Decoder(model), geometry, plan))
    torch.testing.assert_close(last_hidden(masked, tokens), expected)
    padded = zero_padded_decoder(Decoder(model), Surgery(model, plan))
    torch.testing.assert_close(last_hidden(padded, tokens), expected)
    save_pruned(pruned, tokenizer, tmp_path, with_bin=False)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [layer.mlp is None for layer in again.model.layers] == [False, True]
    assert torch.equal(again(tokens).logits, pruned(tokens).logits)


@torch.no_grad()
def test_a_cached_forward_equals_an_uncached_one(name, tokens):
    model = make_moe(name)
    pruned = apply_plan(model, uneven_plan(model))
    whole = pruned(tokens).logits
    first = pruned(tokens[:, :10], use_cache=True)
    second = pruned(tokens[:, 10:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), tokens], dim=1)
    mask = torch.ones_like(padded).index_fill_(1, torch.arange(3), 0)
    torch.testing.assert_close(pruned(padded, attention_mask=mask).logits[:, 3:], whole)


def test_a_plan_survives_its_file(name, tmp_path):
    plan = uneven_plan(make_moe(name))
    plan.write_json(tmp_path / "plan.json")
    assert PrunePlan.read_json(tmp_path / "plan.json") == plan
    assert "experts" in str(plan)
