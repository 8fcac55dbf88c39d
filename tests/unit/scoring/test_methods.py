"""Every importance method on every geometry against a slow reference: plain loops and autograd over the whole graph.

The reference shares no code with the library: it runs the model's own forward, and folds weights into groups one row
and one column at a time.
"""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch

from conftest import make_tiny
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError, NumericalError
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.scoring.methods import METHODS, ColumnMethod, WeightMethod
from hgsp.scoring.score import ScoringOptions, score_groups

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
WITH_TEXT = ("taylor", "taylor_2nd", "wanda", "fisher", "fisher_token", "flap")
BY_MASK = ("fisher", "fisher_token")
GQA = ("llama-8q4kv", "llama-9q3kv-tied", "qwen2-14q2kv", "qwen3-8q2kv")

#: Float32 gradients through three layers, summed in another order than in the reference, differ by less than 2e-5. A
#: missing bias, a wrong head or a misplaced mean changes scores by far more than this.
ROUNDING = 1e-4


def calibration(num_sequences=4, seq_len=12, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return Calibration(torch.randint(0, 256, (num_sequences, seq_len), generator=generator), "random", seed)


def scores(model, method, text=None, **kwargs):
    return score_groups(Decoder(model), method, text, **kwargs)


def blocks(found):
    """Attention and MLP importances of all layers in one vector."""
    return np.concatenate([layer[kind] for layer in found.by_layer for kind in ("attention", "mlp")])


# ---------------------------------------------------------------------------------------------- the slow reference


def mean_token_loss(model, ids):
    """Return the next-token loss of ONE sequence, averaged over its predictions, position by position."""
    logits = model(ids[None]).logits[0]
    losses = [-torch.log_softmax(logits[t], dim=-1)[ids[t + 1]] for t in range(len(ids) - 1)]
    return sum(losses) / len(losses)


def weight_gradients(model, texts):
    """Return gradients of the mean of the texts' mean token losses, by parameter name."""
    model = copy.deepcopy(model).requires_grad_(True)
    (sum(mean_token_loss(model, ids) for ids in texts) / len(texts)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def linear_inputs(model, ids, run):
    """Return the input [T, I] of every Linear, by its name, while ``run(model)`` runs one sequence."""
    inputs, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            handles.append(
                module.register_forward_pre_hook(lambda _m, args, name=name: inputs.__setitem__(name, args[0]))
            )
    result = run(model, ids)
    for handle in handles:
        handle.remove()
    return inputs, result


def saliency_of_weights(method, model, texts):
    """Return the saliency of every weight and bias, by parameter name."""
    weights = dict(model.named_parameters())
    if method == "magnitude":
        return {name: weight.abs() for name, weight in weights.items()}
    if method == "wanda":
        squares, tokens = {}, 0
        for ids in texts:
            inputs, _ = linear_inputs(model, ids, lambda m, i: m(i[None]))
            tokens += len(ids)
            for name, x in inputs.items():
                squares[name] = squares.get(name, 0) + x[0].double().square().sum(0)
        result = {}
        for name, weight in weights.items():
            linear = name.rpartition(".")[0]
            size = 1.0 if name.endswith("bias") else (squares[linear] / tokens).sqrt() if linear in squares else 1.0
            result[name] = weight.abs() * size
        return result
    gradients = weight_gradients(model, texts)
    first = {name: (weight * gradients[name]).abs() for name, weight in weights.items()}
    if method == "taylor":
        return first
    singles = [weight_gradients(model, [ids]) for ids in texts]
    curvature = {name: sum(single[name] ** 2 for single in singles) / len(texts) for name in weights}
    return {name: first[name] + 0.5 * (weights[name] ** 2 * curvature[name]).abs() for name in weights}


def saliency_of_columns(method, model, texts):
    """Return [N, I] for fisher, [N, T, I] for fisher_token, [1, I] for flap, by the name of the output projection."""
    if method in BY_MASK:
        rows = {}
        model = copy.deepcopy(model).requires_grad_(True)
        for ids in texts:
            inputs, loss = linear_inputs(model, ids, mean_token_loss)
            gradients = torch.autograd.grad(loss, list(inputs.values()))
            for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
                product = (x * gradient)[0].detach()
                rows.setdefault(name, []).append(product.sum(0) if method == "fisher" else product)
        return {name: torch.stack(each) for name, each in rows.items()}
    seen = {}
    for ids in texts:
        for name, x in linear_inputs(model, ids, lambda m, i: m(i[None]))[0].items():
            seen.setdefault(name, []).append(x[0])
    weights = dict(model.named_parameters())
    return {
        name: (torch.cat(x).double().var(0, unbiased=False) * weights[f"{name}.weight"].norm(dim=0) ** 2)[None]
        for name, x in seen.items()
        if name != "lm_head"
    }


def heads_of(group, ratio, strided, num_kv):
    """Return the query heads of one KV head; ``strided`` gives a wrong layout of heads."""
    return [group + i * num_kv for i in range(ratio)] if strided else [group * ratio + i for i in range(ratio)]


def rows_of(heads, head_dim):
    return [head * head_dim + i for head in heads for i in range(head_dim)]


@torch.no_grad()
def reference(method, model, texts, strided=False):
    """Return the importances of all layers in one vector, attention before MLP."""
    config = model.config
    num_kv, ratio = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    head_dim = model.model.layers[0].self_attn.head_dim
    with torch.enable_grad():
        by_column = method in (*BY_MASK, "flap")
        saliency = (saliency_of_columns if by_column else saliency_of_weights)(method, model, texts)
    found = []

    def add(layer, linear, rows=None, columns=None):
        """Return the sum over rows, with their biases, or over columns of one Linear."""
        name, total = f"model.layers.{layer}.{linear}", 0.0
        for row in rows or ():
            total += saliency[f"{name}.weight"][row].double().sum()
            if f"{name}.bias" in saliency:
                total += saliency[f"{name}.bias"][row].double()
        for column in columns or ():
            total += saliency[f"{name}.weight"][:, column].double().sum()
        return total

    def combine(name, columns):
        sums = sum(saliency[name][..., column].double() for column in columns)
        return (sums**2).sum() / len(sums) if method in BY_MASK else sums[0]

    for layer in range(config.num_hidden_layers):
        for group in range(num_kv):
            query = rows_of(heads_of(group, ratio, strided, num_kv), head_dim)
            own = rows_of([group], head_dim)
            if by_column:
                found.append(combine(f"model.layers.{layer}.self_attn.o_proj", query))
                continue
            found.append(
                add(layer, "self_attn.q_proj", rows=query)
                + add(layer, "self_attn.k_proj", rows=own)
                + add(layer, "self_attn.v_proj", rows=own)
                + add(layer, "self_attn.o_proj", columns=query)
            )
        for channel in range(config.intermediate_size):
            if by_column:
                found.append(combine(f"model.layers.{layer}.mlp.down_proj", [channel]))
                continue
            found.append(
                add(layer, "mlp.gate_proj", rows=[channel])
                + add(layer, "mlp.up_proj", rows=[channel])
                + add(layer, "mlp.down_proj", columns=[channel])
            )
    return np.array([float(value) for value in found])


# --------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("method", [*WITH_TEXT, "magnitude"])
def test_every_geometry_agrees_with_the_slow_reference(tiny, method):
    text = calibration()
    found = blocks(scores(tiny, method, text))
    expected = reference(method, tiny, text.input_ids)
    # fisher sums values of both signs: cancellation errors are bounded by the largest, hence the absolute part
    np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=1e-6 * expected.max())


@pytest.mark.parametrize("method", [*WITH_TEXT, "magnitude"])
@pytest.mark.parametrize("name", GQA)
def test_a_strided_fold_of_query_heads_would_be_noticed(name, method):
    """The test above is sharp: the reference with another layout of heads is far from our scores."""
    model, text = make_tiny(name), calibration()
    K = model.config.num_key_value_heads
    found = scores(model, method, text).by_layer[0]["attention"]
    wrong = reference(method, model, text.input_ids, strided=True)[:K]
    assert np.abs(found / wrong - 1).max() > 10 * ROUNDING


@pytest.mark.parametrize("name", GQA)
@pytest.mark.parametrize("method", [*BY_MASK, "flap"])
def test_a_group_whose_query_heads_have_no_output_has_no_importance(name, method):
    """KV head k owns the contiguous query heads k*R ... k*R+R-1."""
    model = make_tiny(name)
    geometry = geometry_of(model)
    width = geometry.queries_per_kv * geometry.head_dim
    model.model.layers[1].self_attn.o_proj.weight.data[:, width : 2 * width] = 0
    attention = scores(model, method, calibration()).by_layer[1]["attention"]
    assert attention[1] == 0
    assert (np.delete(attention, 1) > 0).all()


@pytest.mark.parametrize("name", ["qwen2-14q2kv", "llama-mha-biased"])
def test_biases_count(name):
    """Without biases, the importance of a group decreases by exactly the biases of its rows."""
    model = make_tiny(name)
    bare = copy.deepcopy(model)
    for parameter_name, parameter in bare.named_parameters():
        if parameter_name.endswith("bias"):
            parameter.data.zero_()
    K = model.config.num_key_value_heads
    pairs = zip(scores(model, "magnitude").by_layer, scores(bare, "magnitude").by_layer, strict=True)
    for layer, (with_biases, without) in zip(model.model.layers, pairs, strict=True):
        for kind, readers, groups in (("attention", ATTENTION[:3], K), ("mlp", MLP[:2], len(without["mlp"]))):
            biases = [layer.get_submodule(reader).bias for reader in readers]
            expected = sum((b.detach().abs().double().view(groups, -1).sum(1) for b in biases if b is not None), 0.0)
            # float64 sums of the same float32 numbers
            np.testing.assert_allclose(with_biases[kind] - without[kind], expected, atol=1e-9)


@pytest.mark.parametrize("method", WITH_TEXT)
def test_batch_size_changes_nothing_but_rounding(method):
    """Five sequences: the last batch is smaller than the others."""
    model, text = make_tiny("llama-8q4kv"), calibration(num_sequences=5)
    one, two, four = (
        blocks(scores(model, method, text, options=ScoringOptions(batch_size=size))) for size in (1, 2, 4)
    )
    for other in (two, four):
        # float32 sums over sequences in another order
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6 * one.max())


