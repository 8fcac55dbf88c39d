"""Order of rows, sizes and architectures of GGUF files.

D head dim
"""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import TINY, make_tiny
from hgsp.errors import InputError
from hgsp.exports.gguf_architecture import DECI, LLAMA, OPENELM, QWEN3, architecture_of
from hgsp.exports.gguf_layout import ZERO_MLP_WIDTH, deinterleave, interleave, layers_of, read_tensor, tensors_of
from hgsp.exports.gguf_rope import check_rope, frequency_factors
from hgsp.exports.source import read_source
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping


@pytest.fixture
def source(saved):
    """``source(model)`` saves a model and reads its folder for export."""
    return lambda model: read_source(saved(model))


@given(heads=st.integers(1, 6), half=st.integers(1, 8), columns=st.none() | st.integers(1, 3))
def test_deinterleave_undoes_interleave(heads, half, columns):
    rows = torch.arange(heads * 2 * half * (columns or 1))
    rows = rows if columns is None else rows.view(-1, columns)
    reordered = interleave(rows, heads)
    assert torch.equal(deinterleave(reordered, heads), rows)
    assert sorted(reordered.flatten().tolist()) == rows.flatten().tolist()


def test_rotating_interleaved_pairs_equals_rotating_halves():
    """Queries of three heads of 8 at one position, rotated in both ways."""
    generator = torch.Generator().manual_seed(0)
    queries, angles = torch.randn(24, generator=generator), torch.rand(4, generator=generator)
    first, second = queries.view(3, 2, 4).unbind(1)
    cos, sin = angles.cos(), angles.sin()
    halves = torch.stack((first * cos - second * sin, second * cos + first * sin), 1).reshape(-1)
    even, odd = interleave(queries, 3).view(3, 4, 2).unbind(-1)
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).reshape(-1)
    assert torch.equal(interleave(halves, 3), pairs)


@pytest.mark.parametrize("name", sorted(TINY))
def test_architecture_follows_family_and_shapes(source, name):
    model = make_tiny(name, tie_word_embeddings=True)
    pruned = apply_plan(make_tiny(name, tie_word_embeddings=True), mixed_plan(model))
    uniform, per_layer = (QWEN3, OPENELM) if name.startswith("qwen3") else (LLAMA, DECI)
    assert architecture_of(source(model)) == uniform
    assert architecture_of(source(pruned)) == per_layer


def test_every_parameter_is_in_the_file_exactly_once(source, tiny):
    found = source(tiny)
    tensors = tensors_of(found, architecture_of(found))
    names = [name for tensor in tensors for name in tensor.sources]
    assert sorted(names) == sorted(found.tensors.shapes)
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    for tensor in tensors:
        assert tuple(read_tensor(found, tensor).shape) == tensor.shape


def test_blocks_that_the_format_cannot_leave_out_are_zeros(source):
    """Attention of layer 0, MLP of layer 1 and attention of layer 2 are gone; only the last is left out."""
    model = make_tiny("llama-mha-biased")
    plan = plan_dropping(model, kv={0: range(4), 2: range(4)}, mlp={1: range(96)})
    found = source(apply_plan(model, plan))
    layers = layers_of(found, DECI)
    assert [(layer.num_heads, layer.num_kv_heads, layer.mlp_width) for layer in layers] == [
        (1, 1, 96),
        (4, 4, ZERO_MLP_WIDTH),
        (0, 0, 96),
    ]
    tensors = {tensor.name: tensor for tensor in tensors_of(found, DECI)}
    assert "blk.2.attn_output.weight" not in tensors
    assert "blk.0.attn_output.bias" not in tensors
    for name in ("blk.0.attn_output.weight", "blk.1.ffn_down.weight"):
        assert not read_tensor(found, tensors[name]).any()
    assert (read_tensor(found, tensors["blk.0.attn_norm.weight"]) == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": False}, "a head of its own; prune with --uniform"),
        ({"attention_bias": True}, "biases"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}},
            "llama3",
        ),
    ],
)
def test_qwen3_that_no_architecture_holds_is_refused(source, changes, message):
    if "rope_parameters" in changes:
        changes["rope_parameters"] |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    model = make_tiny("qwen3-8q2kv", **{"tie_word_embeddings": True, **changes})
    with pytest.raises(InputError, match=message):
        architecture_of(source(apply_plan(model, mixed_plan(model))))


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_frequency_factors_are_those_of_the_model(source):
    """Short wavelengths keep their frequency, the longest are divided by the factor."""
    model = make_tiny("llama-mqa", rope_parameters=LLAMA3)
    factors = frequency_factors(source(model))
    default = 10_000.0 ** -(torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(default / factors, model.model.rotary_emb.inv_freq)
    assert factors[0] == 1
    assert factors[-1] == 8


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}, "mscale unset"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 8}, "beta_fast 32"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": False}, "truncate"),
    ],
)
def test_rope_without_keys_in_the_format_is_refused(saved, rope, message):
    folder = saved(make_tiny("llama-mqa"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 10_000.0, **rope}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        check_rope(read_source(folder))


def change(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop("model.layers.1.self_attn.q_proj.bias"), "1 missing, such as model.layers.1"),
        (lambda weights: weights.update(score=torch.zeros(2)), "1 more, such as score"),
        (lambda weights: weights.update({"lm_head.weight": torch.zeros(256 + 2, 63)}), "lm_head.weight of shape"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(saved, edit, message):
    folder = saved(make_tiny("qwen2-14q2kv"))
    change(folder, edit)
    with pytest.raises(InputError, match=message):
        tensors_of(read_source(folder), LLAMA)


def test_a_tied_head_with_its_own_values_is_refused(saved):
    folder = saved(make_tiny("llama-9q3kv-tied"))
    change(folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"] + 1}))
    with pytest.raises(InputError, match="a head with weights of its own"):
        tensors_of(read_source(folder), LLAMA)
