"""docs/methods/: one page for each importance method, from its module and from measured results."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from docs_results import Result, caption, load, number, percent
from docs_source import GENERATED, REPOSITORY, RESULTS, docstring_of, find, markdown, parse, table

from hgsp.scoring.names import IMPORTANCE_METHODS

#: Class of a method -> what its value computes.
KINDS = {
    "WeightMethod": "the saliency of single weights, summed over a group",
    "ColumnMethod": "the saliency of the columns that read a group, combined over them",
    "MaskMethod": "the statistic that serves as the importance of groups",
    "OutputMethod": "the importance of groups from statistics of their outputs",
    "GroupMethod": "the importance of whole groups",
}
#: The section of a module's docstring that the index quotes.
NEEDS = "What it needs"


@dataclass(frozen=True)
class MethodSource:
    """A method as its module describes it."""

    name: str
    title: str
    sections: Mapping[str, str]
    kind: str
    needs: tuple[str, ...]
    normalization: str
    code: str


def read_method(name: str) -> MethodSource:
    """Return what a method's module says: title, sections, kind, statistics, default normalisation and code."""
    source = (REPOSITORY / "hgsp" / "scoring" / "methods" / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    title, *lines = docstring_of(tree).split("\n\n", 1)
    sections: dict[str, list[str]] = {}
    for line in lines[0].splitlines():
        if line.startswith(" "):
            sections[next(reversed(sections))].append(line.strip())
        elif line:
            sections[line] = []
    value = next(node for node in tree.body if isinstance(node, ast.Assign) and called(node) in KINDS)
    assert isinstance(value.value, ast.Call)
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in value.value.keywords}
    needs = [text.value for text in ast.walk(value.value.args[1]) if isinstance(text, ast.Constant)]
    return MethodSource(
        name=name,
        title=markdown(title),
        sections={heading: markdown(" ".join(text)) for heading, text in sections.items()},
        kind=str(called(value)),
        needs=tuple(sorted(map(str, needs))),
        normalization=named.get("normalization", "none"),
        code="".join(source.splitlines(keepends=True)[tree.body[1].lineno - 1 :]),
    )


def called(node: ast.Assign) -> str | None:
    """Return the name of the class or function that an assignment calls."""
    if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
        return node.value.func.id
    return None


def method_page(method: MethodSource) -> str:
    """Return the page of one method."""
    statistics = known_statistics()
    parts = [GENERATED, f"# {method.name}", method.title]
    parts.append(f"`--importance_method {method.name}`. [All methods](README.md).")
    for heading, text in method.sections.items():
        parts += [f"## {heading}", text]
        if heading == NEEDS and method.needs:
            parts.append(table(("statistic", "shape", "meaning", "pass"), [statistics[name] for name in method.needs]))
    parts += ["## Default normalisation", normalization_text(method)]
    parts += ["## Measured", *measured(method.name, REPOSITORY / "docs" / "methods" / f"{method.name}.md")]
    parts += ["## The code", f"`hgsp/scoring/methods/{method.name}.py` computes {KINDS[method.kind]}:"]
    parts.append(f"```python\n{method.code.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def normalization_text(method: MethodSource) -> str:
    if method.normalization == "none":
        return "`none`: importances enter the global order as they are. `--score_normalization` chooses another."
    meaning = docstring_of(find(parse("hgsp/scoring/normalization.py"), f"_{method.normalization}"))
    return f"`{method.normalization}`: {markdown(meaning)} `--score_normalization` chooses another."


def known_statistics() -> dict[str, tuple[str, ...]]:
    """Return the rows of the table in the docstring of statistics.py, by name."""
    found = {}
    for line in docstring_of(parse("hgsp/scoring/statistics.py")).splitlines():
        cells = tuple(markdown(cell.strip()) for cell in line.strip("|").split("|"))
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells
    return found


def methods_table() -> str:
    """Return the table of all methods."""
    rows = [
        (
            f"[{method.name}]({method.name}.md)",
            method.title.partition(": ")[2],
            method.sections[NEEDS],
            f"`{method.normalization}`",
        )
        for method in map(read_method, IMPORTANCE_METHODS)
    ]
    return table(("method", "importance", "needs", "normalisation"), rows)


def measured(name: str, page: Path) -> Iterator[str]:
    """Yield tables from benchmarks/results: perplexity by ratio and normalisation, and the cost of scoring."""
    yield (
        "Perplexity without training, by fraction of the decoder layers' parameters removed; ± is the standard error "
        "over the windows ([protocol](../QUALITY.md#protocol))."
    )
    for title, kind, made in (
        ("Perplexity of {model} (dense: {dense:.1f}):", "methods_*", perplexities),
        ("Cost of scoring in the layer shape of {shape}:", "scoring_*", costs),
    ):
        for path in sorted((REPOSITORY / RESULTS).glob(f"{kind}.json")):
            result = load(path.stem)
            if text := made(name, result):
                dense = result.get("dense", {"ppl": 0})["ppl"]
                shape = path.stem.removeprefix("scoring_")
                yield title.format(model=result.get("base_model"), dense=dense, shape=shape)
                yield text
                yield caption("", [path.stem], page)


def perplexities(name: str, result: Result) -> str | None:
    """Return a table with one row for each normalisation and temperature, and one column for each ratio."""
    rows = [row for row in result["rows"] if row["method"] == name]
    if not rows:
        return None
    ratios = sorted({row["ratio"] for row in rows})
    found: dict[tuple[str, float], dict[float, str]] = {}
    for row in rows:
        decimals = 0 if row["ppl"] >= 1000 else 1
        cell = f"{number(row['ppl'])} ± {row['stderr']:,.{decimals}f}"
        found.setdefault((row["normalization"], row["temperature"]), {})[row["ratio"]] = cell
    head = ("`--score_normalization`", "`--temperature`", *map(percent, ratios))
    lines = [(f"`{kind}`", f"{T:g}", *(cells.get(ratio, "") for ratio in ratios)) for (kind, T), cells in found.items()]
    return table(head, lines)


def costs(name: str, result: Result) -> str | None:
    """Return a table of one row: time against a plain pass, and peak memory."""
    rows = [row for row in result["rows"] if row["method"] == name]
    if not rows:
        return None
    head = ["compared with", *(f"time, {row['layers']} layers" for row in rows)]
    cells = [rows[0]["plain_pass"].replace("+", " and "), *(f"{row['time_ratio']:.2f}" for row in rows)]
    for row in result["at_full_depth"]:
        if row["method"] == name:
            head += ["each further layer", f"peak memory / weights, {row['layers']} layers"]
            cells += [f"{row['time_ratio_of_a_further_layer']:.2f}", f"{row['extrapolated_peak_over_weights']:.2f}"]
    return table(head, [cells])
