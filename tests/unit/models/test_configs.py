"""The gate for config.json: what cannot become a model is one refusal with key and value, whatever a library raises."""

import json
import sys

import pytest
from transformers import AutoConfig

from conftest import TINY, make_tiny
from hgsp.errors import InputError
from hgsp.models.checkpoint import config_of, load_pruned, save_pruned
from hgsp.models.configs import describe, read_generation_config
from hgsp.models.loading import inspect_model
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory):
    """A folder without weights: nothing below may need them."""
    folder = tmp_path_factory.mktemp("dense")
    make_tiny("llama-8q4kv").config.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(dense_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((dense_folder / "config.json").read_bytes())
    return tmp_path


def edit(folder, file="config.json", **changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


def refusal_of(read, folder):
    with pytest.raises(InputError) as refusal:
        read(str(folder))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


#: Edits of config.json: the key that a refusal names, and its value.
EDITS = [
    ("hidden_act", "swiglu2"),
    ("hidden_act", ["silu"]),
    ("hidden_act", "nan"),
    ("rope_parameters", {"rope_type": "ntk", "rope_theta": 10000.0}),
    ("rope_parameters", {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}),
    ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 0.0}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 10**40}),
    ("rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": "2"}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
    ("rope_parameters", [1]),
    ("rope_scaling", {"type": "ntk", "factor": 2.0}),
    ("head_dim", 0),
    ("head_dim", 7),
    ("head_dim", 2**40),
    ("hidden_size", 64.5),
    ("hidden_size", "64"),
    ("hidden_size", -64),
    ("hidden_size", True),
    ("intermediate_size", 10**30),
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", 1_001),  # as many layers take half a minute to build
    ("num_hidden_layers", 0),
    ("num_attention_heads", [8]),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", 0),
    ("vocab_size", 2**63),
    ("vocab_size", float("nan")),
    ("max_position_embeddings", -1),
    ("rms_norm_eps", float("inf")),
    ("rms_norm_eps", -1.0),
    ("attention_dropout", 2),
    ("initializer_range", "0.02"),
    ("pad_token_id", 10**6),
    ("eos_token_id", "</s>"),
    ("eos_token_id", [1, "2"]),
    ("dtype", "x"),
    ("dtype", "int8"),
    ("dtype", 16),
    ("tie_word_embeddings", "yes"),
    ("attention_bias", 1),
    ("per_layer_config", [1]),
    ("per_layer_config", {"0": {"num_attention_heads": 0}}),
    ("per_layer_config", {"0": {"intermediate_size": 32}}),
    ("per_layer_config", {"9": {"intermediate_size": 32}}),
    ("architectures", "LlamaForCausalLM"),
    ("id2label", {"x": "y"}),
    ("layer_types", ["full_attention"]),
    ("to_dict", 1),
    ("__class__", "x"),
    ("num_labels", "two"),
    ("num_labels", 10**9),
]


@pytest.mark.parametrize(("key", "value"), EDITS, ids=[f"{key}-{number}" for number, (key, _) in enumerate(EDITS)])
def test_a_setting_that_no_model_can_have_is_refused_with_key_and_value(folder, key, value):
    edit(folder, **{key: value})
    said = refusal_of(config_of, folder)
    assert key in said
    innermost = value if not isinstance(value, (dict, list)) else None
    if innermost is not None:
        assert json.dumps(innermost)[:40] in said


FILES = {
    "no JSON": b"{'hidden_size': 64}",
    "a list": b"[]",
    "null": b"null",
    "a string": b'"llama"',
    "no UTF-8": b'{"model_type": "\xff"}',
    "broken off": b'{"model_type": "llama", ',
    "empty": b"",
    "nested too deep": b"[" * 100_000,
    "a number of 5000 digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    "no model type": b"{}",
    "a list as model type": b'{"model_type": ["llama"]}',
}


@pytest.mark.parametrize("content", FILES)
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(FILES[content])
    for read in (inspect_model, config_of):
        assert refusal_of(read, tmp_path).startswith("expected ")


