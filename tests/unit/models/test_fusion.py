"""Projections that the stock class fuses: unfused in memory and in files, fused again in exports."""

import copy
import json

import gguf
import numpy as np
import peft
import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file

import hgsp
from conftest import make_tiny
from gguf_files import write_gguf
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.exports.source import read_source
from hgsp.models.blocks import LINEARS
from hgsp.models.checkpoint import BIN_NAME, load_pruned, save_pruned
from hgsp.models.decoder import Decoder
from hgsp.models.families import FAMILIES
from hgsp.models.fusion import rows_of_parts, shapes_in_files, unfused, wholes_of
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.model_files import files_of
from hgsp.models.offload import load_offloaded
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan

NAMES = ("phi3", "phi4-mini")
QKV, GATE_UP = "model.layers.1.self_attn.qkv_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"
ROUNDING = {"atol": 2e-5, "rtol": 1e-5}  # one product of matrices has become several


@pytest.fixture(params=NAMES)
def stock(request):
    return make_tiny(request.param)


@pytest.fixture(scope="module")
def text():
    return Calibration(torch.randint(0, 256, (16, 24), generator=torch.Generator().manual_seed(3)), "random bytes", 3)


def rewritten(folder, change):
    """Let ``change`` edit the tensors of a folder with one file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@torch.no_grad()
def test_the_projections_are_the_rows_of_the_fused_matrices(stock, tokens):
    model = unfused(stock)
    attention, fused = model.model.layers[1].self_attn, stock.get_parameter(QKV)
    assert [len(attention.get_parameter(f"{name}_proj.weight")) for name in "qkv"] == [64, 32, 32]
    assert torch.equal(torch.cat([attention.get_parameter(f"{name}_proj.weight") for name in "qkv"]), fused)
    assert attention.q_proj.weight.data_ptr() == fused.data_ptr()
    mlp = model.model.layers[1].mlp
    assert torch.equal(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), stock.get_parameter(GATE_UP))
    torch.testing.assert_close(model(tokens).logits, stock(tokens).logits, **ROUNDING)
    tied = stock.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert (model.training, model.config.name_or_path) == (stock.training, stock.config.name_or_path)


def test_models_that_are_not_fused_or_quantised_are_left_alone():
    quantised = make_tiny("phi3")
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    for model in (make_tiny("llama-8q4kv"), unfused(make_tiny("phi3")), quantised):
        assert unfused(model) is model
    assert wholes_of(make_tiny("llama-8q4kv")) == {}


def test_rows_follow_the_order_of_the_parts():
    wholes, shapes = {"qkv": ("q", "k", "v")}, {"norm": (3,), "q": (4, 3), "k": (2, 3), "v": (2, 3), "o": (3, 4)}
    assert rows_of_parts(wholes, shapes) == {
        "q": ("qkv", range(4)),
        "k": ("qkv", range(4, 6)),
        "v": ("qkv", range(6, 8)),
    }
    assert shapes_in_files(shapes, wholes) == {"norm": (3,), "qkv": (8, 3), "o": (3, 4)}


def test_every_part_is_a_projection_of_ours():
    for family in FAMILIES.values():
        parts = [part for names in family.fused.values() for part in names]
        assert set(parts) <= set(LINEARS)
        assert len(parts) == len(set(parts))


def test_dropout_falls_where_it_falls_in_the_stock_model(tokens):
    stock = make_tiny("phi3", resid_pdrop=0.3, attention_dropout=0.2, attn_implementation="eager")
    losses = []
    for model in (stock, unfused(stock)):
        torch.manual_seed(0)
        losses.append(model.train()(tokens, labels=tokens).loss.item())
    torch.manual_seed(1)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert stock(tokens, labels=tokens).loss.item() != pytest.approx(losses[0], rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
def test_whole_models_and_layers_from_files_are_the_same(stock, saved, tokens, shard_size):
    folder = saved(stock, max_shard_size=shard_size)
    source = inspect_model(str(folder))
    resident = load_dense(source, "float32", "cpu")
    decoder, files = load_offloaded(source, "float32", "cpu")
    assert source.geometry == geometry_of(unfused(stock))
    for name, tensor in unfused(stock).state_dict().items():
        assert torch.equal(resident.state_dict()[name], tensor)
        if not (stock.config.tie_word_embeddings and name == "lm_head.weight"):
            assert torch.equal(files.read(name), tensor)
            assert files.shapes[name] == tensor.shape
    assert torch.equal(decoder.model(tokens).logits, resident(tokens).logits)
    k_proj = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(files.read_first_row(k_proj), resident.get_parameter(k_proj)[:1])
    assert QKV in load_file(files.file_of(k_proj))


@torch.no_grad()
def test_pickled_weights_are_unfused_too(stock, saved, tokens):
    folder = saved(stock)
    torch.save(stock.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_pruned(folder)(tokens).logits, unfused(stock)(tokens).logits)


@torch.no_grad()
def test_configs_of_the_hub_are_read(saved, tokens):
    """They are of transformers 4, name code of their own, and have settings that the model here ignores."""
    stock = make_tiny("phi4-mini")
    folder = saved(stock)
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    factors = {key: rope[key] for key in ("short_factor", "long_factor")}
    config |= {
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "attention_bias": False,
        "lm_head_bias": False,
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "longrope", **factors},
    }
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_dense(inspect_model(str(folder)), "float32", "cpu")
    for given in (tokens, torch.cat([tokens, tokens], dim=1)):
        assert torch.equal(loaded(given).logits, unfused(stock)(given).logits)
    source = read_source(folder)
    assert source.has_longrope
    assert "partial_rotary_factor 0.75" in source.beyond_llama


def cut_short(tensors):
    tensors[QKV] = tensors[QKV][:-1].clone()


def spoiled(tensors):
    tensors[GATE_UP][-1, 0] = float("nan")


def with_a_part_beside(tensors):
    tensors["model.layers.1.self_attn.q_proj.weight"] = tensors[QKV][:64].clone()


def load_layers(source, dtype, device):
    """Read all layers, one after the other."""
    decoder, _ = load_offloaded(source, dtype, device)
    for index in range(decoder.num_layers):
        with decoder.layer(index):
            pass


DAMAGES = {
    "missing": (lambda tensors: tensors.pop(QKV), f"1 missing, such as {QKV}"),
    "cut short": (cut_short, rf"{QKV} of shape \[127, 64\], not \[128, 64\]"),
    "not finite": (spoiled, f"1 NaN or infinite values in {GATE_UP}"),
    "a part twice": (with_a_part_beside, r"1 more, such as model\.layers\.1\.self_attn\.q_proj\.weight"),
}


@pytest.mark.parametrize("is_offloaded", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_with_the_name_of_the_stored_tensor(saved, damage, is_offloaded):
    change, said = DAMAGES[damage]
    folder = saved(make_tiny("phi3"))
    rewritten(folder, change)
    source = inspect_model(str(folder))
    with pytest.raises(InputError, match=said):
        (load_layers if is_offloaded else load_dense)(source, "float32", "cpu")


@torch.no_grad()
def test_the_python_interface_takes_the_stock_model(stock, text, tokens, tmp_path, tokenizer):
    before = copy.deepcopy(stock.state_dict())
    scores = hgsp.score(stock, text, method="fisher")
    expected = hgsp.score(unfused(stock), text, method="fisher")
    for one, other in zip(scores.groups.by_layer, expected.groups.by_layer, strict=True):
        assert all(np.array_equal(one[kind], other[kind]) for kind in ("attention", "mlp"))
    plan = scores.select(0.2)
    pruned = hgsp.prune(stock, plan, reconstruct=text)
    assert torch.equal(pruned(tokens).logits, hgsp.prune(unfused(stock), plan, reconstruct=text)(tokens).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stock.state_dict().items())
    scores.save(tmp_path / "scores.npz")
    assert hgsp.Scores.load(tmp_path / "scores.npz", stock).select(0.2) == plan
    assert torch.equal(hgsp.prune(stock, plan, reconstruct=text, inplace=True)(tokens).logits, pruned(tokens).logits)
    assert all(parameter.is_meta for parameter in stock.model.layers.parameters())
    folder = hgsp.save(pruned, tokenizer, tmp_path / "pruned")
    assert torch.equal(hgsp.load_pruned(folder)(tokens).logits, pruned(tokens).logits)


@torch.no_grad()
def test_the_dense_model_is_saved_unfused(stock, tokens, tokenizer, tmp_path):
    model = unfused(stock)
    save_pruned(model, tokenizer, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "hgsp_phi3"
    for path in (tmp_path, tmp_path / BIN_NAME):
        assert torch.equal(load_pruned(path)(tokens).logits, model(tokens).logits)
    decoder, _ = load_offloaded(inspect_model(str(tmp_path)), "float32", "cpu")
    assert torch.equal(decoder.model(tokens).logits, model(tokens).logits)
    assert files_of(tmp_path, model).shapes.keys() == load_file(tmp_path / "model.safetensors").keys()


def test_peft_finds_the_projections_by_itself(stock):
    adapted = peft.get_peft_model(apply_plan(unfused(stock), mixed_plan(unfused(stock))), peft.LoraConfig())
    assert {name.split(".")[-4] for name, one in adapted.named_parameters() if one.requires_grad} == {
        "q_proj",
        "v_proj",
    }


@torch.no_grad()
def test_the_factors_of_longrope_follow_the_length(tokens):
    """Layer by layer too: the decoder captures what the model's own forward computes."""
    stock = make_tiny("phi4-mini")
    decoder = Decoder(unfused(stock))
    for given in (tokens, torch.cat([tokens, tokens], dim=1)):
        hidden = decoder.embed(given)
        for layer in decoder.model.model.layers:
            hidden = decoder.call(layer, hidden)
        torch.testing.assert_close(decoder.logits(hidden), stock(given).logits, **ROUNDING)


@torch.no_grad()
def test_a_model_spread_over_devices_stays_spread(stock, tokens):
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers", "model.norm", "lm_head"), "cpu")
    model = unfused(dispatch_model(copy.deepcopy(stock), places, force_hooks=True))
    hooked = {name for name, module in model.named_modules() if hasattr(module, "_hf_hook")}
    assert {"model.layers.0", "model.layers.2", "lm_head"} <= hooked
    torch.testing.assert_close(model(tokens).logits, stock(tokens).logits, **ROUNDING)
    pruned, expected = (apply_plan(one, mixed_plan(one)) for one in (model, unfused(stock)))
    assert torch.equal(pruned(tokens).logits, expected(tokens).logits)


@torch.no_grad()
def test_gguf_files_are_unfused(tmp_path, tokens):
    stock, path = make_tiny("phi3"), tmp_path / "tiny.gguf"
    write_gguf(stock, path, gguf.MODEL_ARCH.PHI3, eos_token_id=257, pad_token_id=257)
    source = inspect_model(str(path))
    assert source.geometry == geometry_of(unfused(stock))
    assert torch.equal(load_dense(source, "float32", "cpu")(tokens).logits, unfused(stock)(tokens).logits)
