"""Surgery: pruning a group equals masking it, and the result is a smaller model in every respect but its widths."""

import copy
from dataclasses import is_dataclass, replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralForCausalLM

from conftest import TINY
from hgsp.errors import InputError
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping, plan_of, silenced

#: Pruned and masked models add the same float32 numbers in another order; 1e-5 is enough for logits of size one.
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}

UNEVEN = [name for name in TINY if name != "llama-mqa"]  # one KV group cannot differ between layers


def cut(model, plan):
    return apply_plan(copy.deepcopy(model), plan)


def greedy(model, tokens, **kwargs):
    return model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=8, pad_token_id=257, **kwargs
    )


def assert_cut_equals_silenced(model, plan, tokens):
    expected, got = silenced(model, plan)(tokens).logits, cut(model, plan)(tokens).logits
    torch.testing.assert_close(got, expected, **ROUNDING)
    assert not torch.allclose(expected, model(tokens).logits, **ROUNDING), "the plan changes nothing: a blind test"


def test_keeping_everything_is_the_identity_bit_for_bit(tiny, tokens):
    """A pruning ratio of 0 gives the dense model."""
    expected = tiny(tokens).logits
    pruned = apply_plan(tiny, plan_dropping(tiny))
    assert torch.equal(pruned(tokens).logits, expected)
    assert type(pruned) is type(tiny)


@pytest.mark.parametrize("layer", [0, 2])
def test_cutting_each_kv_group_equals_silencing_it(tiny, tokens, layer):
    """KV head g, its query heads, their o_proj columns and bias entries leave together, for every g."""
    for group in range(geometry_of(tiny).shapes[layer].num_kv_groups):
        assert_cut_equals_silenced(tiny, plan_dropping(tiny, kv={layer: [group]}), tokens)


@pytest.mark.parametrize("channels", [[0], [95], [3, 4, 40], range(1, 96)], ids=str)
def test_cutting_channels_equals_silencing_them(tiny, tokens, channels):
    assert_cut_equals_silenced(tiny, plan_dropping(tiny, mlp={1: channels}), tokens)


def test_cutting_both_kinds_in_all_layers_equals_silencing(tiny, tokens):
    assert_cut_equals_silenced(tiny, mixed_plan(tiny), tokens)


@pytest.mark.parametrize("layers", [[0], [1], [0, 2]], ids=str)
def test_removing_whole_layers_equals_silencing_them(tiny, tokens, layers):
    plan = plan_dropping(tiny, layers=layers)
    assert_cut_equals_silenced(tiny, plan, tokens)
    pruned = cut(tiny, plan)
    assert len(pruned.model.layers) == pruned.config.num_hidden_layers == 3 - len(layers)
    assert len(getattr(pruned.config, "layer_types", None) or pruned.model.layers) == len(pruned.model.layers)


def test_removed_layers_leave_a_model_whose_cache_works(tiny, tokens):
    """Layers are renumbered, so cached generation equals uncached generation."""
    dropped = {1: range(10)} if geometry_of(tiny).shapes[0].num_kv_groups > 1 else {}
    pruned = cut(tiny, plan_dropping(tiny, layers=[0], mlp=dropped))
    assert torch.equal(greedy(pruned, tokens), greedy(pruned, tokens, use_cache=False))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_left_padded_batch_equals_single_rows(tiny, implementation):
    """Padding with a mask changes nothing; a stale head count would crash here and nowhere else."""
    pruned = cut(tiny, mixed_plan(tiny))
    pruned.set_attn_implementation(implementation)
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 256, (length,), generator=generator) for length in (5, 9, 12)]
    batch, mask = torch.full((3, 12), 257), torch.zeros(3, 12, dtype=torch.int64)
    for index, row in enumerate(rows):
        batch[index, 12 - len(row) :], mask[index, 12 - len(row) :] = row, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = pruned(batch, attention_mask=mask, position_ids=positions).logits
    for index, row in enumerate(rows):
        torch.testing.assert_close(logits[index, 12 - len(row) :], pruned(row[None]).logits[0], **ROUNDING)


