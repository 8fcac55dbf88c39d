"""Reconstruction against dense least squares on the models' own activations, module by module."""

import copy
from dataclasses import replace

import pytest
import torch

from hgsp.data.calibration import Calibration
from hgsp.errors import InputError, NumericalError
from hgsp.layerwise.disk_tensors import DiskTensors
from hgsp.models.blocks import BLOCKS, OUTPUT_PROJECTIONS
from hgsp.models.decoder import Decoder
from hgsp.models.families import LAYER_PREFIX
from hgsp.pruning.surgery import Surgery, apply_plan, surviving_layers
from hgsp.reconstruction.paired_forward import num_held_out
from hgsp.reconstruction.reconstruct import ReconstructionOptions, plan_for, reconstruct, solve
from hgsp.reconstruction.resume import ResumeState
from plans import mixed_plan, plan_dropping


def calibration_of(num_sequences=16, seq_len=24, seed=3):
    ids = torch.randint(0, 256, (num_sequences, seq_len), generator=torch.Generator().manual_seed(seed))
    return Calibration(ids, "random bytes", seed)


def reconstructed(model, plan, calibration=None, resume=None, **options):
    """Return the reconstruction and its tensors."""
    options.setdefault("method", "bias" if plan.writer_bias else "lstsq")
    found = reconstruct(
        Decoder(model),
        Surgery(model, plan),
        calibration or calibration_of(),
        ReconstructionOptions(**options),
        resume=resume,
    )
    return found, found.tensors


def pruned_with(model, plan, replaced):
    return apply_plan(copy.deepcopy(model), plan, dict(replaced))


@torch.no_grad()
def seen_at(model, layer, module, input_ids):
    """Return the input of a Linear [tokens, S] and the residual stream after its block [tokens, H], float64."""
    seen = {}

    def keep(name):
        def hook(_module, args, output=None):
            value = args[0] if output is None else output
            seen[name] = (value[0] if isinstance(value, tuple) else value).flatten(0, 1).double()

        return hook

    block = model.model.layers[layer]
    block.get_submodule(module).register_forward_pre_hook(keep("input"))
    if module == "mlp.down_proj":
        block.register_forward_hook(keep("stream"))
    else:
        block.post_attention_layernorm.register_forward_pre_hook(keep("stream"))
    model(input_ids)
    return seen["input"], seen["stream"]


def modules_in_turn(model, plan, found, replaced):
    """Yield every fit with the pruned model before it: all earlier modules are replaced, this one is not."""
    new_index = {old: new for new, old in enumerate(surviving_layers(plan))}
    before = {}
    for fitted in found.modules:
        index = new_index[fitted.layer]
        yield fitted, index, pruned_with(model, plan, before)
        prefix = f"{LAYER_PREFIX}{index}.{fitted.module}."
        before |= {name: tensor for name, tensor in replaced.items() if name.startswith(prefix)}


def linear_of(model, layer, module):
    """Return the weights, with the bias as one more column, float64."""
    linear = model.model.layers[layer].get_submodule(module)
    columns = [linear.weight] if linear.bias is None else [linear.weight, linear.bias[:, None]]
    return torch.cat(columns, dim=1).detach().double()


def with_ones(inputs, linear):
    return inputs if linear.shape[1] == inputs.shape[1] else torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)


def test_every_module_equals_dense_least_squares_with_ridge_rows(tiny):
    """The solution from moments equals lstsq on all tokens with rows sqrt(lam) towards the old weights."""
    plan, calibration = mixed_plan(tiny), calibration_of()
    found, replaced = reconstructed(tiny, plan, calibration)
    after = pruned_with(tiny, plan, replaced)
    ids = calibration.input_ids[: -num_held_out(16)]
    changed = 0
    for fitted, index, pruned in modules_in_turn(tiny, plan, found, replaced):
        old, new = (linear_of(model, index, fitted.module) for model in (pruned, after))
        if fitted.ridge is None:
            assert torch.equal(old, new)
            continue
        _, target = seen_at(copy.deepcopy(tiny), fitted.layer, fitted.module, ids)
        inputs, stream = seen_at(pruned, index, fitted.module, ids)
        inputs = with_ones(inputs, old)
        module_target = target - stream + inputs @ old.T  # the target of the module alone
        strength = (fitted.ridge * inputs.square().sum(0).mean()).sqrt()
        rows = torch.cat([inputs, strength * torch.eye(inputs.shape[1], dtype=torch.float64)])
        expected = torch.linalg.lstsq(rows, torch.cat([module_target, strength * old.T])).solution.T
        # moments are sums of float32 products: errors grow with the inverse of the ridge, 1e-4 at least
        torch.testing.assert_close(new, expected, atol=2e-3, rtol=2e-3)
        assert (new - old).abs().max() > 1e-2
        changed += 1
    assert changed >= 2


