"""The published methods of the quality benchmark: formulas, sizes, and the layers they leave alone."""

import copy
import dataclasses
import functools
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import run_global_pruning
from conftest import REPOSITORY
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.evaluation.metrics.harness import Score
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT
from hgsp.models.geometry import geometry_of
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.recipes import BALANCED
from hgsp.pipeline.stages import prune_in_rounds
from hgsp.pruning.plan import PrunePlan
from hgsp.scoring.methods import METHODS

sys.path.append(str(REPOSITORY / "benchmarks"))
import quality
import quality_settings
from baselines import BASELINES, flap, gisp, llm_pruner, osscar, shortgpt, uniform_magnitude, wanda_sp
from baselines.blocks import walk_blocks
from baselines.widths import uniform_shapes
from divergence import DenseReference
from quality_report import CHANCE, draw, markdown, mean_accuracy, tables
from quality_settings import SETTINGS

BATCH = 3
GQA, MHA = "llama-8q4kv", "llama-mha-biased"
WIDTHS = sorted(BASELINES.keys() - {"shortgpt"})


@pytest.fixture
def calibration():
    ids = torch.randint(0, 256, (8, 16), generator=torch.Generator().manual_seed(3))
    return Calibration(ids, "random bytes", 3)


def num_params(model):
    return sum(parameter.numel() for parameter in model.parameters())


def prune(name, model, calibration, ratio):
    """Return the pruned copy and its budget in parameters."""
    budget = int(ratio * geometry_of(model).decoder_params)
    return BASELINES[name](copy.deepcopy(model), calibration, budget, BATCH), budget


def shapes_of(model):
    return geometry_of(model).shapes


@torch.no_grad()
def inputs_of(model, module, input_ids):
    """Record the inputs of a Linear, float64 [tokens, I], in the model's own forward."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(0, 1).double()))
    model(input_ids)
    handle.remove()
    return seen[0]


def test_no_baseline_hides_a_method_of_ours():
    """The benchmark has both in one dictionary."""
    assert not BASELINES.keys() & {name for method in METHODS for name in (method, f"{method}+lstsq")}


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_nothing_to_remove_changes_nothing(name, tiny, calibration, tokens):
    expected = tiny(tokens).logits
    pruned, _ = prune(name, tiny, calibration, 0.0)
    assert torch.equal(pruned(tokens).logits, expected)
    assert num_params(pruned) == num_params(tiny)


@pytest.mark.parametrize("ratio", [pytest.param(0.2, marks=pytest.mark.thorough), 0.5])
@pytest.mark.parametrize("name", WIDTHS)
def test_the_budget_is_met_within_a_channel(name, ratio, tiny, calibration, tokens):
    """FLAP's biases count, so it may miss the budget by one more bias."""
    pruned, budget = prune(name, tiny, calibration, ratio)
    geometry = geometry_of(tiny)
    missed = budget - (num_params(tiny) - num_params(pruned))
    slack = geometry.mlp_channel_params + (geometry.hidden_size if name == "flap-published" else 0)
    assert 0 <= missed < slack
    assert pruned(tokens).logits.isfinite().all()


def test_shortgpt_removes_as_many_whole_layers_as_fit(tiny, calibration, tokens):
    layer = geometry_of(tiny).layer_params(geometry_of(tiny).shapes[0])
    pruned, budget = prune("shortgpt", tiny, calibration, 0.5)
    removed = num_params(tiny) - num_params(pruned)
    assert removed == layer
    assert 0 <= budget - removed < layer
    assert pruned(tokens).logits.isfinite().all()


@pytest.mark.parametrize("name", ["uniform-random", "uniform-magnitude", "wanda-sp", "osscar"])
def test_uniform_widths_differ_by_one_channel_at_most(name, make, calibration):
    shapes = shapes_of(prune(name, make(GQA), calibration, 0.5)[0])
    widths = [shape.mlp_width for shape in shapes]
    assert {shape.num_kv_groups for shape in shapes} == {2}
    assert max(widths) - min(widths) <= 1