def test_eager_equals_sdpa(tiny, tokens):
    pruned = cut(tiny, mixed_plan(tiny))
    logits = {}
    for implementation in ("eager", "sdpa"):
        pruned.set_attn_implementation(implementation)
        logits[implementation] = pruned(tokens).logits
        assert all(layer.self_attn.config._attn_implementation == implementation for layer in pruned.model.layers)
    torch.testing.assert_close(logits["eager"], logits["sdpa"], **ROUNDING)


def test_attention_implementation_of_the_dense_model_is_kept(make):
    model = make("llama-8q4kv")
    model.set_attn_implementation("eager")
    assert apply_plan(model, mixed_plan(model)).config._attn_implementation == "eager"


def test_cached_generation_equals_uncached(tiny, tokens):
    pruned = cut(tiny, mixed_plan(tiny))
    cached = greedy(pruned, tokens)
    assert cached.shape[1] > tokens.shape[1]
    assert torch.equal(cached, greedy(pruned, tokens, use_cache=False))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("attention_free", [0, 1])
def test_layers_without_attention_or_mlp_work(make, tokens, name, attention_free):
    """One block of a layer may be missing: masking still matches, and all kinds of cache generate the same."""
    model = make(name)
    num_kv = geometry_of(model).shapes[0].num_kv_groups
    plan = plan_dropping(model, kv={attention_free: range(num_kv)}, mlp={2: range(96), 1: [7]})
    assert_cut_equals_silenced(model, plan, tokens)
    pruned = cut(model, plan)
    assert pruned.model.layers[attention_free].self_attn is None
    assert pruned.model.layers[2].mlp is None
    uncached = greedy(pruned, tokens, use_cache=False)
    assert torch.equal(greedy(pruned, tokens), uncached)
    assert torch.equal(greedy(pruned, tokens, cache_implementation="static"), uncached)


@pytest.mark.skipif(not is_dataclass(LlamaConfig), reason="transformers 5.0 itself overruns such a cache")
def test_a_static_cache_takes_a_prompt_in_pieces(make, tokens):
    """generate() allocates such a cache early and counts layers without attention too; our class must prevent it."""
    model = make("llama-8q4kv")
    pruned = cut(model, plan_dropping(model, kv={0: range(4), 1: [0]}))
    in_pieces = greedy(pruned, tokens, cache_implementation="static", prefill_chunk_size=10)
    assert torch.equal(in_pieces, greedy(pruned, tokens, use_cache=False))


def test_kept_indices_alone_reproduce_every_weight(tiny):
    """Slicing the dense weights independently by the plan's indices gives the pruned weights bit for bit."""
    plan, geometry, dense = mixed_plan(tiny), geometry_of(tiny), copy.deepcopy(tiny)
    D, R = geometry.head_dim, geometry.queries_per_kv
    pruned = apply_plan(tiny, plan)
    for old, new, keep in zip(dense.model.layers, pruned.model.layers, plan.layers, strict=True):
        kv_rows = [k * D + i for k in keep.kv_groups for i in range(D)]
        query_rows = [k * R * D + i for k in keep.kv_groups for i in range(R * D)]
        mlp_rows = list(keep.mlp_channels)
        for block, name, rows in (
            ("self_attn", "q_proj", query_rows),
            ("self_attn", "k_proj", kv_rows),
            ("self_attn", "v_proj", kv_rows),
            ("mlp", "gate_proj", mlp_rows),
            ("mlp", "up_proj", mlp_rows),
        ):
            before, after = (getattr(getattr(layer, block), name) for layer in (old, new))
            assert torch.equal(after.weight, before.weight[rows]), name
            assert (after.bias is None) == (before.bias is None)
            assert after.bias is None or torch.equal(after.bias, before.bias[rows]), name
        assert torch.equal(new.self_attn.o_proj.weight, old.self_attn.o_proj.weight[:, query_rows])
        assert torch.equal(new.mlp.down_proj.weight, old.mlp.down_proj.weight[:, mlp_rows])


