"""The tests that every family must pass; a new one needs an entry in ``VARIANTS`` of conftest.py and no other test.

Models are tiny, random, of transformers' own classes, in float32; sliding windows are shorter than the texts.
"""

import copy
import re
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

import hgsp
from conftest import TINY, VARIANTS, make_tiny
from exporting import exported
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.exports.engines import judge_all
from hgsp.exports.names import TARGETS
from hgsp.exports.source import read_source
from hgsp.layerwise.walk import LayerWalk
from hgsp.models.blocks import BLOCKS, KINDS, OUTPUT_PROJECTIONS
from hgsp.models.checkpoint import BIN_NAME, load_pruned, save_pruned
from hgsp.models.decoder import Decoder
from hgsp.models.families import FAMILIES, family_of
from hgsp.models.family_classes import classes_of, register, travelling_files
from hgsp.models.fusion import unfused
from hgsp.models.geometry import geometry_of
from hgsp.models.linear_attention import output_of
from hgsp.models.loading import inspect_model
from hgsp.models.offload import load_offloaded
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.reconstruction.reconstruct import ReconstructionOptions, plan_for, reconstruct
from hgsp.scoring.methods import METHODS
from hgsp.scoring.prior import MAX_SKIP_SEQUENCES, perplexity_influence, prior_of
from hgsp.scoring.score import score_groups
from plans import mixed_plan, plan_dropping, silenced

#: One model of every family, by its name in conftest.py.
MODELS = ("llama-8q4kv", "qwen2-14q2kv", "mistral-8q4kv", "qwen3-8q2kv", *VARIANTS)
#: The first version of transformers that a modelling file works with; that of ``modeling_hgsp.py`` is the default.
CHECKED = re.compile(r"checked_version\(transformers.__version__(?:, \((\d+), (\d+)\))?\)")
ROUNDING = {"atol": 2e-5, "rtol": 1e-5}  # pruned and masked models add the same float32 numbers in another order


@pytest.fixture(scope="module", params=MODELS)
def stock(request):
    """A model of transformers' own class, which no test changes."""
    return make_tiny(request.param)


@pytest.fixture(scope="module")
def shared(stock):
    """The same model as we prune it: with every projection of its own."""
    return unfused(stock)


@pytest.fixture
def model(shared):
    return copy.deepcopy(shared)


@pytest.fixture(scope="module")
def text():
    return Calibration(torch.randint(0, 256, (16, 24), generator=torch.Generator().manual_seed(3)), "random bytes", 3)


def without_some_blocks(model):
    """Attention of the first layer and MLP of the last are gone, and a few channels of the other layer."""
    num_kv = geometry_of(model).shapes[0].num_kv_groups
    return plan_dropping(model, kv={0: range(num_kv)}, mlp={2: range(96), 1: [7]})


def without_a_layer(model):
    return plan_dropping(model, layers=[0], mlp={1: range(10)})


PLANS = (mixed_plan, without_some_blocks, without_a_layer)


def pruned(model, plan):
    return apply_plan(copy.deepcopy(model), plan)


def greedy(model, tokens, **kwargs):
    settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 257}
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings, **kwargs)


def test_every_family_is_tested():
    """Mixtures of experts have tests of their own, as in pruning/test_experts.py."""
    tested = {(TINY | VARIANTS)[name][1].model_type for name in MODELS}
    assert tested == {name for name, family in FAMILIES.items() if family.experts is None}


def test_a_family_newer_than_the_installed_transformers_is_refused(saved, tokenizer, tmp_path, monkeypatch):
    model = make_tiny("gemma2")
    dense = saved(model)
    save_pruned(apply_plan(model, mixed_plan(model), inplace=False), tokenizer, tmp_path, with_bin=False)
    monkeypatch.setattr(transformers, "__version__", "5.3.1")
    register()  # the others
    for load in (
        lambda: inspect_model(str(dense)),
        lambda: load_pruned(tmp_path),
        lambda: hgsp.score(model, Calibration(torch.arange(8)[None], "numbers", 0), "magnitude"),
    ):
        with pytest.raises(InputError, match=r"transformers 5\.4 or newer for Gemma 2; got 5\.3\.1; pip install"):
            load()


