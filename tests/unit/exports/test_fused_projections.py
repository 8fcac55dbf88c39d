"""Families whose stock class fuses projections: what exports read as parts, and write as one matrix again."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Phi3ForCausalLM

from conftest import make_tiny
from exporting import exported
from hgsp.errors import InputError
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.fusion import unfused
from hgsp.pruning.surgery import apply_plan
from hgsp.reconstruction.reconstruct import plan_for
from plans import plan_dropping

QKV = "model.layers.1.self_attn.qkv_proj.weight"
ROUNDING = {"atol": 2e-5, "rtol": 1e-5}  # one product of matrices has become several


def without_heads(model):
    """The first two of four KV groups and half of the channels leave every layer."""
    return plan_dropping(model, kv=dict.fromkeys(range(3), range(2)), mlp=dict.fromkeys(range(3), range(48)))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 8}, {"partial_rotary_factor": 0.5}])
def test_equal_layers_are_exported_as_the_stock_class(changes, tokens, tokenizer, tmp_path):
    stock = make_tiny("phi3", **changes)
    smaller = apply_plan(unfused(stock), without_heads(unfused(stock)))
    save_pruned(smaller, tokenizer, tmp_path, with_bin=False)
    written = exported(tmp_path, "stock")
    plain = AutoModelForCausalLM.from_pretrained(written.folder)
    assert type(plain) is Phi3ForCausalLM
    assert tuple(plain.get_parameter(QKV).shape) == ((4 + 2 * 2) * 8, 64)
    torch.testing.assert_close(plain(tokens).logits, smaller(tokens).logits, **ROUNDING)
    again = load_pruned(written.folder)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in smaller.state_dict().items())


@torch.no_grad()
def test_biases_of_a_refit_need_another_class(tokens, tokenizer, tmp_path):
    model = unfused(make_tiny("phi3"))
    smaller = apply_plan(model, plan_for("bias", without_heads(model)))
    for name, parameter in smaller.named_parameters():
        if name.endswith(".bias"):
            parameter.normal_(std=0.1)
    save_pruned(smaller, tokenizer, tmp_path, with_bin=False)
    plain = AutoModelForCausalLM.from_pretrained(exported(tmp_path, "stock").folder)
    assert plain.config.model_type == "llama"
    torch.testing.assert_close(plain(tokens).logits, smaller(tokens).logits, **ROUNDING)


@torch.no_grad()
def test_longrope_is_exported_with_all_heads_or_refused(tokens, tokenizer, tmp_path):
    """Its config counts the factors by the number of heads; 40 tokens are beyond the original positions."""
    model = unfused(make_tiny("phi4-mini"))
    folders = [tmp_path / name for name in ("fewer heads", "all heads")]
    plans = without_heads(model), plan_dropping(model, mlp=dict.fromkeys(range(3), range(48)))
    for folder, plan in zip(folders, plans, strict=True):
        folder.mkdir()
        smaller = apply_plan(copy.deepcopy(model), plan)
        save_pruned(smaller, tokenizer, folder, with_bin=False)
    with pytest.raises(InputError, match=r"got 4 query heads of 8 for a hidden size of 64; .* --min_kv_groups 4"):
        exported(folders[0], "stock")
    written = exported(folders[1], "stock")
    config = json.loads((written.folder / "config.json").read_text())
    assert config["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}
    plain, long = AutoModelForCausalLM.from_pretrained(written.folder), torch.cat([tokens, tokens], dim=1)[:, :40]
    assert plain.config.rope_parameters["partial_rotary_factor"] == 0.75
    for given in (tokens, long):
        torch.testing.assert_close(plain(given).logits, smaller(given).logits, **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("target", ["decilm", "mlx"])
def test_the_dense_folder_itself_is_exported(saved, target):
    """Its fused matrices are read as the projections that these formats have."""
    stock = make_tiny("phi3")
    written = exported(saved(stock), target, self_check=False)
    tensors = load_file(written.folder / "model.safetensors")
    attention = unfused(stock).model.layers[1].self_attn
    found = [name for name, tensor in tensors.items() if ".1." in name and attention.o_proj.weight.equal(tensor)]
    assert len(found) == 1
    in_decilm = "model.layers.1.self_attn.k_proj.weight"
    assert target == "mlx" or torch.equal(tensors[in_decilm], attention.k_proj.weight)