def test_shapes_shrink_and_nothing_else_is_left_behind(tiny):
    """Pruned means smaller: no mask tensors, no extra names, no zeroed rows."""
    dense = {name: tensor.shape for name, tensor in tiny.state_dict().items()}
    pruned = apply_plan(tiny, mixed_plan(tiny)).state_dict()
    assert set(pruned) == set(dense)
    for layer in range(3):
        for name in ("gate_proj", "up_proj", "down_proj"):
            key = f"model.layers.{layer}.mlp.{name}.weight"
            assert pruned[key].numel() < dense[key].numel()
            assert pruned[key].any(dim=0).all()
            assert pruned[key].any(dim=1).all()


def test_hidden_size_and_head_dim_never_change(tiny):
    """Only KV groups, MLP channels and layers are pruned; rotary embeddings keep their width."""
    hidden, head_dim = tiny.config.hidden_size, geometry_of(tiny).head_dim
    pruned = apply_plan(tiny, mixed_plan(tiny))
    assert pruned.config.hidden_size == hidden
    assert pruned.config.head_dim == head_dim
    assert pruned.get_input_embeddings().weight.shape == (258, hidden)
    assert {layer.self_attn.o_proj.out_features for layer in pruned.model.layers} == {hidden}
    assert {layer.self_attn.head_dim for layer in pruned.model.layers} == {head_dim}
    assert pruned.model.rotary_emb.inv_freq.numel() == head_dim // 2


def test_gqa_ratio_of_every_layer_is_intact(tiny):
    """The ratio that attention computes with matches the shapes of its tensors."""
    ratio = geometry_of(tiny).queries_per_kv
    for layer in apply_plan(tiny, mixed_plan(tiny)).model.layers:
        attention = layer.self_attn
        assert attention.q_proj.out_features == ratio * attention.k_proj.out_features
        assert attention.num_key_value_groups == ratio


def test_in_and_out_features_tell_the_truth(tiny):
    """LoRA reads in_features and out_features, which a swapped weight would leave stale."""
    for name, module in apply_plan(tiny, mixed_plan(tiny)).named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features), name


def test_tensors_are_contiguous_and_own_no_more_than_they_show(tiny):
    """A view of the dense tensor would keep, and save, the dense storage."""
    for name, tensor in apply_plan(tiny, mixed_plan(tiny)).state_dict().items():
        assert tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_tied_embeddings_stay_tied_and_count_once(make):
    model = make("llama-9q3kv-tied")
    plan = mixed_plan(model)
    total = geometry_of(model).total_params
    pruned = apply_plan(model, plan)
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in pruned.parameters()) == total - plan.removed_params


def test_untied_head_stays_its_own(make):
    model = make("llama-8q4kv")
    pruned = apply_plan(model, mixed_plan(model))
    assert not torch.equal(pruned.lm_head.weight, pruned.model.embed_tokens.weight)


def test_parameters_of_the_result_are_those_the_plan_promises(tiny):
    """Parameters are counted on the model, not derived from channels."""
    before, plan = geometry_of(tiny).total_params, mixed_plan(tiny)
    after = sum(parameter.numel() for parameter in apply_plan(tiny, plan).parameters())
    assert before - after == plan.removed_params > 0


def test_config_keeps_what_is_not_about_sizes(make):
    """Dtype, token ids, use_cache, RoPE and generation settings are those of the dense model."""
    model = make("llama-8q4kv", pad_token_id=9, eos_token_id=[257, 3], use_cache=False, rope_theta=5e4).bfloat16()
    model.config.dtype = torch.bfloat16
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    pruned = cut(model, mixed_plan(model))
    for key in ("dtype", "pad_token_id", "eos_token_id", "bos_token_id", "use_cache", "rope_parameters", "vocab_size"):
        assert getattr(pruned.config, key) == getattr(model.config, key), key
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.bfloat16}
    assert pruned.generation_config.to_dict() == model.generation_config.to_dict()


def test_layers_of_one_shape_give_the_stock_class(tiny):
    geometry = geometry_of(tiny)
    keep = LayerKeep(tuple(range(geometry.shapes[0].num_kv_groups)), tuple(range(0, 96, 2)))
    pruned = cut(tiny, plan_of(geometry, [keep] * 3))
    assert type(pruned) is type(tiny)
    assert pruned.config.intermediate_size == 48