def test_the_held_out_error_of_a_module_never_grows_and_is_what_held_out_tokens_show(tiny):
    plan, calibration = mixed_plan(tiny), calibration_of()
    found, replaced = reconstructed(tiny, plan, calibration)
    held = calibration.input_ids[-num_held_out(16) :]
    after = pruned_with(tiny, plan, replaced)
    assert len(found.modules) == 2 * len(plan.layers)
    for fitted, index, pruned in modules_in_turn(tiny, plan, found, replaced):
        assert fitted.error_after <= fitted.error_before
        assert (fitted.ridge is None) == (fitted.error_after == fitted.error_before)
        _, target = seen_at(copy.deepcopy(tiny), fitted.layer, fitted.module, held)
        inputs, stream = seen_at(pruned, index, fitted.module, held)
        old, new = (linear_of(model, index, fitted.module) for model in (pruned, after))
        left = target - stream - with_ones(inputs, old) @ (new - old).T
        told, true = (
            (fitted.error_after, fitted.error_before),
            (float(left.norm()), float((target - stream).norm())),
        )
        assert told[0] * true[1] == pytest.approx(told[1] * true[0], rel=1e-3)
    assert sum(fitted.error_after < fitted.error_before for fitted in found.modules) >= 2


def test_with_bias_only_every_bias_takes_the_mean_error(tiny):
    """Weights stay; the ridge, relative to the one input of 1, shrinks the mean by 1 + ridge."""
    plan, calibration = replace(mixed_plan(tiny), writer_bias=True), calibration_of()
    found, replaced = reconstructed(tiny, plan, calibration)
    assert found.describe()["method"] == "bias"
    weights = [name for name in replaced if name.endswith("weight")]
    before_fit = pruned_with(tiny, plan, {})
    assert all(torch.equal(replaced[name], before_fit.get_parameter(name)) for name in weights)
    after = pruned_with(tiny, plan, replaced)
    assert all(layer.self_attn.o_proj.bias is not None for layer in after.model.layers)
    ids = calibration.input_ids[: -num_held_out(16)]
    for fitted, index, pruned in modules_in_turn(tiny, plan, found, replaced):
        old, new = (model.model.layers[index].get_submodule(fitted.module).bias for model in (pruned, after))
        if fitted.ridge is None:
            assert torch.equal(old, new)
            continue
        _, target = seen_at(copy.deepcopy(tiny), fitted.layer, fitted.module, ids)
        _, stream = seen_at(pruned, index, fitted.module, ids)
        expected = old.double() + (target - stream).mean(0) / (1 + fitted.ridge)
        torch.testing.assert_close(new.double(), expected, atol=1e-4, rtol=1e-3)
        assert fitted.error_after < fitted.error_before
    assert any(fitted.ridge is not None for fitted in found.modules)


