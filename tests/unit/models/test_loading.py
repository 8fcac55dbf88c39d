"""Loading: models are inspected before they are loaded, and unsupported ones are refused in one clear line."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PhimoeConfig

from conftest import TINY, make_tiny
from gguf_files import write_gguf
from hgsp.errors import InputError
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.offload import load_offloaded
from hgsp.models.tokenizers import load_tokenizer
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping


def edit_config(folder, **changes):
    """Change keys of config.json; None removes the key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test asks the hub: an unknown name must fail at once, with or without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", TINY)
def test_geometry_is_known_before_any_weight_is_read(saved, name):
    """The weight file does not even exist."""
    model = make_tiny(name)
    folder = saved(model)
    (folder / "model.safetensors").unlink()
    source = inspect_model(str(folder))
    assert source.geometry == geometry_of(model)
    assert all(parameter.is_meta for parameter in source.skeleton.parameters())
    assert source.warnings == ()


@pytest.mark.parametrize("name", TINY)
def test_loaded_model_is_the_saved_one(saved, tokens, name):
    """Every family loads bit for bit."""
    model = make_tiny(name)
    loaded = load_dense(inspect_model(str(saved(model))), "float32", "cpu")
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert not loaded.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_weight_has_the_dtype_asked_for(saved, dtype):
    """The dtype of the file never decides the dtype of the model."""
    loaded = load_dense(inspect_model(str(saved(make_tiny("qwen2-14q2kv")))), dtype, "cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, dtype)}
    assert loaded.config.dtype == getattr(torch, dtype)


def test_sharded_folders_load_equal(saved, tokens):
    model = make_tiny("llama-8q4kv")
    folder = saved(model, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    assert torch.equal(load_dense(inspect_model(str(folder)), "float32", "cpu")(tokens).logits, model(tokens).logits)


def test_device_auto_loads_equal(saved, tokens):
    model = make_tiny("llama-8q4kv")
    loaded = load_dense(inspect_model(str(saved(model))), "float32", "auto")
    assert torch.equal(loaded(tokens.to(loaded.device)).logits.cpu(), model(tokens).logits)


def test_a_pruned_folder_can_be_pruned_again(saved, tokenizer, tokens, tmp_path):
    model = make_tiny("mistral-8q4kv")
    pruned = apply_plan(model, mixed_plan(model))
    folder = tmp_path / "pruned"
    folder.mkdir()
    save_pruned(pruned, tokenizer, folder)
    source = inspect_model(str(folder))
    assert source.geometry == geometry_of(pruned)
    assert torch.equal(load_dense(source, "float32", "cpu")(tokens).logits, pruned(tokens).logits)


def test_a_config_without_kv_heads_is_multi_head_attention_with_a_warning(saved):
    folder = saved(make_tiny("llama-mha-biased"))
    edit_config(folder, num_key_value_heads=None)
    source = inspect_model(str(folder))
    assert source.geometry.queries_per_kv == 1
    assert source.geometry.shapes[0] == LayerShape(4, 96)
    (warning,) = source.warnings
    assert "num_key_value_heads" in warning


@pytest.mark.parametrize(
    ("stored", "used", "warns"),
    [("bfloat16", "float16", True), ("bfloat16", "bfloat16", False), ("float32", "float16", False)],
)
def test_float16_of_a_bfloat16_checkpoint_is_a_warning(saved, stored, used, warns):
    """A model trained in bfloat16 may overflow in float16."""
    folder = saved(make_tiny("llama-8q4kv").to(getattr(torch, stored)))
    assert any("overflow" in warning for warning in inspect_model(str(folder), used).warnings) == warns


REFUSED = {
    "gpt2": (GPT2Config(n_layer=1, n_embd=16, n_head=2), "unsupported architecture 'gpt2'"),
    "phimoe": (PhimoeConfig(num_hidden_layers=2), r"'phimoe' \(mixture of experts\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_architectures_we_do_not_know_are_refused_by_name(tmp_path, name):
    config, message = REFUSED[name]
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message) as refusal:
        inspect_model(str(tmp_path))
    assert "\n" not in str(refusal.value)
    assert "llama, qwen2, mistral" in str(refusal.value)


def test_a_gpt2_model_is_not_taken_for_a_llama(tmp_path):
    """Complete weights change nothing about the refusal."""
    GPT2LMHeadModel(REFUSED["gpt2"][0]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="unsupported architecture"):
        inspect_model(str(tmp_path))


@pytest.mark.parametrize(("name", "queries_per_kv"), [("qwen2-14q2kv", 7), ("qwen3-8q2kv", 4)])
def test_a_qwen_window_that_is_switched_off_does_not_matter(name, queries_per_kv, saved):
    """Qwen2.5 configs name a window and do not use it."""
    folder = saved(make_tiny(name))
    edit_config(folder, sliding_window=32768, use_sliding_window=False)
    assert inspect_model(str(folder)).geometry.queries_per_kv == queries_per_kv


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-8q4kv", {"sliding_window": 8}, "full_attention in every layer of a llama model; got sliding_attention"),
        ("qwen3-8q2kv", {"layer_types": ["full_attention"] * 2 + ["linear_attention"]}, "got linear_attention"),
        ("gemma3", {"use_bidirectional_attention": True}, "attention in both directions"),
    ],
)
def test_attention_that_the_family_lacks_is_refused(saved, name, changes, message):
    folder = saved(make_tiny(name))
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        inspect_model(str(folder))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"model_type": "phimoe", "num_local_experts": 8}, "(mixture of experts)"),
        ({"model_type": "gemma3n_text", "num_kv_shared_layers": 15}, "the last 15 layers read keys and values of"),
        (
            {"model_type": "gemma3n", "text_config": {"num_kv_shared_layers": 15}},
            "read keys and values of earlier ones",
        ),
        (
            {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
            "(layers without attention: linear_attention, of a kind that no supported family has)",
        ),
        ({"model_type": "mamba", "state_size": 16}, "(layers without attention, of a kind"),
        ({"model_type": "jamba", "num_experts": 1, "mamba_d_state": 16}, "(mixture of experts)"),
        ({"model_type": "bamba", "mamba_d_state": 256, "attn_layer_indices": [9]}, "(layers without attention, of a"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*"}, "(layers without attention, of a kind"),
        ({"model_type": "zamba2", "layers_block_type": ["mamba", "hybrid"]}, "(layers without attention: hybrid, "),
        ({"model_type": "recurrent_gemma", "block_types": ["recurrent", "attention"]}, "attention: recurrent, "),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "(layers without attention: conv, "),
        (
            {"model_type": "granitemoehybrid", "num_local_experts": 0, "layer_types": ["mamba", "attention"]},
            "full_attention in every layer of a granitemoehybrid model; got mamba",
        ),
        ({"model_type": "granitemoehybrid", "num_local_experts": 0}, "granitemoehybrid model; got linear_attention"),
        ({"model_type": "granitemoehybrid", "num_local_experts": 62}, "Granite 4 (dense); got a mixture of experts"),
        ({"model_type": "granitemoehybrid"}, "Granite 4 (dense); got a mixture of experts"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "(multimodal)"),
        (
            {
                "model_type": "qwen3_5",
                "text_config": {"model_type": "qwen3_5_text", "layer_types": ["linear_attention"]},
            },
            "(multimodal); save its language model alone",
        ),
    ],
)
def test_architectures_are_refused_by_what_they_lack(tmp_path, raw, reason):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=re.escape(reason)):
        inspect_model(str(tmp_path))


