"""Folders for mlx-lm: its layouts read back into our own classes give equal logits."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import TINY
from exporting import PLANS, exported, pruned_folder
from hgsp.errors import InputError
from hgsp.models.checkpoint import load_pruned

#: Models without biases.
OPENELM = [name for name in TINY if not name.startswith("qwen2") and "biased" not in name]
RENAMED = {
    "attn.out_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "ffn.proj_2": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@pytest.fixture
def checkpoint(make, tokenizer, tmp_path):
    def write(name="llama-8q4kv", plan="non-uniform", **changes):
        return pruned_folder(make(name, **changes), plan, tokenizer, tmp_path / "pruned")

    return write


def as_our_model(folder):
    """The tensors of an ``openelm`` folder in our class of Llama or Qwen3, split as mlx-lm splits them."""
    config = json.loads((folder / "config.json").read_text())
    weights, head_dim = load_file(folder / "model.safetensors"), config["head_dim"]
    state = {
        "model.embed_tokens.weight": weights["transformer.token_embeddings.weight"],
        "model.norm.weight": weights["transformer.norm.weight"],
    }
    state["lm_head.weight"] = weights.get("lm_head.weight", state["model.embed_tokens.weight"])
    per_layer = {}
    sizes = zip(config["num_query_heads"], config["num_kv_heads"], config["ffn_multipliers"], strict=True)
    for index, (queries, groups, multiplier) in enumerate(sizes):
        old, new = f"transformer.layers.{index}.", f"model.layers.{index}."
        rows = [queries * head_dim, groups * head_dim, groups * head_dim]
        for name, part in zip("qkv", weights[f"{old}attn.qkv_proj.weight"].split(rows), strict=True):
            state[f"{new}self_attn.{name}_proj.weight"] = part
        for name, part in zip(("gate", "up"), weights[f"{old}ffn.proj_1.weight"].chunk(2), strict=True):
            state[f"{new}mlp.{name}_proj.weight"] = part
        for theirs, ours in RENAMED.items():
            if f"{old}{theirs}.weight" in weights:
                state[f"{new}{ours}.weight"] = weights[f"{old}{theirs}.weight"]
        width = int(multiplier * config["model_dim"] + config["ffn_dim_divisor"] / 2)
        per_layer[index] = {"num_attention_heads": queries, "num_key_value_heads": groups, "intermediate_size": width}
    kind = "hgsp_qwen3" if config["normalize_qk_projections"] else "hgsp_llama"
    known = ("vocab_size", "hidden_size", "head_dim", "rms_norm_eps", "num_hidden_layers")
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            kind,
            **{key: config[key] for key in known},
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_freq_constant"]},
            per_layer_config=per_layer,
        )
    )
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", OPENELM)
@pytest.mark.parametrize("plan", PLANS)
def test_the_openelm_layout_computes_the_same(checkpoint, tokens, name, plan):
    folder = checkpoint(name, plan)
    written = exported(folder, "mlx", self_check=False)
    assert json.loads((written.folder / "config.json").read_text())["model_type"] == "openelm"
    expected = load_pruned(folder)(tokens).logits
    torch.testing.assert_close(as_our_model(written.folder)(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_without_empty_blocks_no_parameter_is_added(checkpoint):
    folder = checkpoint()
    written = exported(folder, "mlx", self_check=False)
    before, after = (
        sum(tensor.numel() for tensor in load_file(place / "model.safetensors").values())
        for place in (folder, written.folder)
    )
    assert before == after
    assert written.exported.notes == ("layout openelm: no padding",)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("qwen2-14q2kv", {"hidden_size": 112}, "biases"),
        (
            "llama-8q4kv",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
            "rotary frequencies of type linear",
        ),
    ],
)
def test_models_that_openelm_cannot_hold_are_padded(checkpoint, name, changes, reason):
    """mlx-lm computes the head dimension of this layout from the hidden size, so the dense number of heads stays."""
    written = exported(checkpoint(name, plan="uniform", **changes), "mlx", self_check=False)
    config = json.loads((written.folder / "config.json").read_text())
    assert config["model_type"] == "nemotron-nas"
    assert config["num_attention_heads"] * config["head_dim"] == config["hidden_size"]
    assert reason in written.exported.notes[0]
    assert written.exported.notes[1].startswith("zero padding adds")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen2-14q2kv", {"hidden_size": 60}, "head dimension 8, hidden size 60"),
        ("qwen2-14q2kv", {"hidden_size": 64}, "fit into 8 query heads"),
        ("qwen3-8q2kv", {"attention_bias": True}, "Qwen3"),
    ],
)
def test_models_that_neither_layout_holds_are_refused(checkpoint, tmp_path, name, changes, message):
    with pytest.raises(InputError, match=message):
        exported(checkpoint(name, **changes), "mlx")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_the_self_check_says_how_to_run_the_engine(checkpoint):
    checks = exported(checkpoint(), "mlx").exported.checks
    assert "tensors equal the checkpoint's" in checks[0]
    assert "mlx-lm" in checks[1]