def test_uniform_widths_take_a_group_when_channels_run_out(make):
    geometry = geometry_of(make(GQA, intermediate_size=16))  # a fifth of the parameters is all there is in the MLPs
    shapes = uniform_shapes(geometry, int(0.2 * geometry.decoder_params))
    assert {shape.num_kv_groups for shape in shapes} == {3}
    with pytest.raises(InputError, match="layers 0 to 2"):
        uniform_shapes(geometry, geometry.decoder_params)


@pytest.mark.parametrize(("num_layers", "expected"), [(32, range(4, 30)), (30, range(4, 28)), (24, range(3, 22))])
def test_llm_pruner_spares_the_first_and_last_layers(num_layers, expected):
    assert llm_pruner.band(num_layers) == expected


def test_gisp_goes_on_where_a_smaller_budget_ends(make, calibration):
    """Each step ranks what is left by gradients of the pruned model; what has left is worth nothing."""
    model = make(GQA, num_hidden_layers=18, intermediate_size=32)
    step = int(gisp.STEP * geometry_of(model).decoder_params)
    plans, silenced = [], []
    for steps in (2, 4):
        pruned = copy.deepcopy(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gisp, "apply_plan", lambda left, plan: (plans.append(plan), silenced.append(left)))
            gisp.prune(pruned, calibration, steps * step, BATCH)
    full = geometry_of(model).shapes[0]
    assert {plan.layers[index].shape for plan in plans for index in (0, -1)} == {full}
    channels = zip(*([set(keep.mlp_channels) for keep in plan.layers] for plan in plans), strict=True)
    assert all(more <= fewer for fewer, more in channels)
    scores = llm_pruner.group_scores(silenced[1], calibration, BATCH, strided=False)
    for keep, by_kind in zip(plans[1].layers, scores, strict=True):
        assert tuple(by_kind["mlp"].nonzero().flatten().tolist()) == keep.mlp_channels


@pytest.mark.parametrize("name", ["llm-pruner", "llm-pruner-global"])
def test_llm_pruner_keeps_the_layers_outside_its_band_whole(name, make, calibration):
    model = make(GQA, num_hidden_layers=8)
    shapes = shapes_of(prune(name, model, calibration, 0.3)[0])
    dense = shapes_of(model)[0]
    touched = [index for index, shape in enumerate(shapes) if shape != dense]
    assert set(touched) <= set(llm_pruner.band(8))
    assert len(touched) >= 3


