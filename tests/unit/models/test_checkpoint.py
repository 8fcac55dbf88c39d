"""The checkpoint: every reader loads exactly the saved model, and nothing pickled is ever executed."""

import copy
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from conftest import TINY
from hgsp.errors import InputError
from hgsp.models import modeling_hgsp
from hgsp.models.checkpoint import (
    load_pruned,
    load_tokenizer_of,
    save_bin_streamed,
    save_pruned,
    save_streamed,
)
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model
from hgsp.models.pruned_bin import BIN_NAME
from hgsp.pruning.plan import LayerKeep
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping, plan_of

CHAT_TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pruned").mkdir()
    return tmp_path / "pruned"


@pytest.fixture
def write(make, tokenizer, folder):
    """``write(name)`` prunes a tiny model, saves it into ``folder`` and returns it."""

    def prune_and_save(name="llama-8q4kv", **changes):
        model = make(name, **changes)
        pruned = apply_plan(model, mixed_plan(model))
        save_pruned(pruned, tokenizer, folder)
        return pruned

    return prune_and_save


def stored(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@pytest.mark.parametrize("name", TINY)
def test_the_folder_loads_like_any_model_bit_equal(write, folder, tokens, name):
    """With hgsp imported the plain call needs no trust_remote_code; no key is missing or misshapen."""
    expected = write(name)(tokens).logits
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(model(tokens).logits, expected)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("reader", ["bin", "folder", "folder as text"])
def test_every_reader_takes_bin_and_folder(write, folder, tokens, name, reader):
    expected = write(name)(tokens).logits
    model = load_pruned({"bin": folder / BIN_NAME, "folder": folder, "folder as text": str(folder)}[reader])
    assert torch.equal(model(tokens).logits, expected)
    assert not model.training


def test_a_plain_hugging_face_folder_is_read_too(make, saved, tokens):
    model = make("llama-8q4kv")
    expected = model(tokens).logits
    assert torch.equal(load_pruned(saved(model))(tokens).logits, expected)


def test_a_moved_bin_is_self_contained(write, folder, tokens, tokenizer, tmp_path):
    """Model, generation config and tokenizer come from the file alone, after its folder is deleted."""
    pruned = write()
    moved = tmp_path / "elsewhere" / "renamed.bin"
    moved.parent.mkdir()
    shutil.move(folder / BIN_NAME, moved)
    shutil.rmtree(folder)
    loaded = load_pruned(moved)
    assert torch.equal(loaded(tokens).logits, pruned(tokens).logits)
    assert loaded.generation_config.to_dict() == pruned.generation_config.to_dict()
    text = "Ünïcode and a\nnew line"
    assert load_tokenizer_of(moved)(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_bin_and_folder_give_the_same_model(write, folder, tokens, dtype):
    """Down to what no stored tensor tells: rotary frequencies stay float32, and all can be trained.

    The latter costs speed too: for a frozen head torch copies the weight once per sequence of a batch in prefill.
    """
    write()
    both = [load_pruned(path, dtype=dtype) for path in (folder / BIN_NAME, folder)]
    facts = [
        [(name, tensor.dtype, tensor.requires_grad) for name, tensor in (*m.named_parameters(), *m.named_buffers())]
        for m in both
    ]
    assert facts[0] == facts[1]
    assert {dtype for _, dtype, trainable in facts[0] if trainable} == {dtype or torch.float32}
    assert both[0].config.dtype == both[1].config.dtype == both[0].dtype
    assert torch.equal(both[0](tokens).logits, both[1](tokens).logits)


def test_the_bin_holds_tensors_and_plain_values_only(write, folder):
    """PyTorch's safe loader accepts the file, which holds only dicts, strings and tensors."""
    pruned = write()
    content = torch.load(folder / BIN_NAME, weights_only=True)
    assert set(content) == {"format", "config", "generation_config", "tokenizer_files", "state_dict"}
    assert all(type(content[name]) is str for name in ("format", "config", "generation_config"))
    assert content["state_dict"].keys() == pruned.state_dict().keys()
    assert all(torch.equal(tensor, content["state_dict"][name]) for name, tensor in pruned.state_dict().items())


def test_no_bin_leaves_only_what_holds_no_code_but_ours(make, tokenizer, folder):
    """The folder holds safetensors, JSON and tokenizer files, and our modelling file byte for byte."""
    model = make("llama-8q4kv")
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, folder, with_bin=False)
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".jinja", ".py"}
    (code,) = folder.glob("*.py")
    assert code.read_bytes() == Path(modeling_hgsp.__file__).read_bytes()