def test_llama_with_a_head_count_it_refuses_becomes_the_mistral_that_computes_the_same(make, tokens):
    """LlamaConfig refuses 6 query heads at hidden size 64; Mistral takes them, with bit-equal logits."""
    model = make("llama-8q4kv")
    pruned = cut(model, plan_dropping(model, kv={i: [1] for i in range(3)}))
    assert type(pruned) is MistralForCausalLM
    assert pruned.config.sliding_window is None  # by default it would be 4096
    ours = cut(model, plan_dropping(model, kv={i: [1] for i in range(3)}, mlp={0: [5]}))
    assert ours.config.model_type == "hgsp_llama"
    ours.model.layers[0].mlp = pruned.model.layers[0].mlp  # now the same weights through our Llama class
    assert torch.equal(pruned(tokens).logits, ours(tokens).logits)


def test_llama_with_biases_and_such_a_head_count_takes_our_class(make, tokens):
    """Mistral has no biases, so no stock class fits: 3 of 4 heads do not divide hidden size 64."""
    model = make("llama-mha-biased")
    plan = plan_dropping(model, kv={i: [0] for i in range(3)})
    pruned = cut(model, plan)
    assert pruned.config.model_type == "hgsp_llama"
    assert not isinstance(pruned, MistralForCausalLM)
    assert isinstance(pruned, LlamaForCausalLM)
    assert_cut_equals_silenced(model, plan, tokens)


@pytest.mark.parametrize("name", UNEVEN)
def test_a_pruned_model_can_be_pruned_again(make, tokens, name):
    """Pruning twice equals pruning once with the composed indices, bit for bit."""
    model = make(name)
    first = plan_dropping(model, kv={0: [0]}, mlp={0: [0, 1], 1: [9]})
    once = cut(model, first)
    twice = cut(once, plan_dropping(once, mlp={0: [0], 2: [3]}))
    direct = cut(model, plan_dropping(model, kv={0: [0]}, mlp={0: [0, 1, 2], 1: [9], 2: [3]}))
    assert torch.equal(twice(tokens).logits, direct(tokens).logits)


@pytest.mark.parametrize("again", [False, True], ids=["plain plan", "plan with biases"])
@pytest.mark.parametrize("drop", [{}, {"mlp": {0: [3]}}], ids=["nothing dropped", "a channel dropped"])
def test_biases_of_an_earlier_reconstruction_stay(make, tokens, drop, again):
    """Equal layers are not stock while their output projections have biases; existing biases are not added again."""
    model = make("llama-8q4kv")
    biased = cut(model, replace(plan_dropping(model), writer_bias=True))
    with torch.no_grad():
        for name, parameter in biased.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    plan = replace(plan_dropping(biased, **drop), writer_bias=again)
    pruned = cut(biased, plan)
    torch.testing.assert_close(pruned(tokens).logits, silenced(biased, plan)(tokens).logits, **ROUNDING)
    assert sum(p.numel() for p in pruned.parameters()) == geometry_of(biased).total_params - plan.removed_params


def test_the_dense_model_is_consumed_layer_by_layer(make):
    """Peak memory is one model plus one layer: no dense decoder tensor stays in memory."""
    model = make("llama-8q4kv")
    apply_plan(model, mixed_plan(model))
    assert all(parameter.is_meta for parameter in model.model.layers.parameters())


def everything(index, count):
    return LayerKeep(tuple(range(count)), tuple(range(96)))


@pytest.mark.parametrize(
    "layers",
    [
        [everything(0, 4)] * 2,
        [everything(0, 4)] * 2 + [everything(2, 5)],
        [everything(0, 4)] * 2 + [LayerKeep((0,), (96,))],
        [LayerKeep((), ())] * 3,
    ],
    ids=["fewer layers", "a fifth KV group", "a channel past the last", "nothing kept"],
)
def test_a_plan_of_another_model_is_refused_before_anything_is_touched(make, tokens, layers):
    model = make("llama-8q4kv")
    expected = model(tokens).logits
    with pytest.raises(InputError, match="apply the plan to the model it was made from"):
        apply_plan(model, PrunePlan(tuple(layers), 0, 0))
    assert torch.equal(model(tokens).logits, expected)