@pytest.mark.parametrize("method", ["lstsq", "blocks"])
def test_a_dense_block_without_output_has_no_relative_error_and_is_refitted(make, method):
    """It compensates for earlier losses, and later modules see its new output."""
    model = make("llama-8q4kv")
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    plan, calibration = plan_dropping(model, mlp={0: range(60)}), calibration_of(160, 24)
    found, replaced = reconstructed(model, plan, calibration, method=method)
    silent = [fitted for fitted in found.modules if fitted.layer == 1 and fitted.module.startswith("mlp")]
    assert [fitted.error_after for fitted in silent] == [None] * (1 + (method == "blocks"))
    assert all(fitted.changed for fitted in silent)
    names = {name for name in replaced if "layers.1.mlp" in name}
    assert len(names) == (3 if method == "blocks" else 1)
    held = calibration.input_ids[-num_held_out(160) :]
    dense, pruned = (
        seen_at(each, 2, "mlp.down_proj", held)[1]
        for each in (copy.deepcopy(model), pruned_with(model, plan, replaced))
    )
    written = dense - seen_at(copy.deepcopy(model), 2, "self_attn.o_proj", held)[1]
    assert found.modules[-1].error_after == pytest.approx(float((dense - pruned).norm() / written.norm()), rel=1e-3)


@pytest.mark.parametrize("method", ["lstsq", "blocks", "bias"])
def test_biases_are_added_for_the_bias_method_and_no_other(make, method):
    model = make("llama-8q4kv")
    plan = mixed_plan(model)
    assert plan_for(method, plan).writer_bias == (method == "bias")
    assert not plan_for(method, plan_dropping(model)).writer_bias
    with pytest.raises(InputError, match=r"use plan_for\(method, plan\)"):
        reconstructed(model, replace(plan, writer_bias=method != "bias"), method=method)


@pytest.mark.parametrize("method", ["none", "ridge"])
def test_an_unknown_method_is_refused(method):
    with pytest.raises(InputError, match="use one of bias, lstsq, blocks"):
        ReconstructionOptions(method)


@pytest.mark.parametrize("batch_size", [pytest.param(4, marks=pytest.mark.thorough), 5])
def test_whole_blocks_come_closer_than_output_projections_alone(tiny, batch_size):
    """Attention and MLPs; the error of the last block is that of the assembled pruned model."""
    plan, calibration = mixed_plan(tiny), calibration_of(160, 24)
    projections, _ = reconstructed(tiny, plan, calibration)
    found, replaced = reconstructed(tiny, plan, calibration, method="blocks", batch_size=batch_size)
    assert found.describe()["method"] == "blocks"
    assert all(fitted.error_after <= fitted.error_before for fitted in found.modules)
    new_index = {old: new for new, old in enumerate(surviving_layers(plan))}
    for kind, block in BLOCKS.items():
        refits = [fitted for fitted in found.modules if fitted.module == block.module]
        layers = [fitted.layer for fitted in found.modules if fitted.module == block.output_projection]
        assert [fitted.layer for fitted in refits] == layers
        assert any(fitted.changed for fitted in refits), kind
        for fitted in refits:
            inputs = tuple(f"{LAYER_PREFIX}{new_index[fitted.layer]}.{name}" for name in block.input_projections)
            assert fitted.changed == any(name.startswith(inputs) for name in replaced)
    assert found.modules[-1].error_after < projections.modules[-1].error_after
    held, streams, written = calibration.input_ids[-num_held_out(160) :], [], []
    for model in (copy.deepcopy(tiny), pruned_with(tiny, plan, replaced)):
        layer = model.model.layers[-1]
        layer.mlp.register_forward_hook(lambda _module, _args, output: written.append(output))
        layer.register_forward_hook(lambda _module, _args, output: streams.append(output))
        with torch.no_grad():
            model(held)
    dense, pruned = (stream[0] if isinstance(stream, tuple) else stream for stream in streams)
    expected = float((dense - pruned).norm() / written[0].norm())
    assert found.modules[-1].error_after == pytest.approx(expected, rel=1e-3)


def test_nothing_removed_nothing_replaced(tiny):
    for method in ("bias", "lstsq", "blocks"):
        found, replaced = reconstructed(tiny, plan_dropping(tiny), method=method)
        assert not replaced
        assert found.modules == ()


def test_modules_before_the_first_pruned_one_stay_as_they_are(make):
    """Their error is exactly zero."""
    model = make("llama-8q4kv")
    found, replaced = reconstructed(model, plan_dropping(model, mlp={1: range(40)}), calibration_of(96, 32))
    assert [fitted.error_before == 0 for fitted in found.modules] == [True, True, True, False, False, False]
    assert not [name for name in replaced if name.startswith(f"{LAYER_PREFIX}0.") or "layers.1.self_attn" in name]
    assert f"{LAYER_PREFIX}1.mlp.down_proj.weight" in replaced