class Bomb:
    """An object that creates a folder when unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("read", [load_pruned, load_tokenizer_of])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_pickled_objects_are_refused_and_never_executed(tmp_path, read, suffix):
    bomb = tmp_path / f"model{suffix}"
    torch.save({"format": "hgsp-checkpoint-1", "model": Bomb(tmp_path / "exploded")}, bomb)
    with pytest.raises(InputError, match="pickled objects are never executed"):
        read(bomb)
    assert not (tmp_path / "exploded").exists()
    torch.load(bomb, weights_only=False)  # the bomb is live
    assert (tmp_path / "exploded").exists()


def test_a_pickled_model_is_refused(make, tmp_path):
    """Other pruning tools save whole pickled models."""
    torch.save(make("llama-8q4kv"), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="refuses to load safely"):
        load_pruned(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, {"format": "something-else"}, [1, 2]])
def test_a_bin_that_is_not_ours_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.bin")
    with pytest.raises(InputError, match=r"a pruned_model\.bin written by this tool"):
        load_pruned(tmp_path / "other.bin")


@pytest.mark.parametrize("path", ["nothing.bin", "no/such/folder"])
def test_a_path_where_nothing_is_says_so(tmp_path, path):
    with pytest.raises(InputError, match=path.rpartition("/")[2]):
        load_pruned(tmp_path / path)


def test_a_truncated_bin_is_refused(write, folder):
    write()
    whole = (folder / BIN_NAME).read_bytes()
    (folder / BIN_NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError):
        load_pruned(folder / BIN_NAME)


def test_a_bin_with_a_weight_missing_is_refused(write, folder):
    write()
    content = torch.load(folder / BIN_NAME, weights_only=True)
    del content["state_dict"]["model.norm.weight"]
    torch.save(content, folder / BIN_NAME)
    with pytest.raises(InputError, match=r"1 missing, such as model\.norm\.weight"):
        load_pruned(folder / BIN_NAME)


def test_a_folder_with_a_weight_missing_is_refused_and_never_filled_at_random(write, folder):
    write()
    tensors = stored(folder)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        load_pruned(folder)


def test_weights_of_another_shape_than_the_config_says_are_refused(write, folder):
    """ignore_mismatched_sizes would fill pruned layers with random weights."""
    write()
    tensors = stored(folder)
    key = "model.layers.0.mlp.up_proj.weight"
    tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="another shape"):
        load_pruned(folder)


def test_tied_head_is_stored_once_and_tied_again_by_every_reader(write, folder):
    write("llama-9q3kv-tied")
    assert "lm_head.weight" not in stored(folder)
    for path in (folder, folder / BIN_NAME):
        loaded = load_pruned(path)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight, path.name


def test_untied_head_is_stored_beside_the_embedding(write, folder):
    write("llama-8q4kv")
    tensors = stored(folder)
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", TINY)
def test_reached_parameters_are_the_sum_of_the_stored_shapes(make, tokenizer, folder, name):
    """Geometry arithmetic, the model's parameters and the values in the file give one number."""
    model = make(name)
    geometry, plan = geometry_of(model), mixed_plan(model)
    save_pruned(apply_plan(model, plan), tokenizer, folder, with_bin=False)
    in_file = sum(tensor.numel() for tensor in stored(folder).values())
    assert in_file == geometry.total_params - plan.removed_params