def test_code_of_an_unknown_model_never_runs_and_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (tmp_path / "configuration_x.py").write_text("raise SystemExit('code of the folder ran')\n")
    auto_map = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "configuration_x.Y"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": auto_map}))
    assert "unsupported architecture 'x'" in refusal_of(inspect_model, tmp_path)
    assert "no code" in refusal_of(config_of, tmp_path)
    assert "configuration_x" not in sys.modules


@pytest.mark.parametrize("auto_map", [{"AutoConfig": "x.X", "AutoModelForCausalLM": "x.Y"}, 1, {"AutoConfig": [1]}, []])
def test_code_beside_a_known_model_is_ignored(folder, auto_map):
    edit(folder, auto_map=auto_map)
    (folder / "x.py").write_text("raise SystemExit('code of the folder ran')\n")
    assert not hasattr(inspect_model(str(folder)).config, "auto_map")


@pytest.mark.parametrize(
    "key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_experts_implementation"]
)
def test_no_kernel_is_asked_for_from_the_hub(folder, key, monkeypatch):
    monkeypatch.setattr("transformers.integrations.hub_kernels.load_and_register_attn_kernel", pytest.fail)
    edit(folder, **{key: "kernels-community/flash-attn"})
    found = describe(folder)
    assert found.skeleton.config._attn_implementation == "sdpa"


def test_settings_of_how_to_run_a_model_are_not_taken_from_its_folder(folder):
    edit(folder, return_dict=False, output_attentions=True, output_hidden_states=True, transformers_weights="../x")
    config = config_of(folder)
    assert config.return_dict
    assert not config.output_hidden_states
    assert not hasattr(config, "transformers_weights")


@pytest.mark.parametrize("name", TINY)
def test_a_config_is_the_one_that_transformers_reads(tmp_path, name):
    make_tiny(name).config.save_pretrained(tmp_path)
    assert config_of(tmp_path).to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    assert config_of(tmp_path).name_or_path == str(tmp_path)


@pytest.fixture
def pruned_folder(tmp_path, tokenizer):
    model = make_tiny("llama-8q4kv")
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, tmp_path)
    return tmp_path


PRUNED_EDITS = [
    ("per_layer_config", None),
    ("per_layer_config", {"0": {"skip": "attention"}}),
    ("per_layer_config", {"0": {"skip": [["mlp"]]}}),
    ("per_layer_config", {"x": {}}),
    ("per_layer_config", {"0": 1}),
    ("per_layer_config", {"0": {"num_attention_heads": 3, "num_key_value_heads": 2}}),
    ("tie_word_embeddings", 3),
    ("intermediate_size", "x"),
    ("hidden_act", "nan"),
    ("rope_parameters", {"rope_theta": "x", "rope_type": "default"}),
    ("head_dim", 10**12),
    ("model_type", None),
    ("model_type", ["hgsp_llama"]),
]


@pytest.mark.parametrize(
    ("key", "value"), PRUNED_EDITS, ids=[f"{key}-{number}" for number, (key, _) in enumerate(PRUNED_EDITS)]
)
def test_so_is_a_setting_of_a_pruned_model(pruned_folder, key, value):
    edit(pruned_folder, **{key: value})
    assert refusal_of(load_pruned, pruned_folder).startswith("expected ")


GENERATION = [{"eos_token_id": "x"}, {"pad_token_id": 1.5}, {"to_dict": 1}, {"bos_token_id": [1, None]}]


@pytest.mark.parametrize("settings", GENERATION, ids=lambda settings: next(iter(settings)))
def test_a_wrong_generation_config_is_refused_by_key(folder, settings):
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert next(iter(settings)) in refusal_of(describe, folder)


@pytest.mark.parametrize("layer_types", [5, [[1]], {"a": 1}, "x"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "x"])
def test_an_unsupported_model_with_wrong_settings_is_refused(tmp_path, model_type, layer_types):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "layer_types": layer_types}))
    assert refusal_of(inspect_model, tmp_path).startswith("expected ")


@pytest.mark.parametrize("content", ["[]", "{", "null", '"x"'])
def test_a_generation_config_that_is_no_object_is_refused(folder, content):
    (folder / "generation_config.json").write_text(content)
    assert "generation_config.json" in refusal_of(read_generation_config, folder)


def test_a_folder_without_a_generation_config_has_none(folder):
    assert read_generation_config(folder) is None
