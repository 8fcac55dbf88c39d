"""Models that accelerate has spread over devices are scored and pruned where their layers are."""

import copy

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from conftest import make_tiny
from hgsp.data.calibration import Calibration
from hgsp.data.texts import EVALUATE, load_text
from hgsp.errors import InputError
from hgsp.evaluation.metrics.ppl import perplexity
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.decoder import Decoder
from hgsp.models.devices import resolve_device
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model, load_dense
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.prior import perplexity_influence
from hgsp.scoring.score import score_groups
from plans import mixed_plan, plan_dropping

TEXT = Calibration(torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(5)), "random", 0)
PARTS = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.layers.2", "model.norm")


def spread(model):
    """A copy behind accelerate's hooks, dispatched part by part as over several devices, all of them the CPU."""
    return dispatch_model(copy.deepcopy(model), dict.fromkeys([*PARTS, "lm_head"], "cpu"), force_hooks=True)


def hooked(model):
    return {name for name, module in model.named_modules() if hasattr(module, "_hf_hook")}


@pytest.mark.parametrize("name", ["llama-9q3kv-tied", "qwen2-14q2kv", "qwen3-8q2kv"])
@pytest.mark.parametrize("method", ["taylor", "fisher", "wanda", "magnitude"])
def test_the_same_groups_are_kept_and_the_same_logits_come_out(name, method, tokens):
    dense = make_tiny(name)
    geometry, shape_rules, kept, logits = geometry_of(dense), ShapeRules(1, 8), [], []
    for model in (dense, spread(dense)):
        found = score_groups(Decoder(model), method, TEXT, with_influence=True)
        table = build_group_table(found.by_layer, geometry)
        kept.append(select_groups(table, geometry, budget_for_ratio(geometry, 0.2, shape_rules), shape_rules, 0.0, {}))
        logits.append(apply_plan(model, kept[-1])(tokens).logits)
    assert kept[0].layers == kept[1].layers
    assert torch.equal(*logits)


def test_influence_by_perplexity_too():
    dense = make_tiny("llama-8q4kv")
    one, two = (perplexity_influence(Decoder(model), TEXT.input_ids) for model in (dense, spread(dense)))
    np.testing.assert_array_equal(one.layer, two.layer)


@pytest.mark.parametrize("whole_layers", [[], [1]])
def test_the_pruned_model_has_hooks_of_its_own_and_can_be_used(tokenizer, tokens, tmp_path, whole_layers):
    dense = make_tiny("llama-8q4kv")
    plan = plan_dropping(dense, layers=whole_layers) if whole_layers else mixed_plan(dense)
    model, plain = spread(dense), apply_plan(copy.deepcopy(dense), plan)
    pruned = apply_plan(model, plan)
    layers = {f"model.layers.{index}" for index in range(3 - len(whole_layers))}
    assert {"", "lm_head", "model.embed_tokens", "model.norm"} | layers <= hooked(pruned)
    assert set(pruned.hf_device_map) == layers | {"lm_head", *(part for part in PARTS if "layers" not in part)}
    assert not {id(module) for module in model.modules()} & {id(module) for module in pruned.modules()}
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(pruned.generate(tokens, **settings), plain.generate(tokens, **settings))
    text = load_text("builtin", EVALUATE)
    one, two = (perplexity(m, tokenizer, text, seq_len=64, max_windows=2).ppl for m in (pruned, plain))
    assert one == two
    save_pruned(pruned, tokenizer, tmp_path)
    assert torch.equal(load_pruned(tmp_path)(tokens).logits, plain(tokens).logits)


def test_a_plain_model_gets_no_hooks():
    model = make_tiny("llama-8q4kv")
    assert not hooked(apply_plan(model, mixed_plan(model)))


def test_weights_that_are_not_in_memory_are_refused(tmp_path):
    model = make_tiny("llama-8q4kv")
    plan, parts = mixed_plan(model), dict.fromkeys([*PARTS, "lm_head"], "cpu")
    model = dispatch_model(model, parts | {"model.layers.1": "disk"}, offload_dir=tmp_path)
    with pytest.raises(InputError, match=r"on disk or left on the meta device.*--offload"):
        score_groups(Decoder(model), "taylor", TEXT)
    with pytest.raises(InputError, match=r"on disk or left on the meta device.*--offload"):
        apply_plan(model, plan)


def test_loading_refuses_what_accelerate_puts_on_disk(saved, tmp_path, monkeypatch):
    """``device_map="auto"`` offloads a model that exceeds all devices together."""
    from hgsp.models import loading

    source, whole = inspect_model(str(saved(make_tiny("llama-8q4kv")))), loading.load_complete
    parts = dict.fromkeys([*PARTS, "lm_head"], "cpu") | {"model.layers.1": "disk"}

    def on_disk(*model, **kwargs):
        assert kwargs.pop("device_map") == "auto"
        return whole(*model, device_map=parts, offload_folder=tmp_path / "swap", **kwargs)

    monkeypatch.setattr(loading, "load_complete", on_disk)
    with pytest.raises(InputError, match=r"on disk or left on the meta device.*--offload"):
        load_dense(source, "float32", "auto")


def test_auto_needs_accelerate_and_one_process(monkeypatch):
    assert resolve_device("auto") == "auto"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process with --device auto"):
        resolve_device("auto")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr("hgsp.models.devices.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install accelerate"):
        resolve_device("auto")