def test_the_family_describes_the_classes_that_travel(shared):
    family = family_of(shared.config)
    config_class, base_class, causal_class, _ = classes_of(family)
    layer_class = base_class._layer_class
    assert config_class.model_type == family.pruned_model_type
    assert causal_class._no_split_modules == [layer_class.__name__]
    refusals = (CHECKED.search(file.read_text()) for file in travelling_files(family))
    oldest = max((4, 54) if found[1] is None else tuple(map(int, found.groups())) for found in refusals)
    assert oldest == family.first_version
    parts = layer_class.attention, layer_class.feed_forward
    assert parts == tuple(family.blocks[kind].parts for kind in KINDS)
    assert {kind: block.output_projection for kind, block in family.blocks.items()} == OUTPUT_PROJECTIONS
    assert all(family.blocks[kind].input_projections == BLOCKS[kind].input_projections for kind in KINDS)


@torch.no_grad()
def test_without_sizes_per_layer_our_class_is_the_stock_model(stock, shared, tokens):
    """Bit for bit, unless one product of matrices has become several."""
    family = family_of(stock.config)
    config_class, _, causal_class, _ = classes_of(family)
    stale = ("model_type", "architectures", "per_layer_config")
    settings = {key: value for key, value in shared.config.to_dict().items() if key not in stale}
    ours = causal_class(config_class(**settings, per_layer_config={})).eval()
    ours.set_attn_implementation(stock.config._attn_implementation)
    ours.load_state_dict(shared.state_dict())
    assert isinstance(ours, type(stock))
    expected = stock(tokens).logits
    assert (
        torch.allclose(ours(tokens).logits, expected, **ROUNDING)
        if family.fused
        else torch.equal(ours(tokens).logits, expected)
    )


@torch.no_grad()
@pytest.mark.parametrize("plan_of_model", PLANS)
def test_slicing_equals_masking(shared, tokens, plan_of_model):
    """And the model has lost as many parameters as the plan promises."""
    plan, smaller = plan_of_model(shared), pruned(shared, plan_of_model(shared))
    expected = silenced(shared, plan)(tokens).logits
    torch.testing.assert_close(smaller(tokens).logits, expected, **ROUNDING)
    assert not torch.allclose(expected, shared(tokens).logits, **ROUNDING)
    sizes = [sum(parameter.numel() for parameter in m.parameters()) for m in (shared, smaller)]
    assert sizes[0] - sizes[1] == plan.removed_params


@torch.no_grad()
@pytest.mark.parametrize("plan_of_model", [mixed_plan, without_some_blocks])
def test_saved_models_load_bit_equal(model, tokens, tokenizer, tmp_path, plan_of_model):
    smaller = apply_plan(model, plan_of_model(model))
    save_pruned(smaller, tokenizer, tmp_path)
    expected = smaller(tokens).logits
    for path in (tmp_path, tmp_path / BIN_NAME):
        loaded = load_pruned(path)
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in smaller.state_dict().items())
        assert torch.equal(loaded(tokens).logits, expected)
    smaller.save_pretrained(tmp_path / "by transformers")
    carried = {file.name for file in (tmp_path / "by transformers").glob("*.py")}
    assert carried == {file.name for file in travelling_files(family_of(smaller.config))}


@torch.no_grad()
@pytest.mark.parametrize("plan_of_model", PLANS[1:])
def test_generation_with_a_cache_equals_generation_without(model, tokens, plan_of_model):
    """The prompt and the continuation are longer than the window."""
    smaller = apply_plan(model, plan_of_model(model))
    assert torch.equal(greedy(smaller, tokens), greedy(smaller, tokens, use_cache=False))


