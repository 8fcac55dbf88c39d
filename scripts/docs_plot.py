#!/usr/bin/env python3
"""Draw the plots of docs/images from the results of benchmarks/quality.py (needs matplotlib)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
from docs_source import REPOSITORY, RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

TEXT, RATIOS = "wiki.test.raw", (0.2, 0.3, 0.5)
#: Method -> label and style; ours are drawn thick.
METHODS = {
    "best": ("best (ours)", {"color": "#0072b2", "linewidth": 2.5, "marker": "o"}),
    "balanced": ("balanced (ours)", {"color": "#56b4e9", "linewidth": 2.5, "marker": "s"}),
    "fast": ("fast (ours)", {"color": "#56b4e9", "linewidth": 2.5, "marker": "<"}),
    "osscar": ("OSSCAR", {"color": "#d55e00", "marker": "^"}),
    "llm-pruner": ("LLM-Pruner", {"color": "#009e73", "marker": "v"}),
    "flap-published": ("FLAP", {"color": "#cc79a7", "marker": "d"}),
    "shortgpt": ("ShortGPT", {"color": "#777777", "marker": "x"}),
    "wanda-sp": ("Wanda-sp", {"color": "#e69f00", "marker": ">"}),
    "gisp": ("GISP", {"color": "#000000", "marker": "p"}),
}
#: Methods of the plot by ratio.
LINES = ("best", "balanced", "osscar", "llm-pruner", "flap-published", "shortgpt")


def quality_smollm2(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw perplexity over the removed fraction, one line per method."""
    ppl = {(row["way"], row["ratio"]): row["ppl"][TEXT] for row in found["rows"]}
    for method in LINES:
        label, style = METHODS[method]
        axes.plot(RATIOS, [ppl[method, ratio] for ratio in RATIOS], label=label, **style)
    axes.legend(frameon=False)
    axes.xaxis.set_major_locator(FixedLocator(RATIOS))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("decoder parameters removed")


def minutes_smollm2(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw perplexity over the minutes of pruning, one point per method."""
    for row in found["rows"]:
        label, style = METHODS[row["way"]]
        place = row["cpu_seconds"] / 60, row["ppl"][TEXT]
        axes.plot(*place, linestyle="", markersize=8, **style)
        axes.annotate(label, place, xytext=(0, 8), textcoords="offset points", ha="center")
    axes.margins(x=0.2, y=0.12)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("minutes of one CPU thread to remove 30%, log scale")


#: Picture -> the results it shows, and what draws them.
PLOTS: dict[str, tuple[str, Callable[[Axes, Mapping[str, Any]], None]]] = {
    "quality_smollm2": ("quality_smollm2_compared", quality_smollm2),
    "minutes_smollm2": ("quality_smollm2_minutes", minutes_smollm2),
}


def main() -> None:
    for name, (result, plot) in PLOTS.items():
        found = json.loads((REPOSITORY / RESULTS / f"{result}.json").read_text(encoding="utf-8"))
        matplotlib.rcParams["svg.hashsalt"] = result  # the same file from the same results
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.axhline(found["dense"][TEXT], color="black", linestyle=":", label="dense")
        plot(axes, found)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator([30, 50, 100, 200, 500, 1000]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_ylabel("WikiText-2 perplexity, log scale")
        axes.set_title("SmolLM2-135M-Instruct, pruned without training")
        axes.grid(axis="y", alpha=0.3)
        folder = REPOSITORY / "docs" / "images"
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