def test_the_dense_model_is_not_touched(tiny):
    before = copy.deepcopy(tiny.state_dict())
    _, replaced = reconstructed(tiny, mixed_plan(tiny))
    assert replaced
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


@pytest.mark.parametrize("drop", [{"layers": [1]}, {"mlp": {0: range(60), 1: range(40)}}, {"kv": {1: [0, 2]}}])
def test_later_layers_compensate_for_removed_groups(make, drop):
    """Logits on unseen text come closer to the dense ones, also with a whole layer removed."""
    model = make("llama-8q4kv", num_hidden_layers=4)
    plan = plan_dropping(model, **drop)
    _, replaced = reconstructed(model, plan, calibration_of(64, 32))
    unseen = calibration_of(4, 32, seed=99).input_ids
    with torch.no_grad():
        dense = model(unseen).logits
        plain, better = (pruned_with(model, plan, tensors)(unseen).logits for tensors in ({}, replaced))
    assert (better - dense).norm() < 0.9 * (plain - dense).norm()


def test_a_layer_without_attention_or_without_mlp(make):
    model = make("llama-8q4kv")
    plan = plan_dropping(model, kv={0: range(4)}, mlp={1: range(96)})
    found, replaced = reconstructed(model, plan)
    whole = reconstructed(model, plan, method="blocks")[0].modules
    assert [module.module for module in whole if module.layer == 0] == ["mlp.down_proj", "mlp"]
    assert [module.module for module in whole if module.layer == 1] == ["self_attn.o_proj", "self_attn"]
    fitted = [(module.layer, module.module) for module in found.modules]
    assert fitted == [
        *((0, "mlp.down_proj"), (1, "self_attn.o_proj")),
        *((2, "self_attn.o_proj"), (2, "mlp.down_proj")),
    ]
    assert f"{LAYER_PREFIX}0.mlp.down_proj.weight" in replaced
    pruned_with(model, plan, replaced)


def test_frozen_layers_are_never_touched(make):
    model = make("llama-8q4kv")
    plan = plan_dropping(model, mlp={1: range(40)})
    found, replaced = reconstructed(model, plan, calibration_of(96, 32), frozen=frozenset({0, 2}))
    assert {fitted.layer for fitted in found.modules} == {1}
    assert replaced.keys() == {f"{LAYER_PREFIX}1.mlp.down_proj.weight"}


def test_fewer_tokens_than_columns_stay_finite(make):
    """The moments have rank 8 of 96; the ridge determines the rest."""
    model = make("llama-8q4kv")
    found, replaced = reconstructed(model, mixed_plan(model), calibration_of(2, 8))
    assert all(tensor.isfinite().all() for tensor in replaced.values())
    assert all(fitted.error_after <= fitted.error_before for fitted in found.modules)


def test_batches_and_spilled_streams_change_nothing(make, tmp_path):
    model = make("qwen2-14q2kv")
    plan = mixed_plan(model)
    _, expected = reconstructed(model, plan, batch_size=16)
    _, got = reconstructed(model, plan, batch_size=3, spill_dir=tmp_path)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-3, rtol=1e-3)  # sums in another order
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_inputs_equal_recomputed_ones(make, tmp_path, monkeypatch, dtype):
    """They are kept on a CPU and not with a GPU; tensors are bit-equal, with two thirds of the calls."""
    model, calls, genuine = make("qwen2-14q2kv").to(dtype), [], Decoder.call_block
    monkeypatch.setattr(Decoder, "call_block", lambda *args: calls.append(1) or genuine(*args))
    _, kept = reconstructed(model, plan_dropping(model, mlp={1: range(40)}), spill_dir=tmp_path)
    with_kept = len(calls)
    monkeypatch.setattr("hgsp.reconstruction.paired_forward._keeps_inputs", lambda _writer: False)
    _, again = reconstructed(model, plan_dropping(model, mlp={1: range(40)}))
    assert kept.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items())
    assert 3 * with_kept == 2 * (len(calls) - with_kept)