def test_llm_pruner_scores_equal_autograd_over_the_whole_model(tiny, calibration):
    """Compare with slow sums over the weights of each group, head by head."""
    geometry = geometry_of(tiny)
    found = llm_pruner.group_scores(copy.deepcopy(tiny), calibration, BATCH, strided=False)
    tiny.requires_grad_(True)
    ids = calibration.input_ids
    logits = tiny(ids).logits[:, :-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    layer, R, D = tiny.model.layers[1], geometry.queries_per_kv, geometry.head_dim

    def product(parameter):
        return (parameter * parameter.grad).abs().detach().double()

    def rows(linear, index):
        return product(linear.weight)[index].sum() + (0 if linear.bias is None else product(linear.bias)[index].sum())

    attention, mlp = layer.self_attn, layer.mlp
    for k in range(geometry.shapes[1].num_kv_groups):
        queries, own = slice(k * R * D, (k + 1) * R * D), slice(k * D, (k + 1) * D)
        expected = rows(attention.q_proj, queries) + rows(attention.k_proj, own) + rows(attention.v_proj, own)
        expected += product(attention.o_proj.weight)[:, queries].sum()
        # float32 gradients, layer by layer and in one graph
        torch.testing.assert_close(found[1]["attention"][k], expected, rtol=1e-4, atol=0)
    for m in (0, 7, 95):
        expected = rows(mlp.gate_proj, m) + rows(mlp.up_proj, m) + product(mlp.down_proj.weight)[:, m].sum()
        torch.testing.assert_close(found[1]["mlp"][m], expected, rtol=1e-4, atol=0)


def test_the_strided_fold_scores_other_heads_only_where_heads_share_keys(make, calibration):
    for name, same in ((MHA, True), (GQA, False), ("llama-mqa", True)):
        right, wrong = (
            llm_pruner.group_scores(make(name), calibration, BATCH, strided=strided) for strided in (False, True)
        )
        for a, b in zip(right, wrong, strict=True):
            # sums of the same values in another order
            assert torch.allclose(a["attention"], b["attention"], rtol=1e-12) == same
            assert torch.equal(a["mlp"], b["mlp"])


def test_the_strided_fold_takes_every_kth_head(make):
    """K = 4, R = 2: heads 0 to 7 hold their own number; head h goes to group h % 4 instead of h // 2."""
    geometry = geometry_of(make(GQA))
    D = geometry.head_dim
    zero = {f"self_attn.{name}_proj": torch.zeros(4 * D, 1) for name in "kv"}
    zero |= {f"mlp.{name}_proj": torch.zeros(96, 1) for name in ("gate", "up")} | {"mlp.down_proj": torch.zeros(1, 96)}
    products = {"self_attn.q_proj": torch.arange(8.0).repeat_interleave(D)[:, None] / D, **zero}
    products["self_attn.o_proj"] = torch.zeros(1, 8 * D)
    assert llm_pruner.fold(products, geometry, strided=False)["attention"].tolist() == [1, 5, 9, 13]
    assert llm_pruner.fold(products, geometry, strided=True)["attention"].tolist() == [4, 6, 8, 10]


def test_magnitude_is_the_sum_over_the_weights_of_a_group(make):
    model = make("qwen2-14q2kv")
    layer = model.model.layers[0]
    found = uniform_magnitude.group_scores(layer, geometry_of(model))
    attention = layer.self_attn
    expected = attention.o_proj.weight[:, 56:].abs().sum()
    for linear, width in ((attention.q_proj, 56), (attention.k_proj, 8), (attention.v_proj, 8)):
        expected += linear.weight[width:].abs().sum() + linear.bias[width:].abs().sum()
    torch.testing.assert_close(found["attention"][1], expected.double(), rtol=1e-5, atol=0)  # float32 sums


def test_wanda_sp_scores_are_the_formula_and_see_the_blocks_pruned_before(make, calibration):
    model = make(GQA)
    reference = copy.deepcopy(model)
    first = reference.model.layers[0].self_attn.o_proj
    walk = walk_blocks(model, calibration.input_ids, BATCH)
    block = next(walk)
    norms = inputs_of(reference, first, calibration.input_ids).norm(dim=0)
    expected = (first.weight.double().abs() * norms).sum(0).view(4, 16).sum(1)
    # float32 sums
    torch.testing.assert_close(wanda_sp.group_scores(block, 16).double(), expected, rtol=1e-4, atol=0)
    with torch.no_grad():
        for projection in (block.projection, first):
            projection.weight[:, :16] = 0
    block, second = next(walk), reference.model.layers[0].mlp.down_proj
    norms = inputs_of(reference, second, calibration.input_ids).norm(dim=0)
    expected = (second.weight.double().abs() * norms).sum(0)
    torch.testing.assert_close(wanda_sp.group_scores(block, 1).double(), expected, rtol=1e-4, atol=0)


def test_flap_statistics_and_scores_are_the_formula(make, calibration):
    model = make(GQA)
    projection = model.model.layers[0].self_attn.o_proj
    inputs = inputs_of(model, projection, calibration.input_ids)
    mean, variance = flap.mean_and_variance(next(walk_blocks(model, calibration.input_ids, BATCH)))
    torch.testing.assert_close(mean, inputs.mean(0))
    torch.testing.assert_close(variance, inputs.var(0))
    raw = inputs.var(0) * projection.weight.double().norm(dim=0).square()
    expected = ((raw - raw.mean()) / raw.std()).view(4, 16).mean(1)
    torch.testing.assert_close(flap.group_scores(projection.weight, variance, 16), expected)


@pytest.mark.parametrize("name", [GQA, MHA, "qwen2-14q2kv"])
def test_flap_keeps_the_mean_of_the_first_pruned_module(name, make, calibration):
    """Exactly, because nothing before the first pruned output projection has changed."""
    model = make(name)
    pruned, _ = prune("flap-published", model, calibration, 0.3)
    kind = next(kind for kind in ("self_attn", "mlp") if _first_shape(pruned, kind) != _first_shape(model, kind))
    projection = {"self_attn": "self_attn.o_proj", "mlp": "mlp.down_proj"}[kind]
    means = []
    for one in (model, pruned):
        linear = one.model.layers[0].get_submodule(projection)
        means.append(linear(inputs_of(one, linear, calibration.input_ids).float()).mean(0))
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-6)  # float32 means over 128 tokens
    without = pruned.model.layers[0].get_submodule(projection)
    uncompensated = linear_without_bias(without, inputs_of(pruned, without, calibration.input_ids))
    assert (uncompensated - means[0]).norm() > 1e-2 * means[0].norm()


