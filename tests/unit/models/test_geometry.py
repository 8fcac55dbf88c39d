"""Geometry: what is read from a model's modules, and the arithmetic of parameters and cache bytes."""

import copy

import pytest
import torch

from conftest import TINY
from hgsp.errors import InputError
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping

#: name -> (KV groups, query heads per KV head, head dim), spelled out and not computed from the config.
EXPECTED = {
    "llama-8q4kv": (4, 2, 8),
    "llama-9q3kv-tied": (3, 3, 8),
    "llama-mha-biased": (4, 1, 16),
    "llama-mqa": (1, 4, 16),
    "qwen2-14q2kv": (2, 7, 8),
    "mistral-8q4kv": (4, 2, 8),
    "qwen3-8q2kv": (2, 4, 16),
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_gqa_geometry_is_read_from_the_modules(make, name):
    geometry = geometry_of(make(name))
    kv_groups, queries_per_kv, head_dim = EXPECTED[name]
    assert (geometry.queries_per_kv, geometry.head_dim) == (queries_per_kv, head_dim)
    assert geometry.shapes == (LayerShape(kv_groups, 96),) * 3


def test_a_group_costs_exactly_what_leaves_with_it(tiny):
    """Biases counted: one KV group, then one channel, is cut and the parameters are counted on the models."""
    geometry, before = geometry_of(tiny), count(tiny)
    num_kv = geometry.shapes[1].num_kv_groups
    if num_kv > 1:
        without_group = apply_plan(copy.deepcopy(tiny), plan_dropping(tiny, kv={1: [num_kv - 1]}))
        assert before - count(without_group) == geometry.kv_group_params
    without_channel = apply_plan(copy.deepcopy(tiny), plan_dropping(tiny, mlp={1: [5]}))
    assert before - count(without_channel) == geometry.mlp_channel_params


def test_layers_and_the_rest_add_up_to_the_counted_parameters(tiny):
    geometry = geometry_of(tiny)
    outside = count(tiny.model.embed_tokens) + count(tiny.model.norm)
    outside += 0 if tiny.config.tie_word_embeddings else count(tiny.lm_head)
    assert geometry.total_params == count(tiny) == geometry.decoder_params + outside


def test_blocks_without_groups_cost_nothing(tiny):
    geometry = geometry_of(tiny)
    full, layer = geometry.shapes[0], tiny.model.layers[0]
    assert geometry.layer_params(LayerShape(0, 0)) == 0
    only_mlp = geometry.layer_params(LayerShape(0, full.mlp_width))
    assert only_mlp == count(layer.mlp) + count(layer.post_attention_layernorm)
    only_attention = geometry.layer_params(LayerShape(full.num_kv_groups, 0))
    assert only_attention == count(layer.self_attn) + count(layer.input_layernorm)


def test_a_pruned_model_has_the_same_group_costs_as_the_dense_one(tiny):
    dense, plan = geometry_of(tiny), mixed_plan(tiny)
    pruned = geometry_of(apply_plan(tiny, plan))
    assert pruned.shapes == tuple(keep.shape for keep in plan.layers)
    assert (pruned.kv_group_params, pruned.mlp_channel_params) == (dense.kv_group_params, dense.mlp_channel_params)
    assert pruned.total_params == dense.total_params - plan.removed_params


def test_kv_cache_bytes_are_those_of_a_real_cache(tiny, tokens):
    geometry = geometry_of(tiny)
    cache = tiny(tokens[:1], use_cache=True).past_key_values
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert geometry.kv_cache_bytes_per_token(geometry.shapes, 4) * tokens.shape[1] == stored


def test_geometry_of_a_skeleton_is_that_of_the_model(tiny):
    with torch.device("meta"):
        skeleton = type(tiny)(tiny.config)
    skeleton.tie_weights()
    assert geometry_of(skeleton) == geometry_of(tiny)


def test_query_heads_that_do_not_divide_are_refused(make):
    model = make("llama-8q4kv")
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(64, 7 * 8, bias=False)
    with pytest.raises(InputError, match="7 query heads over 4 KV heads"):
        geometry_of(model)


def test_a_model_without_a_full_layer_is_refused(make):
    model = make("llama-8q4kv")
    pruned = apply_plan(model, plan_dropping(model, kv={i: range(4) for i in range(3)}))
    with pytest.raises(InputError, match="start from the dense model"):
        geometry_of(pruned)
