"""A DeciLM folder computes the same as the checkpoint, in sizes that its engines read."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import TINY
from exporting import PLANS, exported, plan_named, pruned_folder
from hgsp.errors import InputError, NumericalError
from hgsp.exports.decilm import padded_config
from hgsp.exports.folder_check import check_tensors
from hgsp.exports.hf_folder import write_folder
from hgsp.exports.inventory import shapes_of, skeleton_of
from hgsp.exports.nemotron_nas import nemotron_nas
from hgsp.exports.source import read_source
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.pruning.surgery import apply_plan

SUPPORTED = [name for name in TINY if not name.startswith("qwen3")]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def checkpoint(make, tokenizer, tmp_path):
    def write(name="llama-8q4kv", plan="non-uniform", **changes):
        return pruned_folder(make(name, **changes), plan, tokenizer, tmp_path / "pruned")

    return write


def as_our_llama(folder):
    """The exported tensors in our own Llama, whose layers get the sizes that ``block_configs`` says."""
    config = json.loads((folder / "config.json").read_text())
    num_queries, per_layer = config["num_attention_heads"], {}
    for index, block in enumerate(config["block_configs"]):
        sizes, skip = {}, []
        if block["attention"]["no_op"]:
            skip.append("attention")
        else:
            group = block["attention"]["n_heads_in_group"]
            sizes |= {"num_attention_heads": num_queries, "num_key_value_heads": num_queries // group}
        if block["ffn"]["no_op"]:
            skip.append("mlp")
        else:  # as the engines compute it
            width = int(2 * block["ffn"]["ffn_mult"] * config["hidden_size"] / 3)
            sizes["intermediate_size"] = width if width % 256 == 0 else width + 256 - width % 256
        per_layer[index] = sizes | ({"skip": skip} if skip else {})
    known = {key: value for key, value in config.items() if key not in ("block_configs", "model_type", "auto_map")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("hgsp_llama", **known, per_layer_config=per_layer))
    report = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not report.unexpected_keys
    assert report.missing_keys in ([], ["lm_head.weight"])
    model.tie_weights()
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.parametrize("plan", PLANS)
def test_the_padded_model_computes_the_same(checkpoint, tokens, name, plan):
    folder = checkpoint(name, plan)
    written = exported(folder, "decilm", self_check=False)
    expected = load_pruned(folder)(tokens).logits
    torch.testing.assert_close(as_our_llama(written.folder)(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_biases_that_a_refit_adds_have_a_place(make, tokenizer, tmp_path, tokens):
    """vLLM and mlx-lm have one switch for all biases of a block, so those that are missing are zeros."""
    model = make("qwen2-14q2kv")
    plan = dataclasses.replace(plan_named(model, "non-uniform"), writer_bias=True)
    pruned = apply_plan(model, plan)
    for layer in pruned.model.layers:
        layer.self_attn.o_proj.bias.normal_(std=0.1)
        layer.mlp.down_proj.bias.normal_(std=0.1)
    (tmp_path / "biased").mkdir()
    save_pruned(pruned, tokenizer, tmp_path / "biased", with_bin=False)
    written = exported(tmp_path / "biased", "decilm")
    torch.testing.assert_close(as_our_llama(written.folder)(tokens).logits, pruned(tokens).logits, rtol=1e-4, atol=1e-4)
    assert not any("trtllm" in line for line in written.serve)
    assert "TensorRT-LLM: no" in " ".join(written.exported.notes)


def test_the_self_check_reports_tensors_and_log_probabilities(checkpoint):
    checks = exported(checkpoint(), "decilm").exported.checks
    assert "tensors equal the checkpoint's" in checks[0]
    assert checks[1].startswith("Transformers: log-probabilities of 31 tokens equal")
    assert "vLLM" in checks[2]


def test_a_damaged_export_fails_the_check(checkpoint, tmp_path):
    source = read_source(checkpoint())
    layout = nemotron_nas(source, shapes_of(skeleton_of(source)), 8)
    tensors = layout.tensors()
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", source, tensors, layout.config())
    assert check_tensors(tmp_path / "out", tensors, source)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][-1, -1] = 1  # a padded row
    save_file(weights, tmp_path / "out" / "model.safetensors")
    with pytest.raises(NumericalError, match="q_proj"):
        check_tensors(tmp_path / "out", tensors, source)


def test_weights_are_written_in_shards(checkpoint, tmp_path):
    source = read_source(checkpoint())
    layout = nemotron_nas(source, shapes_of(skeleton_of(source)), 8)
    (tmp_path / "out").mkdir()
    files = write_folder(tmp_path / "out", source, layout.tensors(), layout.config(), max_shard_bytes=200_000)
    shards = [file for file in files if file.suffix == ".safetensors"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 2
    assert set(index["weight_map"].values()) == {file.name for file in shards}
    assert check_tensors(tmp_path / "out", layout.tensors(), source)


def test_the_config_travels_and_reads_as_attributes(checkpoint):
    folder = exported(checkpoint(plan="attention gone"), "decilm", self_check=False).folder
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.model_type == "nemotron-nas"
    assert config.block_configs[1].attention.no_op
    assert config.block_configs[1].attention.n_heads_in_group is None
    assert not hasattr(config.block_configs[0].ffn, "intermediate_size")
    assert config.sliding_window is None
    config.save_pretrained(folder / "again")
    again = AutoConfig.from_pretrained(folder / "again", trust_remote_code=True)
    assert again.block_configs == config.block_configs


def test_a_first_layer_without_attention_gets_a_head_of_zeros(checkpoint):
    folder = exported(checkpoint(plan="first attention gone"), "decilm", self_check=False).folder
    config = json.loads((folder / "config.json").read_text())
    assert config["block_configs"][0]["attention"]["n_heads_in_group"] == config["num_attention_heads"]
    assert not load_file(folder / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"].any()


def test_equal_groups_in_every_layer_need_no_padded_heads(checkpoint):
    written = exported(checkpoint(plan="uniform"), "decilm", self_check=False)
    config = json.loads((written.folder / "config.json").read_text())
    assert config["num_attention_heads"] == 4  # two groups of two
    assert "MLX: no" in " ".join(written.exported.notes)
    assert not any("mlx_lm" in line for line in written.serve)


def test_the_cost_of_padding_is_counted_on_the_files(checkpoint):
    folder = checkpoint()
    written = exported(folder, "decilm", self_check=False)
    before, after = (
        sum(tensor.numel() for tensor in load_file(place / "model.safetensors").values())
        for place in (folder, written.folder)
    )
    assert (
        f"adds {after - before:,} parameters ({(after - before) / before:.1%} of {before:,})"
        in written.exported.notes[0]
    )
    assert "288 bytes before, 320 after" in written.exported.notes[0]  # 2 + 4 + 3 heads, then 2 + 4 + 4


@pytest.mark.parametrize("rope", [LLAMA3, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}])
def test_rope_settings_are_written_for_old_and_new_readers(checkpoint, rope):
    folder = exported(checkpoint(rope_parameters=rope), "decilm").folder
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"] == rope
    assert config["rope_theta"] == rope["rope_theta"]
    assert config["rope_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}


def test_tokenizer_files_are_copied_byte_for_byte(checkpoint):
    folder = checkpoint()
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    written = exported(folder, "decilm", self_check=False).folder
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (written / name).read_bytes() == (folder / name).read_bytes()


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def with_another_weight(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.1.mlp.up_proj.bias": torch.zeros(96)}, folder / "model.safetensors")


def of_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(63)
    save_file(weights, folder / "model.safetensors")


def without_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_tokenizer, "tokenizer files"),
        (without_a_weight, "1 missing, such as model.layers.1.mlp.up_proj.weight"),
        (with_another_weight, "model.layers.1.mlp.up_proj.bias"),
        (of_another_shape, r"model.norm.weight of shape \[63\]"),
        (without_weights, "neither"),
    ],
)
@pytest.mark.parametrize("target", ["decilm", "mlx", "stock"])
def test_a_broken_checkpoint_is_refused_and_nothing_is_written(checkpoint, tmp_path, damage, message, target):
    folder = checkpoint(plan="uniform")
    damage(folder)
    with pytest.raises(InputError, match=message):
        exported(folder, target)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


@pytest.mark.parametrize("target", ["decilm", "mlx", "stock"])
def test_a_full_disk_is_noticed_before_writing(checkpoint, tmp_path, monkeypatch, target):
    folder = checkpoint(plan="uniform")
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("hgsp.console.disk.shutil.disk_usage", lambda _folder: usage)
    with pytest.raises(InputError, match=r"free disk for the weights; got 100 kB"):
        exported(folder, target)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_other_blocks_are_refused_with_what_works_instead(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"norms of queries and keys.*--to mlx"):
        exported(checkpoint("qwen3-8q2kv"), "decilm")
    shutil.rmtree(tmp_path / "pruned")
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(InputError, match=r"rotary frequencies.*dynamic"):
        exported(checkpoint(plan="uniform", rope_parameters=dynamic), "decilm")


def test_the_config_for_our_own_llama_describes_the_written_tensors(checkpoint):
    source = read_source(checkpoint(plan="MLP gone"))
    layout = nemotron_nas(source, shapes_of(skeleton_of(source)), 8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(padded_config(layout))
    assert shapes_of(model) == {name: tensor.shape for name, tensor in layout.tensors().items()}
