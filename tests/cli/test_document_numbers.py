"""Numbers in documents are those of benchmarks/results, or follow from the models' shapes."""

import itertools
import json
import math
import re
import runpy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import run_global_pruning
from conftest import REPOSITORY
from documents import without_blocks
from hgsp.cli import summarize
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.pipeline.config import PruneConfig
from hgsp.reconstruction.block_fit import STEP_TOKENS, num_epochs
from hgsp.reconstruction.paired_forward import HELD_OUT

README, GUIDE = REPOSITORY / "README.md", REPOSITORY / "docs" / "MULTI_MODEL_GUIDE.md"
QUALITY = REPOSITORY / "docs" / "QUALITY.md"
MODELS = ("LLaMA-3-8B", "Mistral-7B-v0.3", "Qwen2.5-7B")
RATIOS = (0.1, 0.2, 0.3, 0.5)
GIB = 1 << 30


def results(name):
    return json.loads((REPOSITORY / "benchmarks" / "results" / f"{name}.json").read_text())


def table(path, heading):
    """Rows below the table head that begins with these words, as first cell -> other cells, without emphasis."""
    lines = without_blocks(path).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {heading}"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *cells = [re.sub(r"`|\*\*| \(default\)", "", cell).strip() for cell in line.strip("|").split("|")]
        found[first] = cells
    return found


def perplexities(name, method, normalization="auto", temperature=0.0):
    found = {
        row["ratio"]: row["ppl"]
        for row in results(name)["rows"]
        if (row["method"], row["normalization"], row["temperature"]) == (method, normalization, temperature)
    }
    return [found[ratio] for ratio in RATIOS if ratio in found]


def one_decimal(values):
    return [f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" for value in values]


@pytest.mark.parametrize(
    ("heading", "name", "rows"),
    [
        (
            "SmolLM2-135M-Instruct, perplexity",
            "methods_smollm2",
            {"--importance_method fisher": "fisher", "taylor": "taylor", "random (control)": "random"},
        ),
        ("Qwen2.5-Coder-0.5B-Instruct, same", "methods_qwen2.5", {"fisher": "fisher", "taylor": "taylor"}),
    ],
)
def test_perplexities_by_method_in_the_readme(heading, name, rows):
    shown = table(README, heading)
    for first, method in rows.items():
        assert shown[first] == one_decimal([results(name)["dense"]["ppl"], *perplexities(name, method)])


def test_perplexities_after_reconstruction_in_the_readme():
    cells = {(row["way"], row["ratio"]): row["ppl"]["wiki.test.raw"] for row in results("quality_smollm2")["rows"]}
    ways = {
        "the same with --reconstruct lstsq": "fisher+lstsq",
        "that with --reconstruct_nsamples 512 --search 10": "fisher+search+lstsq, 512 sequences",
        **{f"--recipe {name}": name for name in PruneConfig.RECIPES},
        "--recipe best --reconstruct lstsq": "best, lstsq",
    }
    shown = {
        (ways[first], ratio): cell
        for first, (_, *by_ratio) in table(README, "SmolLM2-135M-Instruct, perplexity").items()
        for ratio, cell in zip(RATIOS, by_ratio, strict=True)
        if first in ways and cell
    }
    assert shown == {cell: f"{ppl:.1f}" for cell, ppl in cells.items()}


def test_every_comparison_with_published_methods_has_its_tables():
    """Their contents are compared where all generated text is."""
    shown = re.findall(r"<!-- tables of (\S+) -->\n\| ", QUALITY.read_text())
    there = [path.name for path in (REPOSITORY / "benchmarks/results").glob("quality_*_compared.json")]
    assert sorted(shown) == sorted(there)


def is_published(way):
    return not way.startswith((*PruneConfig.RECIPES, "fisher"))


def compared(ratio):
    """The rows of the comparison on SmolLM2 by way."""
    return {row["way"]: row for row in results("quality_smollm2_compared")["rows"] if row["ratio"] == ratio}


def test_comparison_with_published_methods_in_the_readme():
    pairs = []
    for name, ours in (
        ("quality_smollm2_compared", "balanced"),
        ("quality_qwen2.5_compared", "balanced, 64 sequences"),
    ):
        found = {row["way"]: row["ppl"]["wiki.test.raw"] for row in results(name)["rows"] if row["ratio"] == 0.2}
        assert found["osscar"] == min(ppl for way, ppl in found.items() if is_published(way))
        pairs.append((found[ours], found["osscar"]))
    (smol, smol_other), (qwen, qwen_other) = pairs
    rows, dense = compared(0.2), results("quality_smollm2_compared")["dense_accuracy"]
    accuracies = [*(rows[way]["accuracy"] for way in ("balanced", "best", "osscar")), dense]
    means = [f"{100 * found['acc_norm']:.1f}" for found in accuracies]
    assert {f"{100 * found['acc_norm_stderr']:.1f}" for found in accuracies} == {"1.5"}
    expected = (
        f"SmolLM2 is at {smol:.1f} with `balanced`, at {rows['best']['ppl']['wiki.test.raw']:.1f} with `best` and at"
        f" {smol_other:.1f} with the best of the others, `osscar`, at mean accuracies of {means[0]}, {means[1]} and"
        f" {means[2]} ± 1.5 (dense {means[3]})"
    )
    assert expected in README.read_text()
    expected = (
        f"Qwen is at {qwen:.1f} with `balanced`, from a quarter of the text, and at {qwen_other:.1f} with `osscar`"
    )
    assert expected in README.read_text()


def test_where_balanced_stands_among_published_methods():
    """As docs/QUALITY.md says below its tables."""
    for ratio in (0.2, 0.3, 0.5):
        rows = compared(ratio)
        ours = rows["balanced"]
        others = [row for way, row in rows.items() if is_published(way)]
        for measure, text in itertools.product(("ppl", "kl"), ours["ppl"]):
            assert ours[measure][text] < min(row[measure][text] for row in others)
        accuracies = [row["accuracy"]["acc_norm"] for row in others if "accuracy" in row]
        assert (ours["accuracy"]["acc_norm"] > max(accuracies)) == (ratio > 0.2)
        assert abs(ours["accuracy"]["acc_norm"] - max(accuracies)) < 2 * ours["accuracy"]["acc_norm_stderr"]


def test_where_ours_stand_on_qwen():
    """As docs/QUALITY.md says above its tables."""
    rows = {(row["way"], row["ratio"]): row for row in results("quality_qwen2.5_compared")["rows"]}
    gains = []
    for ratio in (0.2, 0.3, 0.5):
        ours, blocks = (rows[f"{way}, 64 sequences", ratio] for way in ("balanced", "balanced, blocks"))
        others = [row for (way, at), row in rows.items() if at == ratio and is_published(way)]
        for measure, text in itertools.product(("ppl", "kl"), ours["ppl"]):
            assert blocks[measure][text] < ours[measure][text] < min(row[measure][text] for row in others)
        gains += [1 - blocks["kl"][text] / ours["kl"][text] for text in ours["kl"]]
    assert f"KL is another {100 * min(gains):.0f} to {100 * max(gains):.0f} % lower" in QUALITY.read_text()


def test_what_accuracies_say_on_qwen():
    """As docs/QUALITY.md says above its tables."""
    found, text = results("quality_qwen2.5_compared"), QUALITY.read_text()
    names = {"balanced, blocks, 64 sequences": "blocks", "osscar": "osscar", "llm-pruner": "llm-pruner"}
    rows = {names[row["way"]]: row for row in found["rows"] if row["ratio"] == 0.5 and row["way"] in names}
    blocks, osscar = rows["blocks"], rows["osscar"]
    ahead = 100 * (osscar["accuracy"]["acc_norm"] - blocks["accuracy"]["acc_norm"])
    more = sorted(osscar["kl"][name] / divergence for name, divergence in blocks["kl"].items())
    assert f"{ahead:.1f} points above `balanced, blocks` with {more[0]:.1f} to {more[1]:.1f} times its KL" in text
    boolq = [
        100 * accuracy["by_task"]["boolq"]["acc"]
        for accuracy in (found["dense_accuracy"], rows["llm-pruner"]["accuracy"])
    ]
    assert f"right in {boolq[0]:.0f} % and `llm-pruner` in {boolq[1]:.0f} %" in text
    without = table(QUALITY, "mean accuracy without boolq, %")
    behind = float(without["balanced, blocks, 64 sequences"][-1][:4]) - float(without["osscar"][-1][:4])
    assert f"without that task it is {behind:.1f} points below" in text


def test_where_best_stands_in_perplexity_and_kl():
    """As docs/QUALITY.md says below its tables."""
    gains = []
    for best, balanced in ((rows["best"], rows["balanced"]) for rows in map(compared, (0.2, 0.3, 0.5))):
        assert all(best["ppl"][name] < balanced["ppl"][name] for name in best["ppl"])
        gains += [1 - best["kl"][name] / balanced["kl"][name] for name in best["kl"]]
    assert f"a KL that is {100 * min(gains):.0f} to {100 * max(gains):.0f} % lower" in QUALITY.read_text()


def test_where_best_stands_in_accuracy():
    """As docs/QUALITY.md says below its tables."""
    means = {
        ratio: {way: 100 * row["accuracy"]["acc_norm"] for way, row in compared(ratio).items() if "accuracy" in row}
        for ratio in (0.2, 0.3, 0.5)
    }
    for ratio, points in ((0.2, "3.6 points at 20 %"), (0.3, "1.9 at 30 %")):
        assert f"{means[ratio]['best']:.1f}" == "43.5"
        assert means[ratio]["best"] < means[ratio]["balanced"]
        assert points.startswith(f"{means[ratio]['osscar'] - means[ratio]['best']:.1f} ")
        assert points in QUALITY.read_text()
    deepest = means[0.5]
    assert sorted(deepest, key=deepest.__getitem__)[-1] == "best"
    assert max(filter(is_published, deepest), key=deepest.__getitem__) == "llm-pruner"
    lead = deepest["best"] - deepest["llm-pruner"]
    assert f"leads at 50 %, {lead:.1f} points above" in QUALITY.read_text()
    assert 2 < lead / (100 * compared(0.5)["best"]["accuracy"]["acc_norm_stderr"]) < 2.1


def test_what_boolq_and_the_tasks_beside_it_say():
    """As docs/QUALITY.md says below its tables."""
    found, text = results("quality_smollm2_compared"), QUALITY.read_text()
    boolq = {
        (row["way"], row["ratio"]): row["accuracy"]["by_task"]["boolq"]["acc"]
        for row in found["rows"]
        if "accuracy" in row
    }
    dense = found["dense_accuracy"]["by_task"]["boolq"]["acc"]
    assert f"right in {100 * dense:.0f} % of these items" in text
    assert f"gain {100 * (boolq['osscar', 0.2] - dense):.0f} points" in text
    assert f"{100 * boolq['wanda-sp', 0.2]:.1f}" == f"{100 * boolq['osscar', 0.2]:.1f}" == "64.7"
    assert f"{100 * boolq['best', 0.2]:.0f} and {100 * boolq['best', 0.3]:.0f} %" in text
    shown = table(QUALITY, "mean accuracy without boolq, winogrande, %")
    means = {way: [float(cell.split(" ")[0]) if cell else 0 for cell in cells[1:]] for way, cells in shown.items()}
    at_20, at_30, at_50 = means["best"]
    assert f"{means['osscar'][0]} and {at_20}, `best` leads at 30 % with {at_30} and at 50 % with {at_50}" in text
    assert sorted(means, key=lambda way: -means[way][0])[:2] == ["osscar", "best"]
    assert max(means, key=lambda way: means[way][1]) == max(means, key=lambda way: means[way][2]) == "best"
    lead = at_50 - max(cells[2] for way, cells in means.items() if is_published(way))
    assert f"{lead:.1f} points of {shown['best'][3].split(' ± ')[1]}" in text
    for place in (1, 2):
        assert means["balanced"][place] > max(cells[place] for way, cells in means.items() if is_published(way))


def test_what_recipes_cost_at_8b():
    found, text = results("reconstruction_llama-3-8b_h100"), QUALITY.read_text()
    shown = table(QUALITY, "seconds, one H100")
    for recipe, parts in found["whole_model"].items():
        seconds = [parts.get(part, {"seconds": 0})["seconds"] for part in ("score", "search", "reconstruct")]
        assert shown[recipe] == [str(number or "") for number in (*seconds, sum(seconds))]
    together = {recipe: int(cells[-1]) for recipe, cells in shown.items()}
    assert f"`balanced` takes {together['balanced'] / together['fast']:.1f} times as long" in text
    assert f"`best` {together['best'] / 60:.0f} minutes" in text
    assert f"Solving takes {32 * found['one_layer']['solve_s']:.0f} seconds" in text
    on_a_cpu = results("reconstruction_llama-3-8b")
    assert f"solving one layer took {on_a_cpu['one_layer']['solve_s']:.0f} seconds" in text


def test_what_refitting_whole_mlps_would_cost_at_8b(shapes):
    """The count in docs/QUALITY.md, for a layer of which nothing was cut."""
    tokens = PruneConfig.RECIPES["best"]["reconstruct_nsamples"] * PruneConfig.seq_len * (HELD_OUT - 1) // HELD_OUT
    steps = math.ceil(tokens / STEP_TOKENS)
    assert num_epochs(steps) == 1
    config = shapes["LLaMA-3-8B"].config
    weights = 3 * config.hidden_size * config.intermediate_size
    operations = 6 * weights * tokens
    seconds = operations / 200e12 + 100 * weights * steps / 2e12
    expected = (
        f"once through {tokens:,} tokens, forward and backward, at most {operations / 1e14:.1f} · 10¹⁴ floating-point"
        f" operations, and takes {steps} steps of Adam over at most {weights / 1e6:.0f} million float32 weights: at 200"
        " TFLOP/s, and with 100 bytes of memory traffic per weight and step at 2 TB/s,"
        f" {seconds:.0f} seconds a layer, {seconds * config.num_hidden_layers / 60:.0f} minutes in all."
    )
    assert expected in QUALITY.read_text()


@pytest.mark.parametrize("name", ["reconstruction_llama-3-8b", "reconstruction_llama-3-8b_h100"])
def test_what_recipes_cost_is_worked_out_for_the_recipes_as_they_are(name, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    whole_model = runpy.run_path(str(REPOSITORY / "benchmarks" / "reconstruction.py"))["whole_model"]
    found = results(name)
    assert found["whole_model"] == {
        recipe: whole_model(found["model"], found["one_layer"], flags) for recipe, flags in PruneConfig.RECIPES.items()
    }


def test_the_text_to_calibrate_on():
    shown = table(QUALITY, "`fisher+lstsq`, SmolLM2")
    texts = {"WikiText-2 validation": "quality_smollm2", "WikiText-2 train and C4": "quality_smollm2_compared"}
    for first, name in texts.items():
        found = {row["ratio"]: row["ppl"].values() for row in results(name)["rows"] if row["way"] == "fisher+lstsq"}
        assert shown[first] == [f"{value:.1f}" for ratio in (0.2, 0.5) for value in found[ratio]]


def test_refitting_whole_mlps():
    cells = {(row["way"], row["ratio"]): row for row in results("quality_smollm2")["rows"]}
    shown = table(QUALITY, "`best`, SmolLM2")
    for flag, way in (("--reconstruct lstsq", "best, lstsq"), ("--reconstruct blocks", "best")):
        assert shown[flag] == [f"{ppl:.1f}" for ratio in (0.2, 0.3, 0.5) for ppl in cells[way, ratio]["ppl"].values()]
    for ratio, percent in ((0.2, 4), (0.3, 8), (0.5, 15)):
        blocks, lstsq = cells["best", ratio], cells["best, lstsq", ratio]
        falls = [100 - 100 * blocks["kl"][text] / kl for text, kl in lstsq["kl"].items()]
        assert 12.5 < min(falls) < max(falls) < 16.5, "13 to 16 %"
        on_wikitext, on_c4 = (blocks["ppl"][text] / ppl for text, ppl in lstsq["ppl"].items())
        assert on_c4 < on_wikitext
        assert f"{1 - on_wikitext:.0%}" == f"{percent}%"


def test_the_text_to_calibrate_balanced_on():
    found = results("calibration_smollm2")
    rows = {row["calibration"]: row for row in found["rows"]} | {"both": compared(found["ratio"])["balanced"]}
    calibrations = {
        "WikiText-2 train": "WikiText-2",
        "C4": "C4",
        "WikiText-2 train and C4": "both",
        "both, sequences of 1024 tokens": "both, sequences of 1024 tokens",
        "both, --labels model": "both, scored on tokens drawn from the model",
    }
    assert set(calibrations.values()) == set(rows)
    shown = table(QUALITY, "`balanced`, 30 % | WikiText-2")
    assert set(shown) == set(calibrations)
    for first, name in calibrations.items():
        accuracy = [f"{100 * rows[name]['accuracy'][key]:.1f}" for key in ("acc_norm", "acc_norm_stderr")]
        assert shown[first] == [*(f"{ppl:.1f}" for ppl in rows[name]["ppl"].values()), " ± ".join(accuracy)]


def test_how_much_text():
    lines = QUALITY.read_text().splitlines()
    found = results("quality_smollm2_sequences")["rows"]
    for row in found:
        on = "H100" if "H100" in row["processor"] else "CPU"
        cells = [
            f"{row['nsamples']}, {row['reconstruct_nsamples']}",
            on,
            *(f"{ppl:.1f}" for ppl in row["ppl"].values()),
        ]
        assert f"| {' | '.join(cells)} |" in lines


def test_training_on_top_of_a_recipe():
    shown = table(QUALITY, "WikiText-2 / C4 | dense")
    lstsq, blocks = (results(f"recovery_smollm2_wikitext2{of}")["rows"] for of in ("", "_blocks"))
    cells, with_blocks = (
        [f"{row['ppl_wikitext2']:.1f} / {row['ppl_c4']:.1f}" for row in rows] for rows in (lstsq, blocks)
    )
    assert shown["balanced"] == [cells[0], *cells[1::2]]
    assert shown["trained"] == [cells[0], *cells[2::2]]
    assert shown["balanced with --reconstruct blocks"] == [with_blocks[0], "", "", with_blocks[1]]
    assert shown["that, trained"] == [with_blocks[0], "", "", with_blocks[2]]
    before, after = (
        " and ".join(f"{100 - 100 * there[text] / here[text]:.0f}" for text in ("ppl_wikitext2", "ppl_c4"))
        for here, there in zip(lstsq[-2:], blocks[-2:], strict=True)
    )
    assert f"{before} % lower before training, and still {after} % after it" in QUALITY.read_text()
    seconds = [row["train_s"] for row in lstsq + blocks if "train_s" in row]
    assert f"{min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes of one thread" in QUALITY.read_text()


def test_ratios_of_all_parameters_for_the_8b_comparison(shapes):
    shown = table(QUALITY, "fraction of the decoder layers | LLaMA-3-8B")
    for first, cells in shown.items():
        fraction = int(first.partition(" ")[0]) / 100
        models = [shape.geometry for shape in three(shapes)]
        assert cells == [f"{fraction * g.decoder_params / g.total_params:.4f}" for g in models]


def test_perplexities_by_normalisation_in_the_readme():
    kinds = ("none", "mean", "share", "rank", "output")
    for method, cells in table(README, "| `none` (as published)").items():
        values = [perplexities("methods_normalization", method, kind)[0] for kind in kinds]
        # whole numbers are shown from 100 on
        assert cells == [f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in values]


def test_the_price_of_scoring_in_the_readme():
    found = results("scoring_llama-3-8b")
    shown = table(README, "method | compared with")
    assert set(shown) == {row["method"] for row in found["at_full_depth"]}
    for row in found["at_full_depth"]:
        ratios = [part["time_ratio"] for part in found["rows"] if part["method"] == row["method"]]
        ratios += [row["time_ratio_of_a_further_layer"], row["extrapolated_peak_over_weights"]]
        assert shown[row["method"]][1:] == [f"{ratio:.2f}" for ratio in ratios]


def test_offloaded_pruning_in_the_readme_and_the_guide():
    shown, guide = table(README, "shape | weights"), table(GUIDE, "| LLaMA-3-8B | Mistral-7B-v0.3 | Qwen2.5-7B |")
    assert guide  # the first table of this head is that of the shapes
    peaks = []
    for name in MODELS:
        found = results(f"full_size_{name.lower()}")
        sizes = [f"{found[key] / GIB:.1f} GiB" for key in ("weight_bytes", "pruning_peak_rss_bytes")]
        seconds = [f"{found['timings_s'][key]:.0f} s" for key in ("score", "save")]
        assert shown[name][:4] == [*sizes, *seconds]
        assert shown[name][4] == f"{found['max_logit_difference_in_std']:.2f} standard deviations"
        peaks.append(sizes[1])
    assert f"| pruning with `--offload`, 4 sequences of 64 tokens: peak | {' | '.join(peaks)} |" in GUIDE.read_text()


def test_recovery_in_the_readme():
    shown = table(README, "SmolLM2-135M-Instruct, of all parameters")
    for row, (first, cells) in zip(results("recovery_smollm2")["rows"], shown.items(), strict=True):
        assert first.removesuffix(" on answers") == (
            row["way"] if row["way"] == "dense" else f"{100 * row['ratio']:.0f} %, {row['way']}"
        )
        expected = [f"{row['ppl_wikitext2']:.1f}", f"{row['ppl_c4']:.1f}", f"{100 * row['acc_arc_easy']:.1f}"]
        seconds = round(row.get("train_s", 0))
        time = f"{seconds // 60} min {seconds % 60} s" if seconds else ""
        assert cells == [*expected, f"{row['answer_loss']:.2f}", time]


def test_multiples_of_the_dense_perplexity_in_the_guide():
    files = {"SmolLM2-135M": "methods_smollm2", "Qwen2.5-Coder-0.5B": "methods_qwen2.5"}
    shown = table(GUIDE, "measured | 10 %")
    assert len(shown) == 4
    for first, cells in shown.items():
        model, method = first.split(", ")
        dense = results(files[model])["dense"]["ppl"]
        assert cells == [f"{value / dense:.2f}" for value in perplexities(files[model], method)]


@dataclass(frozen=True)
class Shape:
    """A model's config and geometry, from a skeleton without data."""

    config: Any
    geometry: Geometry


@pytest.fixture(scope="module")
def shapes():
    benchmarks = runpy.run_path(str(REPOSITORY / "benchmarks" / "shapes.py"))
    configs = {name: benchmarks["config_of"](name) for name in MODELS}
    configs["SmolLM2-135M"] = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    configs["Qwen2.5-Coder-0.5B"] = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
    )
    with torch.device("meta"):
        return {name: Shape(c, geometry_of(AutoModelForCausalLM.from_config(c))) for name, c in configs.items()}


def three(shapes):
    return [shapes[name] for name in MODELS]


def test_sizes_of_the_three_models_in_the_guide(shapes):
    shown = table(GUIDE, "| LLaMA-3-8B | Mistral-7B-v0.3 | Qwen2.5-7B |")
    for index, (config, g) in enumerate((shape.config, shape.geometry) for shape in three(shapes)):
        first = g.shapes[0]
        heads = f"{config.num_attention_heads}, {first.num_kv_groups} ({g.queries_per_kv}:1)"
        assert shown["query heads, KV heads"][index] == heads
        assert shown["layers"][index] == str(g.num_layers)
        widths = f"{g.hidden_size}, {first.mlp_width}"
        assert shown["hidden size, MLP channels of a layer"][index] == widths
        assert shown["parameters"][index] == f"{g.total_params:,}"
        assert shown["of them in decoder layers"][index] == f"{100 * g.decoder_params / g.total_params:.1f} %"
        groups = f"{g.num_layers * first.num_kv_groups}, {g.num_layers * first.mlp_width:,}"
        assert shown["KV groups, MLP channels"][index] == groups


def test_what_a_ratio_takes_in_the_guide(shapes):
    for first, cells in table(GUIDE, "`--pruning_ratio` | LLaMA").items():
        ratio = float(first.partition(":")[0])
        expected = [
            f"{(1 - ratio) * g.total_params / 1e9:.2f} B, {100 * ratio * g.total_params / g.decoder_params:.1f} %"
            for g in (shape.geometry for shape in three(shapes))
        ]
        assert cells == expected


def test_what_a_kv_group_is_in_the_guide(shapes):
    shown = table(GUIDE, "| LLaMA-3-8B, Mistral")
    names = ("LLaMA-3-8B", "Qwen2.5-7B", "SmolLM2-135M", "Qwen2.5-Coder-0.5B")
    assert shapes["LLaMA-3-8B"].geometry.kv_group_params == shapes["Mistral-7B-v0.3"].geometry.kv_group_params
    for index, g in enumerate(shapes[name].geometry for name in names):
        in_k_and_v = 2 * g.head_dim * g.hidden_size / g.kv_group_params
        expected = {
            "GQA ratio": f"{g.queries_per_kv}:1",
            "KV groups of a layer": str(g.shapes[0].num_kv_groups),
            "parameters of a KV group": f"{g.kv_group_params:,}",
            "of its layer": f"{100 * g.kv_group_params / g.layer_params(g.shapes[0]):.2f} %",
            "as many as in this many MLP channels": f"{g.kv_group_params / g.mlp_channel_params:.0f}",
            "of the group, in k_proj and v_proj": f"{100 * in_k_and_v:.1f} %",
            "KV-cache bytes per token saved": str(2 * g.head_dim * 2),
        }
        assert {first: cells[index] for first, cells in shown.items()} == expected


def test_memory_in_the_guide(shapes):
    text = GUIDE.read_text()
    models = [shape.geometry for shape in three(shapes)]
    left = [[f"{(1 - r) * 2 * g.total_params / GIB:.2f}" for r in (0.2, 0.3, 0.5)] for g in models]
    cache = [g.kv_cache_bytes_per_token(g.shapes, 2) for g in models]
    expected = {
        "weights": [f"{2 * g.total_params / GIB:.2f} GiB" for g in models],
        "weights at 0.2, 0.3, 0.5": [f"{', '.join(sizes)} GiB" for sizes in left],
        "KV cache per token, dense": [f"{size:,} B" for size in cache],
        "KV cache of 8192 tokens, dense": [f"{8192 * size / GIB:.2f} GiB" for size in cache],
    }
    for first, cells in expected.items():
        assert f"| {first} | {' | '.join(cells)} |" in text
    lora = results("recovery_memory_llama3")["whole_model"]
    assert f"{100 * lora['extra_over_weights']:.1f} % more" in text
    assert f"({lora['extra_bytes'] / GIB:.2f} GiB for the dense LLaMA-3-8B" in text
    peaks = [row["extrapolated_peak_bytes"] / GIB for row in results("scoring_llama-3-8b")["at_full_depth"]]
    assert f"{min(peaks):.1f} to {max(peaks):.1f} GiB" in text


def test_shown_results_have_the_columns_that_recipes_write(saved, make, evaluate, tmp_path, monkeypatch):
    """Tables of results in USAGE.md and EVALUATION.md took hours; their form is what a tiny model gets now."""
    monkeypatch.chdir(tmp_path)
    base = str(saved(make("llama-8q4kv")))
    flags = "--output_name X/p --pruning_ratio 0.2 --temperature 0 --nsamples 2 --seq_len 32 --dataset builtin"
    flags += " --device cpu --eval_tasks builtin --eval_seq_len 64 --eval_max_windows 2"
    assert run_global_pruning.main(["--base_model", base, *flags.split()]) == 0
    assert summarize.main(["results"]) == 0
    head = next(line for line in (tmp_path / "results/summary.md").read_text().splitlines() if line.startswith("|"))
    assert head.replace("(2 x 64)", "(8 x 512)") in (REPOSITORY / "USAGE.md").read_text().splitlines()
    assert evaluate("results/X/p", "--tasks", "builtin", "--base_model", base, "--compare", "--max_windows", "2") == 0
    written = (tmp_path / "results/X/p/evaluation/results.md").read_text()
    head = next(line for line in written.splitlines() if line.startswith("|"))
    assert head in (REPOSITORY / "docs/EVALUATION.md").read_text().splitlines()
