"""The modelling file that travels with a checkpoint: self-contained, and stock where layers are stock."""

import ast
import copy
import sys
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    LlamaConfig,
)

from conftest import TINY
from hgsp.models import modeling_hgsp
from hgsp.models.checkpoint import save_pruned
from hgsp.models.families import FAMILIES, family_of
from hgsp.models.family_classes import classes_of, is_installed
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping

FILES = sorted(Path(modeling_hgsp.__file__).parent.glob("modeling_hgsp*.py"))


@pytest.fixture
def pruned(make):
    model = make("llama-8q4kv")
    return apply_plan(model, mixed_plan(model))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_files_are_self_contained(file):
    """They run on machines without hgsp: only Python, torch, transformers, what those need and the base file."""
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    allowed |= {"modeling_hgsp"} if file.stem != "modeling_hgsp" else set()
    tree = ast.parse(file.read_text())
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or "."] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert roots <= allowed


@pytest.mark.parametrize("family", list(filter(is_installed, FAMILIES.values())), ids=lambda family: family.model_type)
def test_every_family_has_its_classes_and_auto_finds_them(family):
    config_class, base_class, causal_class, classifier_class = classes_of(family)
    config = AutoConfig.for_model(family.pruned_model_type, per_layer_config={})
    assert type(config) is config_class
    assert AutoModel._model_mapping[config_class] is base_class
    assert AutoModelForCausalLM._model_mapping[config_class] is causal_class
    assert AutoModelForSequenceClassification._model_mapping[config_class] is classifier_class
    assert family_of(config) is family


@pytest.mark.parametrize("name", TINY)
def test_without_per_layer_sizes_our_class_is_the_stock_model(make, tokens, name):
    """Same names, same numbers, bit for bit."""
    stock = make(name)
    settings = {k: v for k, v in stock.config.to_dict().items() if k not in ("model_type", "architectures")}
    config_class, _, causal_class, _ = classes_of(family_of(stock.config))
    ours = causal_class(config_class(**settings, per_layer_config={})).eval()
    ours.load_state_dict(stock.state_dict())
    assert isinstance(ours, type(stock))
    assert torch.equal(ours(tokens).logits, stock(tokens).logits)


def test_sizes_survive_the_way_through_json(pruned, tmp_path):
    pruned.config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    for index in range(3):
        before, skipped = modeling_hgsp.layer_settings(pruned.config, index)
        after, skips = modeling_hgsp.layer_settings(read, index)
        assert skips == skipped
        for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            assert getattr(after, key) == getattr(before, key)


def test_sizes_are_read_where_transformers_keeps_a_plain_dict():
    """Before per-layer configs were native, the key came through as it stands in the JSON."""
    config = SimpleNamespace(
        intermediate_size=96, per_layer_config={"0": {"intermediate_size": 40}, "1": {"skip": ["mlp"]}}
    )
    settings, skip = modeling_hgsp.layer_settings(config, 0)
    assert (settings.intermediate_size, skip) == (40, frozenset())
    settings, skip = modeling_hgsp.layer_settings(config, 1)
    assert (settings.intermediate_size, skip) == (96, {"mlp"})
    assert config.intermediate_size == 96


@pytest.mark.skipif(not is_dataclass(LlamaConfig), reason="this version of transformers validates no config")
def test_heads_that_cannot_share_evenly_are_refused_by_layer(pruned):
    settings = pruned.config.to_dict() | {
        "per_layer_config": {1: {"num_attention_heads": 7, "num_key_value_heads": 3, "intermediate_size": 8}}
    }
    with pytest.raises(StrictDataclassError, match="layer 1: 7 query heads cannot share 3 KV heads evenly"):
        AutoConfig.for_model("hgsp_llama", **{k: v for k, v in settings.items() if k != "model_type"})


def test_the_base_model_loads_through_auto_model(pruned, tokenizer, tokens, tmp_path):
    save_pruned(pruned, tokenizer, tmp_path, with_bin=False)
    base = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(tokens).last_hidden_state, pruned.model(tokens).last_hidden_state)


