"""Rows of the tables that are more than one field per cell: functions from results to cells."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

from docs_results import (
    GIB,
    RATIOS,
    TEXTS,
    UNSEEN_TEXTS,
    WIKITEXT,
    Result,
    Row,
    by_ratio,
    methods,
    number,
    percent,
)

from hgsp.scoring.names import IMPORTANCE_METHODS

WITH_TEN = (0.1, *RATIOS)
NORMALIZATIONS = ("none", "mean", "share", "rank", "output")

#: Columns of the first table: ways of ``benchmarks/quality.py``, and phases that ``benchmarks/speed.py`` times.
HEADLINE = {
    "osscar": "OSSCAR, the best published method here",
    "fast": "`--recipe fast`",
    "balanced": "`--recipe balanced`",
    "best": "`--recipe best`",
}
PHASES = {"decode": "decode, llama.cpp F16", "prefill": "prefill, llama.cpp F16"}


def code(*names: str) -> dict[str, str]:
    return {name: f"`{name}`" for name in names}


def headline(quality: Result, speed: Result) -> Iterable[Row]:
    """Yield perplexity of the recipes and speed at batch size 1, from dense to small; both have the same ratios."""
    ppl = {(row["way"], row["ratio"]): row["ppl"][WIKITEXT] for row in quality["rows"]}
    seconds = [
        {point["phase"]: point["cpu"] for point in model["points"] if point["batch_size"] == 1}
        for model in speed["engines"]["llama.cpp f16"].values()
    ]
    for ratio, taken in zip((None, *RATIOS), seconds, strict=True):
        speeds = [f"{seconds[0][phase] / taken[phase]:.2f} ×" for phase in PHASES]
        if ratio is None:
            yield "dense", *[number(quality["dense"][WIKITEXT])] * len(HEADLINE), *speeds
        else:
            yield percent(ratio), *(number(ppl[way, ratio]) for way in HEADLINE), *speeds


def parts(found: Result, plain: Result) -> Iterable[Row]:
    """Yield perplexity from the plain methods to the recipes: what each part of a recipe adds."""
    yield from methods({"random": "`random`, the control", "taylor": "`taylor`, the default"}, RATIOS)(plain)
    yield from methods({"fisher": "`fisher` (`--recipe fast`)"}, RATIOS)(plain)
    labels = {
        "fisher+lstsq": "`fisher`, `--reconstruct lstsq`",
        "fisher+search+lstsq, 512 sequences": "the same, `--reconstruct_nsamples 512 --search 10`",
        "balanced": "`--recipe balanced`",
        "best, lstsq": "`--recipe best --reconstruct lstsq`",
        "best": "`--recipe best`",
    }
    yield from by_ratio(labels)(found)


def temperatures(found: Result) -> Iterable[Row]:
    """Yield perplexity with and without the H-GSP prior, by method."""
    cells = {
        (row["method"], row["ratio"], row["temperature"]): number(row["ppl"])
        for row in found["rows"]
        if row["normalization"] == "auto"
    }
    for method in IMPORTANCE_METHODS:
        row = [cells.get((method, ratio, T), "") for ratio in RATIOS for T in (0.0, 1.0)]
        if all(row):
            yield f"`{method}`", *row


def normalizations(found: Result) -> Iterable[Row]:
    """Yield perplexity by method and normalisation."""
    cells = {(row["method"], row["normalization"]): number(row["ppl"]) for row in found["rows"]}
    for method in dict.fromkeys(row["method"] for row in found["rows"]):
        yield f"`{method}`", *(cells[method, kind] for kind in NORMALIZATIONS)


def scoring(found: Result) -> Iterable[Row]:
    """Yield the time and memory of scoring, by method."""
    for full in found["at_full_depth"]:
        rows = [row for row in found["rows"] if row["method"] == full["method"]]
        ratios = [*(row["time_ratio"] for row in rows), full["time_ratio_of_a_further_layer"]]
        peak = f"{full['extrapolated_peak_bytes'] / GIB:.1f} GiB"
        cells = [*(f"{ratio:.2f}" for ratio in ratios), f"{full['extrapolated_peak_over_weights']:.2f}", peak]
        yield f"`{full['method']}`", rows[0]["plain_pass"].replace("+", " and "), *cells


def texts(validation: Result, mixed: Result) -> Iterable[Row]:
    """Yield perplexity of one method by calibration text."""
    for label, found in (("WikiText-2 validation", validation), ("WikiText-2 train and C4", mixed)):
        rows = {row["ratio"]: row["ppl"] for row in found["rows"] if row["way"] == "fisher+lstsq"}
        yield label, *(number(rows[ratio][text]) for ratio in (0.2, 0.5) for text in TEXTS)


def calibrations(found: Result, mixed: Result) -> Iterable[Row]:
    """Yield quality of ``balanced`` by calibration text, from the same number of tokens."""
    rows = {row["calibration"]: row for row in found["rows"]}
    rows["both"] = next(row for row in mixed["rows"] if (row["way"], row["ratio"]) == ("balanced", found["ratio"]))
    labels = {
        "WikiText-2": "WikiText-2 train",
        "C4": "C4",
        "both": "both",
        "both, sequences of 1024 tokens": "both, sequences of 1024 tokens",
        "both, scored on tokens drawn from the model": "both, `--labels model`",
    }
    for name, label in labels.items():
        yield label, *(number(rows[name]["ppl"][text]) for text in TEXTS), accuracy(rows[name]["accuracy"])


def third_text(three: Result, two: Result) -> Iterable[Row]:
    """Yield KL of ``balanced`` from two texts, and from a third one as well, from the same number of tokens."""
    by_two = {row["ratio"]: row for row in two["rows"] if row["way"] == "balanced"}
    for row in three["rows"]:
        for calibrated, cell in (("both", by_two[row["ratio"]]), ("both and Python's help", row)):
            yield percent(row["ratio"]), calibrated, *(f"{cell['kl'][text]:.3f}" for text in (*TEXTS, *UNSEEN_TEXTS))


def accuracy(found: Result) -> str:
    return f"{100 * found['acc_norm']:.1f} ± {100 * found['acc_norm_stderr']:.1f}"


def blocks(found: Result) -> Iterable[Row]:
    """Yield how refitting all weights of MLPs changes perplexity and KL of ``best``, by ratio."""
    cells = {(row["way"], row["ratio"]): row for row in found["rows"]}
    for ratio, text in itertools.product(RATIOS, TEXTS):
        before, after = (cells[way, ratio] for way in ("best, lstsq", "best"))
        changes = [f"{after[measure][text] / before[measure][text] - 1:+.0%}" for measure in ("ppl", "kl")]
        yield percent(ratio), TEXTS[text], number(before["ppl"][text]), number(after["ppl"][text]), *changes


def refits(found: Result) -> Iterable[Row]:
    """Return perplexity and KL by what is refitted after least squares, and how."""
    labels = {
        "balanced, attention slope 0, blocks, MLPs alone": "MLPs",
        "balanced, attention slope 0, blocks": "attention and MLPs",
        "balanced, attention slope 0, blocks, 256 tokens to a step": "the same in steps of 256 tokens instead of 512",
        "balanced, attention slope 0, blocks, squared errors": "the same, towards squared errors",
    }
    return _by_setting(found, labels)


def learned_masks(learned: Result, found: Result) -> Iterable[Row]:
    """Yield KL before the refit, and perplexity and KL after it, by the steps of mask learning."""
    plain = next(
        row for row in found["rows"] if (row["way"], row["ratio"]) == ("balanced", learned["rows"][0]["ratio"])
    )
    first = learned["rows"][0]["mask_kl"][0]
    for row in (plain, *learned["rows"]):
        kl = row.get("mask_kl", [first])
        last = kl[-10:]
        steps, moved = len(row.get("mask_kl", [])), f"{row.get('moved', 0):.0%}"
        before = f"{sum(last) / len(last):.2f}"
        yield f"{steps}", moved, before, *_by_text(row), *(f"{row['kl'][text]:.3f}" for text in UNSEEN_TEXTS)


def local_refits(found: Result) -> Iterable[Row]:
    """Yield the error that refits of single blocks leave, relative to none."""
    blocks = {"attention": "attention without its weakest KV group", "mlp": "MLP without half of its channels"}
    for row in found["rows"]:
        yield blocks[row["kind"]], row["way"], f"{row['energy']:.0%}", f"{row['loss']:.0%}"


def changed_recipes(before: Result, now: Result) -> Iterable[Row]:
    """Yield perplexity and KL of recipes before and after they changed."""
    today = {(row["way"], row["ratio"]): row for row in now["rows"]}
    for row in before["rows"]:
        for when, cell in (("before", row), ("now", today[row["way"], row["ratio"]])):
            yield percent(row["ratio"]), f"`{row['way']}`, {when}", *_by_text(cell)


def unseen(found: Result) -> Iterable[Row]:
    """Yield KL on texts that no method calibrates on."""
    cells = {
        (row["way"], row["ratio"], text): f"{row['kl'][text]:.3f}"
        for row, text in itertools.product(found["rows"], UNSEEN_TEXTS)
        if text in row["kl"]
    }
    for way in dict.fromkeys(way for way, *_ in cells):
        yield f"`{way}`", *(cells.get((way, ratio, text), "") for text in UNSEEN_TEXTS for ratio in RATIOS)


def _by_setting(found: Result, labels: Mapping[str, str]) -> Iterable[Row]:
    """Yield perplexity and KL of the settings with labels, by ratio."""
    cells = {(row["way"], row["ratio"]): row for row in found["rows"]}
    for ratio, (way, label) in itertools.product(RATIOS, labels.items()):
        if row := cells.get((way, ratio)):
            yield percent(ratio), label, *_by_text(row)


def _by_text(row: Result) -> list[str]:
    """Return perplexity and KL on each text."""
    return [shown for text in TEXTS for shown in (number(row["ppl"][text]), f"{row['kl'][text]:.3f}")]


def minutes(found: Result) -> Iterable[Row]:
    """Yield the minutes that each method takes, with perplexity and KL, the fastest first."""
    for row in sorted(found["rows"], key=lambda row: row["cpu_seconds"]):
        yield f"`{row['way']}`", f"{row['cpu_seconds'] / 60:.1f}", *_by_text(row)


def slopes(found: Result) -> Iterable[Row]:
    """Return perplexity and KL of ``balanced`` by the slope of the attention scores."""
    labels = {f"balanced, attention slope {slope}": slope for slope in ("0", "0.5")}
    return _by_setting(found, {**labels, "balanced": "1", "balanced, attention slope 1.5": "1.5"})


def boolq(found: Result) -> Iterable[Row]:
    """Yield accuracy on BoolQ, where always answering yes beats the dense model."""
    cells = {
        (row["way"], row["ratio"]): f"{100 * row['accuracy']['by_task']['boolq']['acc']:.1f}"
        for row in found["rows"]
        if "accuracy" in row
    }
    dense = f"{100 * found['dense_accuracy']['by_task']['boolq']['acc']:.1f}"
    for way in dict.fromkeys(way for way, _ in cells):
        yield f"`{way}`", dense, *(cells.get((way, ratio), "") for ratio in RATIOS)


def recipes(*found: Result) -> Iterable[Row]:
    """Yield seconds of every recipe for a whole model, by hardware; without a search, which no recipe has any more."""
    for result in found:
        for recipe, stages in result["whole_model"].items():
            seconds = [stages.get(stage, {"seconds": 0})["seconds"] for stage in ("score", "reconstruct")]
            yield result["processor"], f"`{recipe}`", *(f"{s:,}" if s else "" for s in (*seconds, sum(seconds)))


def efficiency(found: Result) -> Iterable[Row]:
    """Yield sizes and speeds of one run, and their ratios to the dense model over several runs; of times as speeds."""
    for name in found["ratios"]["dense"]:
        ratios = []
        for model in ("p20", "p50"):
            low, high = found["ratios_of_four_runs"][model].get(name, [found["ratios"][model][name]] * 2)
            if "_ms_" in name:
                ratios.append(f"{1 / high:.2f} to {1 / low:.2f} x as fast")
            else:
                ratios.append(f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}")
        yield f"`{name}`", *(short(found["models"][model][name]) for model in ("dense", "p20", "p50")), *ratios


def short(value: float) -> str:
    """Return a number with four digits and a unit prefix."""
    for size, prefix in ((1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if prefix == ' k' else size):.4g}{prefix}"
    return f"{value:.4g}"


def evaluation(row: Result) -> str:
    """Return the difference to the dense model: a factor of perplexities, points of accuracies."""
    if "ppl" in row["metric"]:
        return f"×{row['pruned'] / row['dense']:.2f}"
    return f"{100 * (row['pruned'] - row['dense']):+.1f} points"


def with_error(key: str) -> Callable[[Result], str]:
    """Return a maker of cells with a value and its standard error."""

    def cell(row: Result) -> str:
        error, decimals = row[f"{key}_stderr"], 3 if "ppl" in row["metric"] else 4
        return f"{row[key]:,.{decimals}f}" + ("" if error is None else f" ± {error:,.{decimals}f}")

    return cell


def multiples(*found: Result) -> Iterable[Row]:
    """Yield perplexity as a multiple of the dense model's, by model, method and ratio."""
    for model, result in zip(("SmolLM2-135M", "Qwen2.5-Coder-0.5B"), found, strict=True):
        for method in ("fisher", "taylor"):
            rows = [row for row in result["rows"] if (row["method"], row["temperature"]) == (method, 0)]
            by = {row["ratio"]: row["ppl"] / result["dense"]["ppl"] for row in rows}
            yield model, f"`{method}`", *(f"{by[ratio]:.2f}" for ratio in WITH_TEN)


def quantized(result: Result) -> Iterable[Row]:
    """Yield the files of all models from the largest to the smallest."""
    for row in sorted(result["rows"], key=lambda row: -row["bytes"]):
        yield row["model"], row["type"], f"{row['bytes'] / 1e6:.1f} MB", number(row["ppl"])