def test_quantised_weights_are_refused(saved):
    folder = saved(make_tiny("llama-8q4kv"))
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match="already quantised weights"):
        inspect_model(str(folder))


def test_layers_without_attention_or_mlp_are_refused(tokenizer, tmp_path):
    model = make_tiny("llama-8q4kv")
    save_pruned(apply_plan(model, plan_dropping(model, kv={0: range(4)})), tokenizer, tmp_path)
    with pytest.raises(InputError, match="start from the dense model"):
        inspect_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./no/such/folder", "nobody/no-such-model", "no-such-file.gguf"])
def test_a_name_where_nothing_is_says_so(name):
    with pytest.raises(InputError, match=name) as refusal:
        inspect_model(name)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        inspect_model(str(tmp_path))


def test_missing_weights_files_are_refused(saved):
    folder = saved(make_tiny("llama-8q4kv"))
    source = inspect_model(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="check that the download is complete"):
        load_dense(source, "float32", "cpu")


def test_a_missing_weight_is_refused_and_never_made_up(saved):
    folder = saved(make_tiny("llama-8q4kv"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.self_attn.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing, such as model\.layers\.2\.self_attn\.k_proj\.weight"):
        load_dense(inspect_model(str(folder)), "float32", "cpu")


READERS = {
    "resident": lambda folder: load_dense(inspect_model(str(folder)), "float32", "cpu"),
    "spread": lambda folder: load_dense(inspect_model(str(folder)), "float32", "auto"),
    "offloaded": lambda folder: load_offloaded(inspect_model(str(folder)), "float32", "cpu")[0].model,
    "evaluated or trained": load_pruned,
}


@pytest.mark.parametrize("reader", READERS)
def test_weights_of_another_shape_are_refused_and_never_made_up(saved, reader):
    folder = saved(make_tiny("llama-8q4kv"))
    edit_config(folder, intermediate_size=80)
    with pytest.raises(InputError, match="another shape"):
        READERS[reader](folder)


def add_tensors(folder, tensors):
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})


