"""GPT-OSS: sinks and biases leave with their groups, MXFP4 checkpoints are de-quantised first, channels stay."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Mxfp4Config

import hgsp
from experts import TEXT, make_moe, quantise_experts, uneven_plan
from hgsp.errors import InputError
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.loaded import load_for_pruning
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.offload import load_offloaded
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.score import score_groups

DOWN = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture
def quantised(saved):
    folder = saved(make_moe("gpt-oss", intermediate_size=32).to(torch.bfloat16), "quantised")
    quantise_experts(folder)
    return folder


def test_sinks_and_biases_leave_with_their_groups():
    model = make_moe("gpt-oss")
    pruned = apply_plan(model, uneven_plan(model), inplace=False)
    dense, own = model.model.layers[0], pruned.model.layers[0]  # keeps KV groups 0 and 2, and experts 1, 4 and 6
    heads, experts = [0, 1, 4, 5], [1, 4, 6]
    assert torch.equal(own.self_attn.sinks, dense.self_attn.sinks[heads])
    assert torch.equal(own.self_attn.q_proj.bias, dense.self_attn.q_proj.bias.view(8, 8)[heads].flatten())
    assert torch.equal(own.self_attn.v_proj.bias, dense.self_attn.v_proj.bias.view(4, 8)[[0, 2]].flatten())
    assert torch.equal(own.self_attn.o_proj.bias, dense.self_attn.o_proj.bias)
    assert torch.equal(own.mlp.router.bias, dense.mlp.router.bias[experts])
    for name, parameter in own.mlp.experts.named_parameters():
        assert torch.equal(parameter, dense.mlp.experts.get_parameter(name)[experts])


@torch.no_grad()
def test_generation_with_a_cache_equals_generation_without_beyond_the_window(tokens):
    model = make_moe("gpt-oss")
    pruned = apply_plan(model, uneven_plan(model))
    settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 257}
    found = [
        pruned.generate(tokens, attention_mask=torch.ones_like(tokens), use_cache=use_cache, **settings)
        for use_cache in (True, False)
    ]
    assert torch.equal(*found)


def test_layers_from_files_score_as_layers_in_memory(saved):
    folder = saved(make_moe("gpt-oss"))
    decoder, _ = load_offloaded(inspect_model(str(folder)), "float32", "cpu")
    for streamed, resident in zip(
        *(score_groups(one, "taylor", TEXT).by_layer for one in (decoder, Decoder(make_moe("gpt-oss")))), strict=True
    ):
        assert all((streamed[kind] == resident[kind]).all() for kind in ("attention", "expert"))


def test_norms_have_the_dtype_of_other_weights_in_memory_too(saved):
    source = inspect_model(str(saved(make_moe("gpt-oss"))))
    model, (_, files) = load_dense(source, "float16", "cpu"), load_offloaded(source, "float16", "cpu")
    assert all(torch.equal(value, files.read(name).half()) for name, value in model.state_dict().items())


def test_settings_as_on_the_hub_are_those_of_a_model_to_prune(saved):
    """Rotary factors of YaRN, and the number of experts of a token under two names."""
    model = make_moe("gpt-oss", rope_parameters=None)
    folder = saved(model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "experts_per_token": 2, "swiglu_limit": 7.0}))
    source = inspect_model(str(folder))
    assert source.config.rope_parameters["rope_type"] == "yarn"
    assert load_dense(source, "float32", "cpu").model.rotary_emb.attention_scaling == pytest.approx(1.3466, abs=1e-4)


def test_pruned_models_classify(tokens, tokenizer, tmp_path):
    model = make_moe("gpt-oss")
    pruned = apply_plan(model, uneven_plan(model))
    save_pruned(pruned, tokenizer, tmp_path, with_bin=False)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, pad_token_id=257)
    assert classifier(tokens).logits.shape == (2, 3)
    assert torch.equal(classifier.model(tokens).last_hidden_state, pruned.model(tokens).last_hidden_state)


def test_channels_of_interleaved_experts_stay():
    model = make_moe("gpt-oss")
    with pytest.raises(InputError, match="got experts with interleaved ones; leave it out"):
        geometry_of(model).with_expert_channels(True)
    with pytest.raises(InputError, match="for --expert_channels"):
        hgsp.score(model, TEXT, "magnitude", expert_channels=True)
    assert not geometry_of(model).with_expert_channels(False).prunes_expert_channels


def test_a_quantised_checkpoint_is_refused_with_the_flag_that_de_quantises(quantised):
    for refused in (lambda: inspect_model(str(quantised)), lambda: hgsp.load(str(quantised))):
        with pytest.raises(InputError, match=r"--dequantize, in Python load\(\.\.\., dequantize=True\)"):
            refused()


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_quantised_checkpoint_is_loaded_de_quantised(quantised, tokens, dtype):
    settings = {"quantization_config": Mxfp4Config(dequantize=True), "dtype": getattr(torch, dtype)}
    plain = AutoModelForCausalLM.from_pretrained(quantised, **settings)
    expected = plain(tokens).logits
    assert torch.equal(load_pruned(quantised, dtype=plain.dtype)(tokens).logits, expected)  # to be evaluated
    source = inspect_model(str(quantised), dequantize=True)
    model, (decoder, files) = load_dense(source, dtype, "cpu"), load_offloaded(source, dtype, "cpu")
    for found in (model, decoder.model):
        assert torch.equal(found(tokens).logits, expected)
    for name, value in plain.state_dict().items():
        assert torch.equal(files.read(name).to(plain.dtype), value), name
        assert files.shapes[name] == value.shape
    assert torch.equal(files.read_first_row(DOWN), plain.get_parameter(DOWN)[0, :1])
    assert files.file_of(DOWN) == quantised / "model.safetensors"
    assert not any(hasattr(found.config, "quantization_config") for found in (model, decoder.model))


@pytest.mark.parametrize(
    ("damage", "refusal"),
    [
        (lambda blocks, scales: {"_blocks": blocks}, "1 missing, such as .*down_proj"),
        (lambda blocks, scales: {"_blocks": blocks, "_scales": scales.int()}, "1 missing, such as .*down_proj"),
        (lambda blocks, scales: {"_blocks": blocks[:, 1:], "_scales": scales}, "1 missing, such as .*down_proj"),
        (lambda blocks, scales: {"_blocks": blocks[:4], "_scales": scales[:4]}, r"of shape \[4, 32, 64\], not \[8,"),
        (lambda blocks, scales: {"_blocks": blocks, "_scales": scales, "": scales.float()}, "of shape"),
        (lambda blocks, scales: {"_blocks": blocks, "_scales": scales.fill_(255)}, "NaN or infinite"),
    ],
    ids=["no scales", "scales of another type", "fewer blocks", "fewer experts", "plain ones too", "infinite"],
)
@pytest.mark.parametrize("offload", [False, True], ids=["memory", "files"])
def test_damaged_quantised_weights_are_refused(quantised, damage, refusal, offload):
    file = quantised / "model.safetensors"
    tensors = load_file(file)
    parts = damage(tensors.pop(f"{DOWN}_blocks"), tensors.pop(f"{DOWN}_scales"))
    named = {DOWN + part: tensor.contiguous() for part, tensor in parts.items()}
    save_file(tensors | named, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=refusal):
        load_for_pruning(inspect_model(str(quantised), dequantize=True), "bfloat16", "cpu", offload=offload).read(DOWN)


@torch.no_grad()
def test_the_python_interface_takes_a_model_that_was_de_quantised(quantised, tokens, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(quantised, quantization_config=Mxfp4Config(dequantize=True))
    plan = hgsp.score(model, TEXT, "reap").select(0.2)
    pruned = hgsp.prune(model, plan)
    folder = hgsp.save(pruned, tokenizer, tmp_path / "pruned")
    assert torch.equal(hgsp.load_pruned(folder)(tokens).logits, pruned(tokens).logits)