def _first_shape(model, kind):
    shape = shapes_of(model)[0]
    return shape.num_kv_groups if kind == "self_attn" else shape.mlp_width


def linear_without_bias(linear, inputs):
    return (inputs.float() @ linear.weight.T).mean(0)


def test_flap_gives_biases_to_the_projections_it_pruned_and_no_others(make, calibration):
    model = make(GQA)
    pruned, _ = prune("flap-published", model, calibration, 0.3)
    for layer, shape, dense in zip(pruned.model.layers, shapes_of(pruned), shapes_of(model), strict=True):
        assert (layer.self_attn.o_proj.bias is not None) == (shape.num_kv_groups < dense.num_kv_groups)
        assert (layer.mlp.down_proj.bias is not None) == (shape.mlp_width < dense.mlp_width)


@torch.no_grad()
def test_block_influence_is_one_minus_the_mean_cosine(make, calibration):
    model = make(GQA, num_hidden_layers=4)
    found = shortgpt.block_influence(model, calibration.input_ids, BATCH)
    hidden = [model.model.embed_tokens(calibration.input_ids)]
    handles = [
        layer.register_forward_hook(lambda _module, _args, output: hidden.append(output))
        for layer in model.model.layers
    ]
    model(calibration.input_ids)
    for handle in handles:
        handle.remove()
    cosines = [nn.functional.cosine_similarity(a, b, dim=-1).mean() for a, b in itertools.pairwise(hidden)]
    torch.testing.assert_close(found.float(), 1 - torch.stack(cosines), rtol=1e-4, atol=1e-6)  # float32 cosines


def test_shortgpt_removes_the_layer_of_least_influence(make, calibration, tokens):
    model = make(GQA, num_hidden_layers=4)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight *= 1e-3
        model.model.layers[2].mlp.down_proj.weight *= 1e-3
    pruned, _ = prune("shortgpt", model, calibration, 0.25)
    del model.model.layers[2]
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = 3
    torch.testing.assert_close(pruned(tokens).logits, model(tokens).logits)