def test_bf16_weights_stay_bf16(make):
    model = make("llama-8q4kv").bfloat16()
    _, replaced = reconstructed(model, mixed_plan(model))
    assert replaced
    assert {tensor.dtype for tensor in replaced.values()} == {torch.bfloat16}


def test_one_sequence_is_refused(make):
    model = make("llama-8q4kv")
    with pytest.raises(InputError, match="at least 2 calibration sequences"):
        reconstructed(model, mixed_plan(model), calibration_of(1))


def test_a_pruned_stream_that_overflows_names_layer_and_module(make):
    model = make("llama-8q4kv")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = 3e38
    with pytest.raises(NumericalError, match=r"layer 1, mlp\.down_proj"):
        reconstructed(model, plan_dropping(model, mlp={1: range(1, 40)}))


def test_disk_tensors_are_a_mapping(tmp_path):
    spilled = DiskTensors(tmp_path / "spilled")
    spilled.update({"a.weight": torch.ones(2, 3).T, "b": torch.zeros(2, dtype=torch.bfloat16)})
    assert "a.weight" in spilled
    assert list(spilled) == ["a.weight", "b"]
    assert torch.equal(spilled["a.weight"], torch.ones(3, 2))
    assert spilled["b"].dtype == torch.bfloat16
    del spilled["b"]
    assert len(spilled) == len(list((tmp_path / "spilled").iterdir())) == 1
    with pytest.raises(KeyError):
        spilled["b"]
    spilled.close()
    assert not (tmp_path / "spilled").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lstsq", "blocks"])
def test_an_interrupted_reconstruction_resumes_after_finished_layers(make, tmp_path, monkeypatch, dtype, method):
    """Bit-equal to an uninterrupted run; tensors of an unfinished layer are not used."""
    model = make("llama-8q4kv").to(dtype)
    plan = mixed_plan(model)
    whole, expected = reconstructed(model, plan, method=method)

    def start(fingerprint="mine"):
        resume = ResumeState(tmp_path / "state", fingerprint)
        return reconstructed(model, plan, resume=resume, method=method)[0], resume

    add, fitted = ResumeState.add, []

    def killed(self, index, fits, tensors):
        if index == 1:
            self.tensors.update(tensors)
            raise KeyboardInterrupt
        add(self, index, fits, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(ResumeState, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            start()
    assert any(".1." in path.name for path in (tmp_path / "state").iterdir())
    monkeypatch.setattr("hgsp.reconstruction.reconstruct.solve", lambda *args: fitted.append(args) or solve(*args))
    found, resume = start()
    assert found.modules == whole.modules
    assert found.tensors is resume.tensors
    assert dict(resume.tensors).keys() == expected.keys()
    assert all(torch.equal(resume.tensors[name], expected[name]) for name in expected)
    projections = [module for module in whole.modules if module.module in OUTPUT_PROJECTIONS.values()]
    assert len(fitted) == sum(module.layer > 0 for module in projections)
    fitted.clear()
    assert start()[0].modules == whole.modules
    assert not fitted
    assert start("of another plan")[0].modules == whole.modules
    assert len(fitted) == len(projections)
    resume.close()
    assert not (tmp_path / "state").exists()


def test_no_layer_behind_the_last_one_to_fit_is_run(make, tmp_path, monkeypatch):
    model = make("llama-8q4kv")
    plan, opened = mixed_plan(model), []
    layer = Decoder.layer
    monkeypatch.setattr(Decoder, "layer", lambda self, index: opened.append(index) or layer(self, index))
    last = len(model.model.layers) - 1
    whole, _ = reconstructed(model, plan, frozen=frozenset({last}))
    assert opened == list(range(last))
    reconstructed(model, plan, resume=ResumeState(tmp_path / "state", "mine"), frozen=frozenset({last}))
    opened.clear()
    again = ResumeState(tmp_path / "state", "mine")
    found, _ = reconstructed(model, plan, resume=again, frozen=frozenset({last}))
    assert found.modules == whole.modules
    assert opened == []