UNPLACED = {
    "biases of attention": "model.layers.0.self_attn.q_proj.bias",
    "biases of the MLP": "model.layers.1.mlp.down_proj.bias",
    "more layers": "model.layers.3.input_layernorm.weight",
    "norms of another architecture": "model.layers.0.self_attn.q_norm.weight",
    "another head": "score.weight",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", UNPLACED)
def test_weights_that_the_config_has_no_place_for_are_refused_by_name(saved, kind, reader):
    """Silently dropping them would load a different model from the saved one."""
    folder = saved(make_tiny("llama-8q4kv"))
    add_tensors(folder, {UNPLACED[kind]: torch.zeros(8)})
    with pytest.raises(InputError, match=f"1 more, such as {UNPLACED[kind]}") as refusal:
        READERS[reader](folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("reader", READERS)
def test_fewer_layers_in_the_config_than_in_the_file_are_refused(saved, reader):
    folder = saved(make_tiny("llama-8q4kv"), max_shard_size="100KB")
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(InputError, match=r"9 more, such as model\.layers\.2\.input_layernorm\.weight"):
        READERS[reader](folder)


@pytest.mark.parametrize("reader", READERS)
def test_rotary_frequencies_in_the_file_are_let_through(saved, tokens, reader):
    """Old checkpoints store these buffers; every model computes its own."""
    model = make_tiny("llama-8q4kv")
    folder = saved(model)
    add_tensors(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    loaded = READERS[reader](folder)
    assert torch.equal(loaded(tokens.to(loaded.device)).logits.cpu(), model(tokens).logits)


@pytest.mark.parametrize("reader", READERS)
def test_an_adapter_beside_a_whole_model_is_refused(saved, reader):
    """PEFT would apply the adapter a second time to weights that already contain it."""
    folder = saved(make_tiny("llama-8q4kv"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"a model and an adapter \(adapter_config\.json\).*remove"):
        READERS[reader](folder)


def test_an_adapter_of_the_hub_is_refused_when_weights_are_loaded(saved, monkeypatch):
    folder = saved(make_tiny("llama-8q4kv"))
    asked = []
    (folder / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(
        "hgsp.models.weight_checks.find_adapter_config_file",
        lambda name: asked.append(name) or str(folder / "adapter_config.json"),
    )
    with pytest.raises(InputError, match=r"a model and an adapter"):
        load_pruned("some/model")
    assert asked == ["some/model"]


@pytest.mark.parametrize("reader", READERS)
def test_an_adapter_alone_is_to_be_merged_first(tmp_path, reader):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"an adapter \(adapter_config\.json\).*merge it first"):
        READERS[reader](tmp_path)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
DAMAGE = {
    "broken off": (lambda whole: whole[: len(whole) // 2], "check that the download is complete"),
    "empty": (lambda whole: b"", "check that the download is complete"),
    "a pointer": (lambda whole: LFS_POINTER, "git lfs pull"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_of_weights_that_cannot_be_read_is_refused_by_name(saved, damage, reader):
    folder = saved(make_tiny("llama-8q4kv"), max_shard_size="100KB")
    change, remedy = DAMAGE[damage]
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(InputError, match=rf"{shard.name}.*{remedy}") as refusal:
        READERS[reader](folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "offloaded"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_so_is_an_older_checkpoint(tmp_path, damage, reader):
    model, (change, remedy) = make_tiny("llama-8q4kv"), DAMAGE[damage]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").write_bytes(change((tmp_path / "pytorch_model.bin").read_bytes()))
    with pytest.raises(InputError, match=rf"pytorch_model\.bin.*{remedy}"):
        READERS[reader](tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_a_shard_that_is_missing_is_refused_by_name(saved, reader):
    folder = saved(make_tiny("llama-8q4kv"), max_shard_size="100KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=shard.name):
        READERS[reader](folder)


@pytest.mark.parametrize("reader", READERS)
def test_an_index_that_cannot_be_read_is_refused(saved, reader):
    folder = saved(make_tiny("llama-8q4kv"), max_shard_size="100KB")
    (folder / "model.safetensors.index.json").write_bytes(LFS_POINTER)
    with pytest.raises(InputError, match="dense"):
        READERS[reader](folder)


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_offloaded_layers_come_from_the_model_s_own_files(saved, tokens, tmp_path, max_shard_size):
    """Shards of another save and copies of other weights are ignored, as in Transformers."""
    model, folder = make_tiny("llama-8q4kv"), tmp_path / "dense"
    make_tiny("llama-8q4kv", seed=1).save_pretrained(folder, max_shard_size="80KB")
    (folder / "model.safetensors.index.json").unlink()
    make_tiny("llama-8q4kv", seed=2).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder / "zz_consolidated.safetensors")
    shards = {file.name: file.read_bytes() for file in folder.glob("model-*.safetensors")}
    saved(model, max_shard_size=max_shard_size)  # transformers clears shards it does not write
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    assert torch.equal(READERS["resident"](folder)(tokens).logits, model(tokens).logits)
    assert torch.equal(READERS["offloaded"](folder)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_the_hub_is_asked_for_the_files_that_are_read_and_no_other_copy(saved, monkeypatch, max_shard_size):
    """Mistral-7B-v0.3 ships its weights a second time in consolidated.safetensors."""
    folder, asked = saved(make_tiny("llama-8q4kv"), max_shard_size=max_shard_size), []
    own = {file.name for file in folder.glob("*.safetensors")}
    shutil.copy(folder / min(own), folder / "consolidated.safetensors")

    def snapshot_download(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    source = dataclasses.replace(inspect_model(str(folder)), name="some/model")
    load_offloaded(source, "float32", "cpu")
    assert set(asked) == {"model.safetensors", "model.safetensors.index.json", *own}


def with_own_head(folder, change):
    """Give the checkpoint of a tied model an ``lm_head.weight``: the embedding, changed."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = change(tensors["model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_a_head_of_its_own_is_refused_where_the_config_says_tied(saved, reader):
    """Saved again, such a model would lose its head."""
    folder = with_own_head(saved(make_tiny("llama-9q3kv-tied")), lambda embedding: embedding + 1)
    with pytest.raises(InputError, match=r"tie_word_embeddings.*own.*config\.json"):
        READERS[reader](folder)
    edit_config(folder, tie_word_embeddings=False)
    model = READERS[reader](folder)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight + 1)


@pytest.mark.parametrize("reader", READERS)
def test_a_tied_head_that_is_stored_too_is_the_embedding(saved, tokens, reader):
    """Many checkpoints store the tied head too."""
    model = make_tiny("llama-9q3kv-tied")
    loaded = READERS[reader](with_own_head(saved(model), torch.clone))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_surgery_does_not_drop_a_head_of_its_own():
    model = make_tiny("llama-9q3kv-tied")
    plan = mixed_plan(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    with pytest.raises(InputError, match="tie_word_embeddings"):
        apply_plan(model, plan)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_tokenizer_is_the_models_own_whatever_its_class(saved, tokenizer):
    """AutoTokenizer alone chooses the class; no pad token is added and nothing is resized."""
    folder = saved(make_tiny("llama-8q4kv"))
    read = load_tokenizer(str(folder))
    assert read.pad_token_id is None
    assert len(read) == len(tokenizer)
    assert read("plain text")["input_ids"] == tokenizer("plain text")["input_ids"]


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    make_tiny("llama-8q4kv").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="tokenizer files"):
        load_tokenizer(str(tmp_path))


def test_a_config_that_contradicts_itself_is_refused(saved):
    folder = saved(make_tiny("llama-8q4kv"))
    edit_config(folder, num_attention_heads=7)
    with pytest.raises(InputError, match="num_attention_heads 7"):
        inspect_model(str(folder))


def test_a_gguf_file_is_the_model_it_was_made_from(tmp_path, tokens):
    """The dequantised model computes the same and can be pruned and saved like any other."""
    model = make_tiny("llama-8q4kv")
    path = tmp_path / "tiny.gguf"
    write_gguf(model, path)
    source = inspect_model(str(path))
    assert source.is_gguf
    assert source.geometry == geometry_of(model)
    loaded = load_dense(source, "float32", "cpu")
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert not hasattr(loaded.config, "quantization_config")
    pruned = apply_plan(loaded, mixed_plan(model))
    pruned.save_pretrained(tmp_path / "pruned")
    assert (tmp_path / "pruned" / "model.safetensors").is_file()


def test_a_gguf_with_more_layers_than_its_header_says_is_refused(tmp_path):
    model = make_tiny("llama-8q4kv")
    model.config.num_hidden_layers = 2
    write_gguf(model, tmp_path / "tiny.gguf")
    with pytest.raises(InputError, match=r"9 more, such as blk\.2\.attn_k\.weight"):
        load_dense(inspect_model(str(tmp_path / "tiny.gguf")), "float32", "cpu")


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(InputError, match=r"broken\.gguf"):
        inspect_model(str(path))


@pytest.mark.parametrize("tokenizer_model", [None, "llama"])
def test_a_gguf_without_a_tokenizer_is_refused(tmp_path, tokenizer_model):
    path = tmp_path / "tiny.gguf"
    optional = {} if tokenizer_model is None else {"tokenizer_model": tokenizer_model}
    write_gguf(make_tiny("llama-8q4kv"), path, **optional)
    with pytest.raises(InputError, match=r"a tokenizer in '.*tiny\.gguf'"):
        load_tokenizer(str(path))


def test_a_gguf_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda *_args: False)
    path = tmp_path / "tiny.gguf"
    write_gguf(make_tiny("llama-8q4kv"), path)
    for read in (load_tokenizer, inspect_model):
        with pytest.raises(InputError, match=r"'\.\[gguf\]'"):
            read(str(path))