#: Methods whose importance is a plain mean over sequences, one for every statistic.
LINEAR_IN_SEQUENCES = {
    "grad": WeightMethod("w * g", frozenset({"grad"}), lambda weight, has: weight * has["grad"]),
    "grad_sq": WeightMethod("h", frozenset({"grad_sq"}), lambda weight, has: has["grad_sq"]),
    "input_sq": ColumnMethod("x^2", frozenset({"input_sq"}), lambda weight, has: has["input_sq"]),
    "input_mean": ColumnMethod("x", frozenset({"input_mean"}), lambda weight, has: has["input_mean"]),
    "mask_grad_sq": METHODS["fisher"],
    "mask_grad_token_sq": METHODS["fisher_token"],
}


@pytest.mark.parametrize("statistic", LINEAR_IN_SEQUENCES)
def test_four_samples_are_the_mean_of_four_singles(statistic):
    """No sequence overwrites another, and none counts twice."""
    model, text = make_tiny("qwen2-14q2kv"), calibration()
    method = LINEAR_IN_SEQUENCES[statistic]
    singles = [blocks(scores(model, method, Calibration(row[None], "", 0))) for row in text.input_ids]
    together = blocks(scores(model, method, text))
    # signed float32 sums: cancellation errors are bounded by the largest value, hence the absolute part
    np.testing.assert_allclose(together, np.mean(singles, axis=0), rtol=ROUNDING, atol=1e-5 * abs(together).max())
    assert (
        np.abs(singles[0] / together - 1).max() > 0.1
    )  # the single scores differ, so that the mean is not one of them


