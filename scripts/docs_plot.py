#!/usr/bin/env python3
"""Draw docs/images/quality_smollm2.svg from the results of benchmarks/quality.py (needs matplotlib)."""

from __future__ import annotations

import json

import matplotlib
from docs_source import REPOSITORY, RESULTS
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

RESULT = "quality_smollm2_compared"
TEXT, RATIOS = "wiki.test.raw", (0.2, 0.3, 0.5)
#: Method -> label and style; ours are drawn thick.
METHODS = {
    "best": ("best (ours)", {"color": "#0072b2", "linewidth": 2.5, "marker": "o"}),
    "balanced": ("balanced (ours)", {"color": "#56b4e9", "linewidth": 2.5, "marker": "s"}),
    "osscar": ("OSSCAR", {"color": "#d55e00", "marker": "^"}),
    "llm-pruner": ("LLM-Pruner", {"color": "#009e73", "marker": "v"}),
    "flap-published": ("FLAP", {"color": "#cc79a7", "marker": "d"}),
    "shortgpt": ("ShortGPT", {"color": "#777777", "marker": "x"}),
}


def main() -> None:
    found = json.loads((REPOSITORY / RESULTS / f"{RESULT}.json").read_text(encoding="utf-8"))
    ppl = {(row["way"], row["ratio"]): row["ppl"][TEXT] for row in found["rows"]}
    matplotlib.rcParams["svg.hashsalt"] = RESULT  # the same file from the same results
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for method, (label, style) in METHODS.items():
        axes.plot(RATIOS, [ppl[method, ratio] for ratio in RATIOS], label=label, **style)
    axes.axhline(found["dense"][TEXT], color="black", linestyle=":", label="dense")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([30, 50, 100, 200, 500, 1000]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(FixedLocator(RATIOS))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("decoder parameters removed")
    axes.set_ylabel("WikiText-2 perplexity, log scale")
    axes.set_title("SmolLM2-135M-Instruct, pruned without training")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    folder = REPOSITORY / "docs" / "images"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "quality_smollm2.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
