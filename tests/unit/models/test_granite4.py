"""Granite 4: dense members by their configs on the hub; members with experts or Mamba layers, which are not pruned."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from conftest import make_tiny
from exporting import exported
from hgsp.errors import InputError
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.fusion import unfused
from hgsp.models.loading import inspect_model, load_dense
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping

MAMBA = {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "mamba_n_heads": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def edited(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(folder)


@torch.no_grad()
def test_a_config_as_on_the_hub_is_a_dense_model(saved, tokens):
    """With names of layers that transformers has renamed since, and with no experts for no token."""
    stock = make_tiny("granite4")
    name = edited(saved(stock), layer_types=["attention"] * 3, num_experts_per_tok=0, time_step_limit=[0.0, 1e9])
    source = inspect_model(name)
    assert [shape.mlp_width for shape in source.geometry.shapes] == [96] * 3
    expected = unfused(stock)(tokens).logits
    assert torch.equal(load_dense(source, "float32", "cpu")(tokens).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("changes", [MAMBA, EXPERTS, MAMBA | EXPERTS])
def test_other_members_are_loaded_as_they_are_and_not_pruned(saved, tokens, changes):
    """So that they can be evaluated."""
    stock = make_tiny("granite4-nope", **changes)
    assert unfused(stock) is stock
    folder = saved(stock)
    assert torch.equal(load_pruned(folder)(tokens).logits, stock(tokens).logits)
    with pytest.raises(InputError, match=r"without (experts|such layers)"):
        inspect_model(str(folder))


def test_exports_have_the_matrices_of_the_stock_class(tokens, tokenizer, tmp_path):
    model = unfused(make_tiny("granite4"))
    uniform = apply_plan(model, plan_dropping(model, mlp={index: range(index, index + 20) for index in range(3)}))
    (tmp_path / "pruned").mkdir()
    save_pruned(uniform, tokenizer, tmp_path / "pruned", with_bin=False)
    written = exported(tmp_path / "pruned", "stock")
    config = json.loads((written.folder / "config.json").read_text())
    assert (config["model_type"], config["shared_intermediate_size"]) == ("granitemoehybrid", 76)
    mlp, found = uniform.model.layers[1].mlp, load_file(written.folder / "model.safetensors")
    whole = found["model.layers.1.shared_mlp.input_linear.weight"]
    assert torch.equal(whole, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
    assert torch.equal(found["model.layers.1.shared_mlp.output_linear.weight"], mlp.down_proj.weight)
    assert not any(".mlp." in name for name in found)
    assert "Infinity," not in (written.folder / "config.json").read_text()


def test_pruned_models_classify(tokens, tokenizer, tmp_path):
    model = unfused(make_tiny("granite4-nope"))
    smaller = apply_plan(model, mixed_plan(model))
    save_pruned(smaller, tokenizer, tmp_path, with_bin=False)
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, pad_token_id=257, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"score.weight"}
    assert classifier(tokens).logits.shape == (2, 3)
    assert torch.equal(classifier.model(tokens).last_hidden_state, smaller.model(tokens).last_hidden_state)