def test_taylor_adds_up_before_the_absolute_value():
    """The mean of four absolute values would be larger than the absolute value of the mean."""
    model, text = make_tiny("llama-8q4kv"), calibration()
    singles = [blocks(scores(model, "taylor", Calibration(row[None], "", 0))) for row in text.input_ids]
    assert (blocks(scores(model, "taylor", text)) < 0.9 * np.mean(singles, axis=0)).all()


def test_calibration_loss_is_the_mean_token_loss():
    model, text = make_tiny("mistral-8q4kv"), calibration()
    with torch.no_grad():
        expected = sum(mean_token_loss(model, ids).item() for ids in text.input_ids) / len(text.input_ids)
    assert scores(model, "fisher", text).calibration_loss == pytest.approx(expected, rel=1e-6)  # float32 losses
    assert scores(model, "wanda", text).calibration_loss is None


@pytest.mark.parametrize("method", WITH_TEXT)
@pytest.mark.parametrize("name", ["llama-8q4kv", "qwen2-14q2kv"])
def test_eager_equals_sdpa(name, method):
    """A layer's arguments come from the model's own forward pass, whatever the attention implementation."""
    eager, sdpa = (make_tiny(name, attn_implementation=kind) for kind in ("eager", "sdpa"))
    assert eager.config._attn_implementation != sdpa.config._attn_implementation
    expected = blocks(scores(sdpa, method, calibration()))
    # another kernel, the same float32 mathematics
    np.testing.assert_allclose(
        blocks(scores(eager, method, calibration())), expected, rtol=1e-4, atol=1e-6 * expected.max()
    )


