"""docs/methods/: one page per importance method, from its module and from measured results."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs_source import GENERATED, REPOSITORY, RESULTS, docstring_of, find, markdown, parse, table

#: The pages' order: gradients first, controls last.
METHODS = ("taylor", "taylor_2nd", "fisher", "fisher_token", "wanda", "flap", "magnitude", "random")
#: Class that a method is a value of -> what it gives.
KINDS = {
    "WeightMethod": "saliency of single weights, added up over a group",
    "ColumnMethod": "saliency of the columns that read a group, combined over them",
    "MaskMethod": "the statistic that is the importance of groups",
    "GroupMethod": "importance of whole groups",
}


@dataclass(frozen=True)
class MethodSource:
    """What a method's module says about it."""

    name: str
    title: str
    sections: Mapping[str, str]
    kind: str
    needs: tuple[str, ...]
    normalization: str
    code: str


def read_method(name: str) -> MethodSource:
    source = (REPOSITORY / "hgsp" / "scoring" / "methods" / f"{name}.py").read_text()
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
    """The name of what an assignment calls."""
    if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
        return node.value.func.id
    return None


def method_page(method: MethodSource) -> str:
    statistics = known_statistics()
    parts = [GENERATED, f"# {method.name}", method.title]
    parts.append(f"`--importance_method {method.name}`. [All methods](README.md).")
    for heading, text in method.sections.items():
        parts += [f"## {heading}", text]
        if heading == "What it needs" and method.needs:
            parts.append(table(("statistic", "shape", "meaning", "pass"), [statistics[name] for name in method.needs]))
    parts += ["## Default normalisation", normalization_text(method)]
    parts += ["## Measured", *measured(method.name)]
    parts += ["## The code", f"`hgsp/scoring/methods/{method.name}.py` gives {KINDS[method.kind]}:"]
    parts.append(f"```python\n{method.code.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def normalization_text(method: MethodSource) -> str:
    if method.normalization == "none":
        return "`none`: importances enter the global order as they are. `--score_normalization` chooses another."
    meaning = docstring_of(find(parse("hgsp/scoring/normalization.py"), f"_{method.normalization}"))
    return f"`{method.normalization}`: {markdown(meaning)} `--score_normalization` chooses another."


def known_statistics() -> dict[str, tuple[str, ...]]:
    """Rows of the table in the docstring of statistics.py, by name."""
    found = {}
    for line in docstring_of(parse("hgsp/scoring/statistics.py")).splitlines():
        cells = tuple(markdown(cell.strip()) for cell in line.strip("|").split("|"))
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells
    return found


def methods_index(methods: Sequence[MethodSource]) -> str:
    rows = [
        (
            f"[{method.name}]({method.name}.md)",
            method.title.partition(": ")[2],
            method.sections["What it needs"],
            f"`{method.normalization}`",
        )
        for method in methods
    ]
    parts = [GENERATED, "# Importance methods"]
    parts.append(
        "What `--importance_method` chooses between; "
        "the [guide](../MULTI_MODEL_GUIDE.md#which-method) says which one to choose."
    )
    parts.append(table(("method", "what it is", "needs", "normalisation"), rows))
    parts.append(
        "A group's importance divided by the parameters that leave with it is its score; one ascending order over all "
        "layers and both kinds of group decides. O out_features | I in_features | S sequences | G groups."
    )
    return "\n\n".join(parts) + "\n"


def measured(name: str) -> Iterator[str]:
    """Tables from benchmarks/results: perplexity by ratio, by normalisation, and what scoring costs."""
    anything = False
    yield (
        "Columns are the fraction of the decoder layers' parameters that was removed, without any training; ± is the "
        "standard error over the windows. The protocol is that of the [README](../../README.md)."
    )
    for path in sorted((REPOSITORY / RESULTS).glob("methods_*.json")):
        result = json.loads(path.read_text())
        if text := perplexities(name, result):
            anything = True
            dense = f"{result['dense']['ppl']:.1f}"
            yield f"Perplexity of {result['base_model']} (dense: {dense}), {origin(path, result)}:"
            yield text
    for path in sorted((REPOSITORY / RESULTS).glob("scoring_*.json")):
        result = json.loads(path.read_text())
        if text := costs(name, result):
            anything = True
            model = path.stem.removeprefix("scoring_")
            yield f"What scoring costs in the layer shape of {model}, {origin(path, result)}:"
            yield text
    if not anything:
        yield "Nothing yet."


def origin(path: Path, result: Mapping[str, Any]) -> str:
    hardware = f"{result['cores']} CPU cores, commit {result['commit']}"
    return f"[{path.name}](../../{RESULTS}/{path.name}) ({hardware}, `{result['command'].split()[1]}`)"


def perplexities(name: str, result: Mapping[str, Any]) -> str | None:
    """One line per normalisation and temperature, one column per ratio (of the decoder layers' parameters)."""
    rows = [row for row in result["rows"] if row["method"] == name]
    if not rows:
        return None
    ratios = sorted({row["ratio"] for row in rows})
    found: dict[tuple[str, float], dict[float, str]] = {}
    for row in rows:
        decimals = 0 if row["ppl"] >= 1000 else 1
        cell = f"{row['ppl']:,.{decimals}f} ±{row['stderr']:,.{decimals}f}"
        found.setdefault((row["normalization"], row["temperature"]), {})[row["ratio"]] = cell
    head = ("`--score_normalization`", "`--temperature`", *(f"{ratio * 100:g} %" for ratio in ratios))
    lines = [(f"`{kind}`", f"{T:g}", *(cells.get(ratio, "") for ratio in ratios)) for (kind, T), cells in found.items()]
    return table(head, lines)


def costs(name: str, result: Mapping[str, Any]) -> str | None:
    rows = [row for row in result["rows"] if row["method"] == name]
    if not rows:
        return None
    head = ["compared with", *(f"time, {row['layers']} layers" for row in rows)]
    cells = [rows[0]["plain_pass"].replace("+", " and "), *(f"{row['time_ratio']:.2f}" for row in rows)]
    for row in result["at_full_depth"]:
        if row["method"] == name:
            head += ["a further layer", f"peak memory over weights, {row['layers']} layers"]
            cells += [f"{row['time_ratio_of_a_further_layer']:.2f}", f"{row['extrapolated_peak_over_weights']:.2f}"]
    return table(head, [cells])