def test_what_the_user_had_is_still_there(make, tokenizer, folder):
    """bf16 in config and tensors, use_cache, token ids, generation config, tokenizer and chat template survive."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = make("llama-8q4kv", use_cache=False, pad_token_id=7, eos_token_id=[257, 5]).bfloat16()
    model.generation_config.top_p, model.generation_config.do_sample = 0.8, True
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, folder)
    assert {tensor.dtype for tensor in stored(folder).values()} == {torch.bfloat16}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["use_cache"] is False
    assert (config["pad_token_id"], config["eos_token_id"], config["bos_token_id"]) == (7, [257, 5], 256)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    assert (loaded.generation_config.top_p, loaded.generation_config.do_sample) == (0.8, True)
    for read in (AutoTokenizer.from_pretrained(folder), load_tokenizer_of(folder / BIN_NAME)):
        assert read.chat_template == CHAT_TEMPLATE
        assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (256, 257, None)
        assert len(read) == len(tokenizer)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_bin_has_every_chat_template(make, tokenizer, folder, streamed):
    """Transformers stores every template but the default in a separate folder."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": f"tools: {CHAT_TEMPLATE}"}
    model = make("llama-8q4kv")
    save_pruned(model, tokenizer, folder)
    if streamed:
        save_bin_streamed(model, model.state_dict().__getitem__, folder)
    assert load_tokenizer_of(folder / BIN_NAME).chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["../escaped.json", "additional_chat_templates/../../escaped.json"])
def test_a_bin_puts_tokenizer_files_nowhere_else(write, folder, tmp_path, monkeypatch, name):
    write()
    content = torch.load(folder / BIN_NAME, weights_only=True)
    content["tokenizer_files"][name] = torch.zeros(1, dtype=torch.uint8)
    torch.save(content, folder / BIN_NAME)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with pytest.raises(InputError, match=r"tokenizer_files has '.*escaped\.json', which is no name"):
        load_tokenizer_of(folder / BIN_NAME)
    assert not list(tmp_path.rglob("escaped.json"))


def test_head_dim_is_always_written(write, folder):
    """Qwen2Config has no such field and would derive a wrong value."""
    write("qwen2-14q2kv")
    assert json.loads((folder / "config.json").read_text())["head_dim"] == 8


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_stock_results_have_rope_settings_for_old_readers_too(make, tokenizer, folder):
    """transformers 4 drops rope_parameters silently and with it Llama-3's scaling."""
    model = make("llama-8q4kv", rope_parameters=LLAMA3_ROPE)
    keep = LayerKeep((0, 1, 2, 3), tuple(range(40)))
    save_pruned(apply_plan(model, plan_of(geometry_of(model), [keep] * 3)), tokenizer, folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["rope_parameters"] == LLAMA3_ROPE
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}


def test_our_own_class_needs_rope_settings_once(write, folder, tokens):
    """It reads them in every version; beside them ``rope_scaling`` made AutoTokenizer fail without hgsp."""
    expected = write("llama-8q4kv", rope_parameters=LLAMA3_ROPE)(tokens).logits
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"] == LLAMA3_ROPE
    assert not {"rope_theta", "rope_scaling"} & set(config)
    PreTrainedConfig.from_pretrained(folder)  # AutoTokenizer's last resort
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": scaling}))
    older = AutoModelForCausalLM.from_pretrained(folder)  # as earlier versions of hgsp wrote it
    assert torch.equal(older(tokens).logits, expected)