@pytest.mark.parametrize("method", [*WITH_TEXT, "magnitude"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_score_like_float32(dtype, method):
    """Weights are the same; activations and the gradient of one batch are computed in another precision."""
    model = make_tiny("llama-8q4kv").to(dtype)
    found, text = scores(model, method, calibration()), calibration()
    expected = scores(copy.deepcopy(model).float(), method, text)
    # bfloat16 has 8 bits, float16 11: an error of 2^-9 or 2^-12 per operation, some ten operations deep, squared by
    # fisher. Sums over a block average it out.
    tolerance = {torch.bfloat16: 0.05, torch.float16: 0.006}[dtype]
    for half, full in zip(found.by_layer, expected.by_layer, strict=True):
        for kind in ("attention", "mlp"):
            assert half[kind].dtype == np.float64
            assert np.isfinite(half[kind]).all()
            assert half[kind].sum() == pytest.approx(full[kind].sum(), rel=tolerance)
            assert np.abs(half[kind] - full[kind]).sum() < 2 * tolerance * full[kind].sum()


def test_gradients_of_a_bfloat16_model_add_up_in_float32():
    """64 copies of one sequence: a bfloat16 sum would stop growing at some point and lose the last bits of each."""
    model = make_tiny("llama-8q4kv").to(torch.bfloat16)
    (row,) = calibration(num_sequences=1).input_ids
    once, often = (
        blocks(scores(model, "taylor", Calibration(row.repeat(n, 1), "", 0), options=ScoringOptions(1)))
        for n in (1, 64)
    )
    np.testing.assert_allclose(often, once, rtol=1e-5)  # float32: 64 additions of the same number


def test_random_is_seeded_uniform_per_parameter_and_needs_no_text():
    model = make_tiny("llama-8q4kv", intermediate_size=512)
    geometry = geometry_of(model)
    found, again, other = (scores(model, "random", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(blocks(found), blocks(again))
    assert (blocks(found) != blocks(other)).all()
    assert (found.by_layer[0]["mlp"] != found.by_layer[1]["mlp"]).all()
    for layer in found.by_layer:
        assert (layer["attention"] < geometry.kv_group_params).all()
        per_parameter = layer["mlp"] / geometry.mlp_channel_params
        assert (per_parameter >= 0).all()
        assert (per_parameter < 1).all()
        assert abs(per_parameter.mean() - 0.5) < 0.07  # five standard errors of 512 uniform numbers


@pytest.mark.parametrize("method", METHODS)
def test_only_methods_without_statistics_need_no_text(method):
    model = make_tiny("llama-mqa")
    if method in ("magnitude", "random"):
        assert len(scores(model, method).by_layer) == 3
        return
    with pytest.raises(InputError, match=f"calibration text for {method}"):
        scores(model, method)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("projection", [*ATTENTION, *MLP])
def test_a_planted_bad_weight_is_reported_by_layer_and_projection(projection, bad):
    """NaNs are never sorted, and not attributed to the last layer, where the backward pass sees them first."""
    model = make_tiny("llama-8q4kv")
    model.model.layers[1].get_submodule(projection).weight.data[3, 2] = bad
    with pytest.raises(NumericalError, match=f"weight of layer 1, {projection} is not finite"):
        scores(model, "taylor", calibration())


@pytest.mark.parametrize("method", [method for method in METHODS if method != "random"])
def test_every_method_that_reads_weights_reports_it(method):
    model = make_tiny("qwen2-14q2kv")
    model.model.layers[2].self_attn.v_proj.bias.data[1] = torch.nan
    with pytest.raises(NumericalError, match=r"weight of layer 2, self_attn\.v_proj is not finite"):
        scores(model, method, calibration())


def test_overflow_in_float16_is_reported_where_it_happens():
    """Weights are finite and their products are not: the error names the first such projection and another dtype."""
    model = make_tiny("llama-8q4kv").half()
    for reader in (model.model.layers[1].mlp.gate_proj, model.model.layers[1].mlp.up_proj):
        reader.weight.data *= 1000
    with pytest.raises(NumericalError, match=r"output of layer 1, mlp\.down_proj is not finite .*--dtype bfloat16"):
        scores(model, "taylor", calibration())
    assert np.isfinite(blocks(scores(model.bfloat16(), "taylor", calibration()))).all()


@pytest.mark.parametrize(
    ("part", "message"),
    [("model.embed_tokens", "embeddings"), ("model.norm", "final norm"), ("lm_head", "the head")],
)
def test_an_error_outside_the_layers_is_not_attributed_to_one(part, message):
    model = make_tiny("llama-8q4kv")
    model.get_submodule(part).weight.data.fill_(torch.nan)
    with pytest.raises(NumericalError, match=message):
        scores(model, "taylor", calibration())


@pytest.mark.parametrize("method", WITH_TEXT)
def test_no_batch_outlives_its_layer_without_garbage_collection(method):
    """A reference cycle through a graph would fill the memory of a GPU, which triggers no garbage collection."""
    model, inputs = make_tiny("llama-8q4kv"), []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, args: inputs.append(weakref.ref(args[0])))
    gc.collect()
    gc.disable()
    try:
        scores(model, method, calibration(), options=ScoringOptions(batch_size=1))
        alive = sum(reference() is not None for reference in inputs)
    finally:
        gc.enable()
    assert inputs
    assert alive == 0


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_and_no_hook_is_left_behind(method):
    """A failure halfway through the backward pass leaves none either."""
    model = make_tiny("qwen2-14q2kv")

    def leftovers():
        hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
        changed = [name for name, p in model.named_parameters() if not p.requires_grad or p.grad is not None]
        return hooks, changed

    scores(model, method, calibration(), with_influence=True)
    assert leftovers() == ([], [])

    def fail(items, label, total):
        for done, item in enumerate(items):
            yield item
            if label != "forward" and done == 1:
                raise MemoryError

    if method in ("taylor", "taylor_2nd", "fisher", "fisher_token"):
        with pytest.raises(MemoryError):
            scores(model, method, calibration(), progress=fail)
        assert leftovers() == ([], [])


@pytest.mark.parametrize("enabled", [True, False])
def test_the_callers_gradient_mode_neither_matters_nor_changes(enabled):
    """Also after an error halfway, with its traceback alive."""
    model, text = make_tiny("llama-8q4kv"), calibration()
    expected = blocks(scores(model, "taylor", text))
    with torch.set_grad_enabled(enabled):
        np.testing.assert_array_equal(blocks(scores(model, "taylor", text)), expected)
        assert torch.is_grad_enabled() == enabled
        model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
        with pytest.raises(NumericalError) as kept:
            scores(model, "taylor", text)
        assert torch.is_grad_enabled() == enabled
        assert kept.tb is not None


def _watch_caches(model):
    """Return the cache arguments of every call of a decoder layer during scoring."""
    seen = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append((kwargs.get("past_key_values"), kwargs.get("use_cache"))),
            with_kwargs=True,
        )
    return seen


@pytest.mark.parametrize("method", WITH_TEXT)
def test_scoring_uses_no_cache_whatever_the_config_says(method):
    """A cache would hold keys of other batches; the config stays unchanged."""
    model = make_tiny("llama-8q4kv", use_cache=True)
    seen = _watch_caches(model)
    scores(model, method, calibration(), with_influence=True)
    assert seen
    assert set(seen) == {(None, False)}
    assert model.config.use_cache is True


@pytest.mark.parametrize("method", WITH_TEXT)
@pytest.mark.parametrize("use_cache", [True, False])
def test_one_sequence_is_enough_and_the_cache_setting_does_not_matter(method, use_cache):
    one = Calibration(calibration().input_ids[:1], "", 0)
    got = blocks(scores(make_tiny("llama-8q4kv", use_cache=use_cache), method, one))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, blocks(scores(make_tiny("llama-8q4kv"), method, one)))


# ------------------------------------------------------------------------------------- labels drawn from the model


def test_drawn_labels_are_the_models_own_and_a_sequences_own(make):
    """Against a loss on labels drawn here with the same seed, for any batch size."""
    model = make("llama-8q4kv")
    decoder, ids = Decoder(model), calibration(3).input_ids
    hidden = model.model(ids).last_hidden_state.detach()
    model.model.norm = torch.nn.Identity()  # its input is normalized already
    loss, gradient = decoder.loss_and_gradient(hidden, ids, [7, 8, 9])
    for row, seed in enumerate((7, 8, 9)):
        last = hidden[row, :-1].clone().requires_grad_()
        logits = model.lm_head(last)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(seed))
        nll = torch.nn.functional.cross_entropy(logits, drawn.squeeze(1), reduction="sum")
        assert loss[row].item() == pytest.approx(nll.item(), rel=1e-5)
        torch.testing.assert_close(gradient[row, :-1], torch.autograd.grad(nll, last)[0])
        alone, _ = decoder.loss_and_gradient(hidden[row : row + 1], ids[row : row + 1], [seed])
        assert alone.item() == pytest.approx(loss[row].item(), rel=1e-6)
    assert not torch.equal(decoder.loss_and_gradient(hidden, ids)[0], loss)