@torch.no_grad()
def test_left_padded_rows_equal_single_rows(model):
    smaller = apply_plan(model, mixed_plan(model))
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 256, (length,), generator=generator) for length in (5, 14, 20)]
    batch, mask = torch.full((3, 20), 257), torch.zeros(3, 20, dtype=torch.int64)
    for index, row in enumerate(rows):
        batch[index, 20 - len(row) :], mask[index, 20 - len(row) :] = row, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = smaller(batch, attention_mask=mask, position_ids=positions).logits
    for index, row in enumerate(rows):
        torch.testing.assert_close(logits[index, 20 - len(row) :], smaller(row[None]).logits[0], **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("plan_of_model", PLANS[:2])
def test_blocks_in_turn_are_the_layer_and_layers_are_the_model(shared, tokens, plan_of_model):
    decoder, smaller = Decoder(shared), pruned(shared, plan_of_model(shared))
    for other in (shared, smaller):
        by_block = whole = decoder.embed(tokens)
        for layer in other.model.layers:
            for kind in KINDS:
                by_block = decoder.call_block(layer, kind, by_block)
            whole = decoder.call(layer, whole)
            assert torch.equal(by_block, whole)
        own = Decoder(other)
        own.embed(tokens)
        assert torch.equal(own.logits(whole), other(tokens).logits)


def test_gradients_layer_by_layer_are_those_of_the_whole_graph(shared, text):
    """Of the loss, at the input of every output projection; groups are scored by them."""
    whole = copy.deepcopy(shared).requires_grad_(True)
    loss = whole(text.input_ids[:2], labels=text.input_ids[:2], use_cache=False).loss
    names = [
        f"model.layers.{index}.{output_of(layer, kind)}.weight"
        for index, layer in enumerate(shared.model.layers)
        for kind in KINDS
    ]
    expected = torch.autograd.grad(loss, [whole.get_parameter(name) for name in names])
    decoder, found = Decoder(copy.deepcopy(shared)), {}
    with LayerWalk(decoder, text.input_ids[:2], 2, keep_hidden_states=True) as walk:
        for layer_pass in walk.forward():
            layer_pass.run()
        for back in walk.backward():
            outputs = [output_of(back.module, kind) for kind in KINDS]
            (gradients,) = back.run([back.module.get_submodule(name).weight for name in outputs])
            for name, gradient in zip(outputs, gradients, strict=True):
                found[f"model.layers.{back.index}.{name}.weight"] = gradient / (2 * 23)
    assert float(walk.losses.sum()) / (2 * 23) == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_the_masked_decoder_is_the_masked_model(shared, tokens):
    """The budget search measures its plans so."""
    plan = without_some_blocks(shared)
    dense = Decoder(shared)
    decoder = Decoder(shared, MaskedLayers(dense, geometry_of(shared), plan))
    hidden = decoder.embed(tokens)
    for index in range(3):
        with decoder.layer(index) as layer:
            hidden = decoder.call(layer, hidden)
    torch.testing.assert_close(decoder.logits(hidden), silenced(shared, plan)(tokens).logits, **ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_every_group(shared, text, method):
    few = replace(text, input_ids=text.input_ids[:2])
    importances = score_groups(Decoder(shared), method, few, with_influence=method == "fisher")
    for layer, shape in zip(importances.by_layer, geometry_of(shared).shapes, strict=True):
        assert (len(layer["attention"]), len(layer["mlp"])) == (shape.num_kv_groups, shape.mlp_width)
        scored = [values for kind, values in layer.items() if kind.startswith("mlp") or shape.num_kv_groups]
        assert all((values >= 0).all() and values.std() > 0 for values in scored)
    if importances.influence is not None:
        prior, _ = prior_of(importances.influence, 1.0, None)
        assert (prior > 0).all()


def test_the_influence_of_a_block_is_the_perplexity_without_it(shared, text):
    few = text.input_ids[:MAX_SKIP_SEQUENCES]
    influence = perplexity_influence(Decoder(shared), few)
    silent = copy.deepcopy(shared)
    with torch.no_grad():
        silent.model.layers[1].mlp.down_proj.weight.zero_()
        if silent.model.layers[1].mlp.down_proj.bias is not None:
            silent.model.layers[1].mlp.down_proj.bias.zero_()
        losses = [m(few, labels=few).loss.exp().item() for m in (silent, shared)]
    assert influence.mlp[1] == pytest.approx(max(losses[0] - losses[1], 0), rel=1e-3, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("method", ["blocks", "bias"])
def test_reconstruction_brings_the_pruned_model_closer_to_the_dense_one(shared, text, tokenizer, tmp_path, method):
    """Least squares is the first half of "blocks". Held-out errors never grow."""
    plan = plan_for(method, mixed_plan(shared))
    surgery = Surgery(shared, plan)
    found = reconstruct(Decoder(shared), surgery, text, ReconstructionOptions(method))
    assert any(fit.changed for fit in found.modules)
    assert all(fit.error_after <= fit.error_before * (1 + 1e-6) for fit in found.modules)
    before, after = (apply_plan(copy.deepcopy(shared), plan, tensors) for tensors in (None, dict(found.tensors)))
    save_pruned(after, tokenizer, tmp_path, with_bin=False)
    assert torch.equal(load_pruned(tmp_path)(text.input_ids).logits, after(text.input_ids).logits)
    dense, *others = (m.model(text.input_ids).last_hidden_state for m in (shared, before, after))
    errors = [(other - dense).norm() for other in others]
    slack = 1.01 if method == "bias" else 1  # a bias fits means alone, and random models have little of them
    assert errors[1] < slack * errors[0]


def test_lora_trains_and_merges(model, shared, tokens):
    adapted = peft.get_peft_model(
        apply_plan(model, mixed_plan(model)), peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    adapted(tokens, labels=tokens).loss.backward()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * sum(isinstance(module, nn.Linear) for module in shared.model.layers.modules())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)
    with torch.no_grad():
        expected = adapted(tokens).logits
        torch.testing.assert_close(adapted.merge_and_unload()(tokens).logits, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_layers_from_files_give_what_layers_in_memory_give(stock, shared, saved, tokens, text):
    source = inspect_model(str(saved(stock)))
    decoder, files = load_offloaded(source, "float32", "cpu")
    assert torch.equal(decoder.model(tokens).logits, shared(tokens).logits)
    plan = mixed_plan(shared)
    streamed, resident = Surgery(source.skeleton, plan, read=files.read), Surgery(shared, plan)
    for name in resident.skeleton.state_dict().keys() - {"lm_head.weight"}:
        assert torch.equal(streamed.tensor(name), resident.tensor(name))
    scores = [score_groups(one, "fisher", text).by_layer for one in (decoder, Decoder(shared))]
    for streamed_layer, resident_layer in zip(*scores, strict=True):
        assert all(np.array_equal(streamed_layer[kind], resident_layer[kind]) for kind in KINDS)


@torch.no_grad()
@pytest.mark.parametrize("is_uniform", [True, False])
def test_exports_hold_the_model_or_are_refused_with_a_reason(model, tokens, tokenizer, tmp_path, is_uniform):
    """``hgsp doctor`` promises no export that is refused. The tokenizer is none that GGUF files can hold."""
    plan = plan_dropping(model, mlp={index: range(32) for index in range(3)}) if is_uniform else mixed_plan(model)
    smaller, folder = apply_plan(model, plan), tmp_path / "pruned"
    folder.mkdir()
    save_pruned(smaller, tokenizer, folder, with_bin=False)
    refused = set()
    for target in TARGETS:
        try:
            written = exported(folder, target, self_check=False)
        except InputError:
            refused.add(target)
            continue
        if target == "stock":
            plain = AutoModelForCausalLM.from_pretrained(written.folder)
            torch.testing.assert_close(plain(tokens).logits, smaller(tokens).logits, **ROUNDING)
    source = read_source(folder)
    assert ("stock" in refused) == (not is_uniform or bool(source.untried))
    if is_uniform and source.untried:
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(tokens).logits, smaller(tokens).logits)
    assert not source.beyond_llama or {"gguf", "decilm", "mlx"} <= refused
    promised = {verdict.form.export for verdict in judge_all(source) if verdict.form and verdict.form.export}
    assert not promised & (refused - {"gguf"} if not source.beyond_llama else refused)