def refit_error(weight, gram, kept):
    """Return the least regularised error, and the weights, using only the kept columns."""
    regularised = gram + osscar.RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    best = torch.linalg.solve(regularised[kept][:, kept], regularised[kept] @ weight.T).T
    change = weight.clone()
    change[:, kept] -= best
    return float((change @ regularised * change).sum()), best


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_osscar_eliminates_what_brute_force_does(seed, columns):
    """Of six groups, each step removes the one whose removal costs least after an exact refit of the rest."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(50, 6 * columns, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(6 * columns, 6 * columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 6 * columns, generator=generator, dtype=torch.float64)
    gram, remaining = inputs.T @ inputs, list(range(6))

    def error_without(group):
        return refit_error(weight, gram, osscar.spans(torch.tensor([g for g in remaining if g != group]), columns))[0]

    for num_kept in (5, 4):
        remaining.remove(min(remaining, key=error_without))
        kept, refitted = osscar.eliminate(weight, gram, columns, num_kept, steps=6)
        assert kept.tolist() == remaining
        torch.testing.assert_close(refitted, refit_error(weight, gram, osscar.spans(kept, columns))[1])


def test_osscar_leaves_a_smaller_error_than_selection_alone(make, calibration):
    """Compare on the first module, where both see the same inputs."""
    model = make(GQA)
    pruned, _ = prune("osscar", model, calibration, 0.5)
    dense, projection = (one.model.layers[0].self_attn.o_proj for one in (model, pruned))
    inputs, kept_inputs = (
        inputs_of(one, linear, calibration.input_ids).float() for one, linear in ((model, dense), (pruned, projection))
    )
    kept = [g for g, part in enumerate(inputs.split(16, 1)) if any(map(part.equal, kept_inputs.split(16, 1)))]
    plain = dense.weight[:, osscar.spans(torch.tensor(kept), 16)]
    wanted = inputs @ dense.weight.T
    plain_error, error = ((kept_inputs @ weight.T - wanted).norm() for weight in (plain, projection.weight))
    assert len(kept) == 2
    assert error < 0.95 * plain_error


@torch.no_grad()
def test_one_pass_gives_perplexity_and_kl_over_predicted_tokens(make, tokens):
    dense, other = make(GQA), make(GQA, seed=1)
    windows = [tokens[0], tokens[1, :9]]
    expected, nll = [], []
    for window in windows:
        target, got = (model(window[None]).logits[0, :-1].double().log_softmax(1) for model in (dense, other))
        expected.append(nn.functional.kl_div(got, target, log_target=True, reduction="none").sum(1))
        nll.append(nn.functional.nll_loss(got, window[1:], reduction="none"))
    ppl, kl = DenseReference(dense, windows).compare(other)
    assert kl == pytest.approx(float(torch.cat(expected).mean()), rel=1e-4)
    assert ppl == pytest.approx(float(torch.cat(nll).mean().exp()), rel=1e-5)
    assert DenseReference(dense, windows).compare(dense)[1] == 0


def test_mean_accuracy_and_its_standard_error():
    scores = {
        "boolq": {"acc": Score(0.6, 0.03, 10)},
        "piqa": {"acc": Score(0.5, 0.02, 10), "acc_norm": Score(0.7, 0.04, 10)},
    }
    found = mean_accuracy(scores)
    assert (found["acc"], found["acc_norm"]) == (0.55, 0.65)
    assert found["acc_stderr"] == pytest.approx((0.03**2 + 0.02**2) ** 0.5 / 2, abs=1e-4)  # rounded to four places
    assert found["acc_norm_stderr"] == pytest.approx(0.025)


def test_accuracies_are_compared_with_the_reference_item_by_item():
    def measured(way, *correct):
        scores = {
            task: {"acc": Score(items.count("1") / len(items), 0.1, len(items), correct=items)}
            for task, items in zip(("boolq", "piqa"), correct, strict=True)
        }
        return {"way": way, "ratio": 0.2, "ppl": {}, "accuracy": {"limit": None, **mean_accuracy(scores)}}

    rows = [measured("balanced", "1100", "1000"), measured("osscar", "1010", "1100")]
    lines = tables({"rows": rows, "dense": {}})
    start = next(place for place, line in enumerate(lines) if line.startswith("| mean accuracy minus"))
    header, _, *rows, end = lines[start : start + 4]
    assert header.startswith("| mean accuracy minus that of `balanced`, points")
    errors = [float(np.std(differences, ddof=1)) / 2 for differences in ([0, -1, 1, 0], [0, 1, 0, 0])]
    assert rows == [f"| `osscar` |  | +12.5 ± {100 * np.hypot(*errors) / 2:.1f} |"]  # none for the reference itself
    assert end == ""


def test_chance_is_known_for_every_task():
    assert set(CHANCE) == set(ZERO_SHOT)


def test_accuracy_without_the_tasks_that_the_dense_model_guesses():
    def measured(boolq, piqa, limit=101):
        by_task = {"boolq": {"acc": boolq}, "piqa": {"acc": 0.1, "acc_norm": piqa}}
        return {"limit": limit, "acc_norm": (boolq + piqa) / 2, "acc_norm_stderr": 0.03, "by_task": by_task}

    def table(dense, pruned):
        rows = [{"way": "fast", "ratio": 0.2, "ppl": {}, "accuracy": pruned}]
        return tables({"rows": rows, "dense": {}, "dense_accuracy": dense})[4:]

    header, _, row, _ = table(measured(0.5, 0.7), measured(0.6, 0.5))
    assert header.startswith("| mean accuracy without boolq, % |")
    assert row == "| `fast` | 70.0 ± 4.6 | 50.0 ± 5.0 |"  # sqrt(p (1 - p) / 100)
    assert table(measured(0.5, 0.7, None), measured(0.6, 0.5, None))[2] == "| `fast` | 70.0 | 50.0 |"
    assert not table(measured(0.51, 0.7), measured(0.4, 0.4))
    assert not table(measured(0.5, 0.5), measured(0.4, 0.4))  # no task would be left


def test_results_without_the_newer_measures_stay_readable(tmp_path):
    path = REPOSITORY / "benchmarks" / "results" / "quality_smollm2.json"
    result = json.loads(path.read_text())
    assert "KL" in markdown(result)
    for row in result["rows"]:
        del row["kl"]
    found = markdown(result)
    assert "| `fisher+lstsq` | 29.2 |" in found
    assert "KL" not in found
    draw(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_benchmark_measures_only_missing_settings(make, saved, text_file, tmp_path, monkeypatch):
    folder, output = saved(make(GQA)), tmp_path / "quality.json"
    arguments = ["--base_model", folder, "--calibrate", text_file, "--evaluate", text_file, "--output", output]
    arguments += ["--nsamples", 8, "--reconstruct_nsamples", 8, "--seq_len", 16, "--eval_seq_len", 64, "--ratios", 0.3]

    def run(*settings):
        monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, arguments), "--ways", *settings])
        quality.main()
        return json.loads(output.read_text())["rows"]

    first = run("flap-published")
    rows = run("flap-published", "osscar")
    assert rows[0] == first[0]
    assert [row["way"] for row in rows] == ["flap-published", "osscar"]
    for row in rows:
        assert 0 < row["kl"][text_file.name] < 1
        assert row["reached_of_decoder"] == pytest.approx(0.3, abs=0.005)
    assert "KL(dense, pruned)" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").exists()


def test_a_recipe_in_the_benchmark_makes_the_plan_of_the_command(make, saved, text_file, tmp_path, monkeypatch):
    recipe = dataclasses.replace(BALANCED, nsamples=8, reconstruct_nsamples=8)
    monkeypatch.setitem(PruneConfig.PRESETS["recipe"], "balanced", recipe.settings())
    monkeypatch.setitem(SETTINGS, "balanced", functools.partial(quality_settings.Maker.pruned, recipe=recipe))
    model = make(GQA)
    folder, ratio = saved(model), 0.25
    plans = []

    def watched(*arguments, **named):
        pruning = prune_in_rounds(*arguments, **named)
        plans.append(pruning.decision.plan)
        return pruning

    monkeypatch.setattr(quality_settings, "prune_in_rounds", watched)
    sizes = ["--seq_len", 16, "--batch_size", 4]
    argv = ["--base_model", folder, "--calibrate", text_file, "--evaluate", text_file, "--eval_seq_len", 64, *sizes]
    argv += ["--nsamples", 2]  # the recipe's own number takes precedence
    argv += ["--output", tmp_path / "quality.json", "--ways", "balanced", "--ratios", ratio]
    monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, argv)])
    quality.main()
    of_all = round(ratio * geometry_of(model).decoder_params) / geometry_of(model).total_params
    argv = ["--base_model", folder, "--dataset", text_file, *sizes, "--recipe", "balanced", "--skip_evaluation"]
    argv += ["--results_dir", tmp_path, "--output_name", "out", "--pruning_ratio", of_all, "--device", "cpu"]
    assert run_global_pruning.main([str(part) for part in argv]) == 0
    assert PrunePlan.read_json(tmp_path / "out" / "prune_plan.json").layers == plans[0].layers
    assert 3 * 96 > sum(len(kept.mlp_channels) for kept in plans[0].layers) > 3 * 32