@pytest.mark.parametrize("method", [*BY_MASK, "taylor", "taylor_2nd"])
def test_scores_of_drawn_labels_depend_on_the_seed_and_not_on_batches(make, method):
    model = make("llama-8q4kv")
    first = scores(model, method, calibration(8), labels="model", seed=1)
    again = scores(model, method, calibration(8), labels="model", seed=1, options=ScoringOptions(batch_size=3))
    other = scores(model, method, calibration(8), labels="model", seed=2)
    np.testing.assert_allclose(blocks(first), blocks(again), rtol=ROUNDING)
    assert not np.allclose(blocks(first), blocks(other), rtol=0.05)
    assert not np.allclose(blocks(first), blocks(scores(model, method, calibration(8))), rtol=0.05)
    assert first.calibration_loss is None


def test_fisher_of_drawn_labels_is_the_curvature_of_the_divergence(make):
    """The mean of c_s^2 is 2 KL(dense || mask at 1 - eps) / eps^2 per token, times T - 1 tokens.

    Many draws on few tokens make the mean over sequences one over labels.
    """
    model = make("llama-8q4kv")
    ids = calibration(1, 3).input_ids
    many = calibration(1, 3)
    object.__setattr__(many, "input_ids", ids.expand(4000, -1).contiguous())
    importance = scores(model, "fisher", many, labels="model", options=ScoringOptions(batch_size=500)).by_layer[1][
        "mlp"
    ]
    eps, channels = 0.02, np.argsort(importance)[-5:]
    with torch.no_grad():
        log_p = model(ids).logits.double().log_softmax(-1)[0, :-1]
        for channel in channels:
            changed = copy.deepcopy(model)
            changed.model.layers[1].mlp.down_proj.weight[:, channel] *= 1 - eps
            log_q = changed(ids).logits.double().log_softmax(-1)[0, :-1]
            curvature = 2 * float((log_p.exp() * (log_p - log_q)).sum()) / eps**2
            num_tokens = len(log_p)
            assert importance[channel] == pytest.approx(curvature / num_tokens**2, rel=0.25)