def test_transformers_own_save_keeps_the_folder_self_contained(pruned, tokens, tmp_path):
    """What a user gets who loads, trains and saves again."""
    pruned.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_hgsp.py").read_bytes() == Path(modeling_hgsp.__file__).read_bytes()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens).logits, pruned(tokens).logits)


def test_beam_search_with_cache_equals_beam_search_without(make, tokens):
    model = make("qwen2-14q2kv")
    pruned = apply_plan(model, plan_dropping(model, kv={0: [1], 1: [0, 1]}))
    kwargs = {"attention_mask": torch.ones_like(tokens), "num_beams": 3, "max_new_tokens": 6, "pad_token_id": 257}
    cached = pruned.generate(tokens, do_sample=False, **kwargs)
    assert torch.equal(cached, pruned.generate(tokens, do_sample=False, use_cache=False, **kwargs))


def test_hidden_states_are_reported_for_every_layer(make, tokens):
    model = make("llama-8q4kv")
    pruned = apply_plan(model, plan_dropping(model, layers=[1], kv={0: range(4)}))
    assert len(pruned(tokens, output_hidden_states=True).hidden_states) == 2 + 1


def test_training_works_with_and_without_gradient_checkpointing(pruned, tokens):
    """Recovery needs it: gradients reach every weight and are the same both ways, bit for bit."""
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(pruned).requires_grad_(True).train()
        if checkpointing:
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            getattr(model, new if hasattr(model, new) else old)()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, checkpointed = gradients
    assert all(gradient is not None and gradient.any() for gradient in plain.values())
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in plain.items())


def test_layers_are_never_split_over_devices():
    for _, base_class, *with_head in map(classes_of, filter(is_installed, FAMILIES.values())):
        for model_class in (base_class, *with_head):
            assert base_class._layer_class.__name__ in model_class._no_split_modules


@pytest.mark.parametrize("version", ["4.54.0", "4.57.6", "5.0.0", "5.23.0.dev0", "10.0.0"])
def test_versions_that_can_run_the_layers_are_accepted(version):
    assert modeling_hgsp.checked_version(version) >= (4, 54)


@pytest.mark.parametrize("version", ["4.53.3", "4.9.2", "3.5.1"])
def test_older_versions_are_refused_with_a_remedy(version):
    """Their models take the first element of what a layer returns, and ours returns a tensor."""
    with pytest.raises(ImportError, match=rf"expected transformers 4\.54 or newer; got {version}; pip install"):
        modeling_hgsp.checked_version(version)


@pytest.mark.parametrize("name", TINY)
def test_a_pruned_folder_becomes_a_classifier_with_a_fresh_head(make, tokenizer, tokens, tmp_path, name):
    """The decoder is the pruned one, bit for bit; the head is new, as for stock models."""
    model = make(name)
    pruned = apply_plan(model, mixed_plan(model))
    save_pruned(pruned, tokenizer, tmp_path, with_bin=False)
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, pad_token_id=257, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"score.weight"}
    assert classifier(tokens).logits.shape == (2, 3)
    assert torch.equal(classifier.model(tokens).last_hidden_state, pruned.model(tokens).last_hidden_state)


def test_a_trained_classifier_is_saved_and_loaded_equal(pruned, tokenizer, tokens, tmp_path):
    save_pruned(pruned, tokenizer, tmp_path, with_bin=False)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, pad_token_id=257)
    classifier.save_pretrained(tmp_path / "trained")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert torch.equal(again(tokens).logits, classifier(tokens).logits)


def test_generation_builds_its_cache_once(pruned, tokens, monkeypatch):
    """Building one reads the sizes of every layer, which costs milliseconds."""
    built = []
    build = DynamicCache.__init__
    monkeypatch.setattr(DynamicCache, "__init__", lambda *args, **kwargs: built.append(1) or build(*args, **kwargs))
    pruned.generate(tokens, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=257)
    assert len(built) == 1
