"""A uniform checkpoint loads as a plain model of transformers, with equal logits."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import TINY
from exporting import PLANS, exported, plan_named, pruned_folder
from hgsp.errors import InputError
from hgsp.exports.uniform import nearest_uniform
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.geometry import geometry_of
from hgsp.pruning.surgery import apply_plan
from plans import plan_of

LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
assert "hgsp" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.save(model(torch.tensor([[1, 2, 3, 4]])).logits.detach(), sys.argv[2])
"""


@pytest.fixture
def folder_of(tokenizer, tmp_path):
    """``folder_of(model, plan, writer_bias)`` saves the pruned model, with random biases if it has added ones."""

    def save(model, plan, writer_bias=False):
        pruned = apply_plan(model, dataclasses.replace(plan_named(model, plan), writer_bias=writer_bias))
        with torch.no_grad():
            for layer in pruned.model.layers if writer_bias else ():
                layer.self_attn.o_proj.bias.normal_(std=0.1)
                layer.mlp.down_proj.bias.normal_(std=0.1)
        (tmp_path / "pruned").mkdir()
        save_pruned(pruned, tokenizer, tmp_path / "pruned", with_bin=False)
        return tmp_path / "pruned"

    return save


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("plan", ["uniform", "uniform, layer gone"])
def test_logits_are_bit_equal(make, folder_of, tokens, name, plan):
    plan = "uniform" if "biased" in name else plan  # stock Llama has biases, but not with three of four heads
    folder = folder_of(make(name), plan)
    written = exported(folder, "stock")
    config = json.loads((written.folder / "config.json").read_text())
    assert config["model_type"] in ("llama", "mistral", "qwen2", "qwen3")
    assert "auto_map" not in config
    assert "per_layer_config" not in config
    model, report = AutoModelForCausalLM.from_pretrained(written.folder, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(model(tokens).logits, load_pruned(folder)(tokens).logits)
    assert written.exported.checks[1].startswith("Transformers: log-probabilities")


def test_it_loads_without_our_package(make, folder_of, tmp_path):
    """Three groups of two heads do not divide the hidden size: Mistral computes the same."""
    folder = folder_of(make("llama-8q4kv"), "uniform, layer gone")
    written = exported(folder, "stock", self_check=False)
    assert json.loads((written.folder / "config.json").read_text())["model_type"] == "mistral"
    logits = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", LOAD, written.folder, logits], check=True, cwd=tmp_path)
    expected = load_pruned(folder)(torch.tensor([[1, 2, 3, 4]])).logits
    assert torch.equal(torch.load(logits), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "model_type"), [("llama-8q4kv", "llama"), ("qwen2-14q2kv", "llama"), ("mistral-8q4kv", "llama")]
)
def test_biases_that_a_refit_adds_make_it_a_llama(make, folder_of, tokens, name, model_type):
    changes = {"hidden_size": 56} if name.startswith("qwen2") else {}
    folder = folder_of(make(name, **changes), "uniform", writer_bias=True)
    written = exported(folder, "stock")
    assert json.loads((written.folder / "config.json").read_text())["model_type"] == model_type
    model = AutoModelForCausalLM.from_pretrained(written.folder)
    torch.testing.assert_close(model(tokens).logits, load_pruned(folder)(tokens).logits)


@pytest.mark.parametrize(("name", "plan"), [("llama-8q4kv", "uniform, layer gone"), ("qwen3-8q2kv", "uniform")])
def test_biases_without_a_place_are_refused(make, folder_of, tmp_path, name, plan):
    """Llama refuses six heads of a hidden size of 64, and Mistral has no biases; Qwen3 has none in its MLP."""
    folder = folder_of(make(name), plan, writer_bias=True)
    with pytest.raises(InputError, match=r"biases of mlp\.down_proj, self_attn\.o_proj and") as refused:
        exported(folder, "stock")
    assert ("2 or 4 or 8 query heads in every layer" in str(refused.value)) == (name == "llama-8q4kv")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_qwen2_with_fewer_heads_is_served_by_the_transformers_backend(make, folder_of):
    written = exported(folder_of(make("qwen2-14q2kv"), "uniform"), "stock", self_check=False)
    assert written.exported.serve == ("vllm serve {folder} --model-impl transformers",)


@pytest.mark.parametrize("plan", [plan for plan in PLANS if not plan.startswith("uniform") and plan != "layer gone"])
def test_other_plans_are_refused_with_the_nearest_uniform_one(make, tokenizer, tmp_path, plan):
    folder = pruned_folder(make("llama-8q4kv"), plan, tokenizer, tmp_path / "pruned")
    with pytest.raises(
        InputError, match=r"--uniform: \d KV groups and \d+ channels in each of 3 layers .*zero padding"
    ):
        exported(folder, "stock")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_the_nearest_uniform_plan_has_about_as_many_parameters(make):
    model = make("llama-8q4kv")
    before = geometry_of(apply_plan(model, plan_named(model, "non-uniform"), inplace=False))
    nearest = nearest_uniform(before)
    after = before.num_layers * before.layer_params(nearest)
    assert nearest.num_kv_groups == 3
    assert abs(after - before.decoder_params) <= before.num_layers * before.mlp_channel_params / 2


def test_a_uniform_plan_is_its_own_nearest(make):
    model = make("mistral-8q4kv")
    geometry = geometry_of(apply_plan(model, plan_named(model, "uniform"), inplace=False))
    assert nearest_uniform(geometry) == geometry.shapes[0]
    assert plan_of(geometry, plan_named(make("mistral-8q4kv"), "uniform").layers).removed_params == 0


@torch.no_grad()
def test_a_dense_model_is_exported_too(make, saved, tokens):
    model = make("llama-8q4kv")
    written = exported(saved(model), "stock")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(written.folder)(tokens).logits, model(tokens).logits)