@pytest.mark.parametrize("version", [(4, 57), (5, 23)])
def test_the_config_gives_each_version_the_rope_settings_it_reads(monkeypatch, version):
    given = {}
    monkeypatch.setattr(modeling_hgsp, "VERSION", version)
    monkeypatch.setattr(PreTrainedConfig, "from_dict", lambda settings, **_kwargs: given.update(settings))
    modeling_hgsp.HgspLlamaConfig.from_dict({"rope_parameters": LLAMA3_ROPE, "hidden_size": 64})
    assert given["rope_parameters"] == LLAMA3_ROPE
    if version < (5, 0):
        assert given["rope_theta"] == 5e5
        assert given["rope_scaling"]["rope_type"] == "llama3"
        modeling_hgsp.HgspLlamaConfig.from_dict({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
        assert (given["rope_theta"], given["rope_scaling"]) == (1e4, None)
    else:
        assert "rope_scaling" not in given


def test_layers_of_one_shape_need_neither_our_class_nor_our_file(make, tokenizer, folder, tokens):
    model = make("qwen2-14q2kv")
    pruned = apply_plan(model, plan_of(geometry_of(model), [LayerKeep((1,), tuple(range(50)))] * 3))
    save_pruned(pruned, tokenizer, folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert not {"auto_map", "per_layer_config"} & set(config)
    assert not list(folder.glob("*.py"))
    assert torch.equal(load_pruned(folder / BIN_NAME)(tokens).logits, pruned(tokens).logits)


def test_ten_layers_or_more_load_bit_equal(make, tokenizer, folder, tokens):
    model = make("llama-8q4kv", num_hidden_layers=11)
    pruned = apply_plan(model, mixed_plan(model))
    save_pruned(pruned, tokenizer, folder, with_bin=False)
    numbers = json.loads((folder / "config.json").read_text())["per_layer_config"]
    assert {"0", "00"} & numbers.keys()  # newer versions of transformers pad them
    assert torch.equal(load_pruned(folder)(tokens).logits, pruned(tokens).logits)


def test_layers_of_several_shapes_say_how_to_load_them(write, folder):
    write()
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "hgsp_llama"
    assert config["auto_map"] == {
        "AutoConfig": "modeling_hgsp.HgspLlamaConfig",
        "AutoModel": "modeling_hgsp.HgspLlamaModel",
        "AutoModelForCausalLM": "modeling_hgsp.HgspLlamaForCausalLM",
        "AutoModelForSequenceClassification": "modeling_hgsp.HgspLlamaForSequenceClassification",
    }


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
@pytest.mark.parametrize("shard_bytes", [10**9, 100_000])
def test_device_map_and_shards_load_equal(make, tokenizer, folder, tokens, device_map, shard_bytes):
    pytest.importorskip("accelerate", reason="transformers needs it for device_map")
    model = make("llama-8q4kv")
    pruned = apply_plan(model, mixed_plan(model))
    state = pruned.state_dict()
    save_streamed(pruned, state.__getitem__, tokenizer, folder, pruned.generation_config, shard_bytes)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 1 if shard_bytes == 10**9 else len(files) >= 3
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)
    assert torch.equal(loaded(tokens).logits, pruned(tokens).logits)


def test_shards_hold_at_most_what_was_asked_and_the_index_tells_the_truth(make, tokenizer, folder):
    model = make("llama-9q3kv-tied")
    pruned = apply_plan(model, mixed_plan(model))
    save_streamed(pruned, pruned.state_dict().__getitem__, tokenizer, folder, None, 80_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    sizes = []
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        assert {index["weight_map"][name] for name in tensors} == {file.name}
    assert max(sizes) <= 80_000
    assert sum(sizes) == index["metadata"]["total_size"]


@pytest.mark.parametrize("name", TINY)
def test_a_bin_written_tensor_by_tensor_equals_one_written_at_once(write, folder, tokens, name):
    """The file's layout is PyTorch's own; this test breaks if PyTorch changes it."""
    pruned = write(name)
    at_once = torch.load(folder / BIN_NAME, weights_only=True)
    (folder / BIN_NAME).unlink()
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(pruned.config, dtype=pruned.dtype)
    save_bin_streamed(skeleton, pruned.state_dict().__getitem__, folder)
    streamed = torch.load(folder / BIN_NAME, weights_only=True)
    for part in ("state_dict", "tokenizer_files"):
        assert list(streamed[part]) == list(at_once[part])
        assert all(torch.equal(streamed[part][key], at_once[part][key]) for key in at_once[part])
    assert [streamed[key] for key in ("format", "config", "generation_config")] == [
        at_once[key] for key in ("format", "config", "generation_config")
    ]
    assert torch.equal(load_pruned(folder / BIN_NAME)(tokens).logits, pruned(tokens).logits)


def test_files_are_readable_by_others(write, folder):
    write()
    assert all(path.stat().st_mode & stat.S_IROTH for path in folder.iterdir())


def test_a_llama_that_became_a_mistral_can_be_pruned_again(make, tokenizer, folder):
    """A Mistral with a sliding window, its config class's default, would be refused."""
    model = make("llama-8q4kv")
    save_pruned(apply_plan(model, plan_dropping(model, kv={i: [1] for i in range(3)})), tokenizer, folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "mistral"
    assert inspect_model(str(folder)).config.sliding_window is None


def test_a_generation_config_that_is_not_strict_survives_the_bin_and_saving_again(make, tokenizer, tmp_path):
    """Some published models set a temperature without sampling, which Transformers refuses to save."""
    model = make("llama-8q4kv")
    model.generation_config.temperature = 0.6
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, tmp_path / "once")
    save_pruned(load_pruned(tmp_path / "once" / "pruned_model.bin"), tokenizer, tmp_path / "again")
    assert load_pruned(tmp_path / "again").generation_config.temperature == 0.6
