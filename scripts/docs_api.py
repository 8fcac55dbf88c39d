"""docs/API.md: signatures and docstrings of the public names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from docs_source import FUNCTIONS, GENERATED, docstring_of, find, markdown, parse

#: The public names, by module, in the order of the way through.
API: dict[str, tuple[str, ...]] = {
    "hgsp/evaluation/metrics/ppl.py": ("PPLMetric", "Perplexity", "perplexity"),
    "hgsp/models/checkpoint.py": ("load_pruned", "save_pruned"),
    "hgsp/models/loading.py": ("ModelSource", "inspect_model", "load_dense"),
    "hgsp/models/tokenizers.py": ("load_tokenizer",),
    "hgsp/models/geometry.py": ("LayerShape", "Geometry", "geometry_of"),
    "hgsp/data/texts.py": ("Text", "load_text"),
    "hgsp/data/calibration.py": ("Calibration", "build_calibration"),
    "hgsp/models/decoder.py": ("Decoder",),
    "hgsp/scoring/score.py": ("ScoringOptions", "Importances", "score_groups"),
    "hgsp/scoring/methods/types.py": ("WeightMethod", "ColumnMethod", "MaskMethod", "GroupMethod"),
    "hgsp/scoring/normalization.py": ("normalize",),
    "hgsp/scoring/prior.py": ("Influence", "prior_of", "perplexity_influence"),
    "hgsp/scoring/groups.py": ("GroupTable", "build_group_table"),
    "hgsp/pruning/select.py": (
        "MinimumSizes",
        "LayerKeep",
        "PrunePlan",
        "budget_for_ratio",
        "select_groups",
        "kept_mask",
    ),
    "hgsp/search/search.py": ("SearchProblem", "SearchState", "Proposals", "search"),
    "hgsp/search/by_gradient.py": ("GradientProposals",),
    "hgsp/pruning/surgery.py": ("Surgery", "apply_plan"),
    "hgsp/reconstruction/reconstruct.py": ("ModuleFit", "Reconstruction", "reconstruct"),
    "hgsp/pruning/zero_padded.py": ("zero_padded_decoder",),
    "hgsp/search/by_profile.py": ("ProfileProposals",),
    "hgsp/scoring/scores.py": ("Scores", "sample_weights"),
    "hgsp/errors.py": ("InputError", "NumericalError"),
}


def api_page() -> str:
    """Signatures and docstrings of the public names."""
    parts = [GENERATED, "# Python API"]
    parts.append(
        "The names meant to be used from Python. How they follow one another is shown in "
        "[USAGE.md](../USAGE.md#python); methods have [pages of their own](methods/README.md). "
        "Capital letters at the end of a name are the tensor's shape."
    )
    for file, names in API.items():
        module = file.removesuffix(".py").replace("/", ".")
        tree = parse(file)
        parts += [f"## {module}", markdown(docstring_of(tree).split("\n\n", 1)[0])]
        if module == "hgsp.scoring.methods.types":
            parts.append("`hgsp.scoring.methods.METHODS` maps every method's name to its value.")
        for name in names:
            parts += entry(find(tree, name), 3)
    return "\n\n".join(parts) + "\n"


def entry(node: ast.stmt, level: int, owner: str = "") -> Iterator[str]:
    """Heading, signature and docstring of a function or class, and those of its public methods."""
    assert isinstance(node, (*FUNCTIONS, ast.ClassDef))
    yield f"{'#' * level} {owner}{node.name}"
    yield f"```\n{signature(node)}\n```"
    if text := docstring_of(node):
        yield from docstring_parts(text)
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            if isinstance(member, FUNCTIONS) and not member.name.startswith("_") and docstring_of(member):
                yield from entry(member, level + 1, f"{node.name}.")


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        first = next((m for m in node.body if isinstance(m, FUNCTIONS) and m.name == "__init__"), None)
        if first is not None:
            return call(node.name, first.args, None)
        fields = [ast.unparse(member) for member in node.body if isinstance(member, ast.AnnAssign)]
        return wrapped(node.name, [re.sub(r" = field\(.*\)$", " = ...", field) for field in fields], None)
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if "property" in decorators:
        return f"{node.name}: {ast.unparse(node.returns) if node.returns else 'Any'}"
    return call(node.name, node.args, node.returns)


def call(name: str, arguments: ast.arguments, returns: ast.expr | None) -> str:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    texts = [
        parameter(arg, default) for arg, default in zip(plain, defaults, strict=True) if arg.arg not in ("self", "cls")
    ]
    if arguments.kwonlyargs:
        texts.append("*")
        texts += [
            parameter(arg, default) for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        ]
    if arguments.kwarg:
        texts.append(f"**{arguments.kwarg.arg}")
    return wrapped(name, texts, returns)


def parameter(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
    return text if default is None else f"{text} = {ast.unparse(default)}"


def wrapped(name: str, parameters: Sequence[str], returns: ast.expr | None) -> str:
    """On one line if it fits, else one parameter per line."""
    end = f") -> {ast.unparse(returns)}" if returns else ")"
    line = f"{name}({', '.join(parameters)}{end}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{name}(", *(f"    {text}," for text in parameters), end])


def docstring_parts(text: str) -> Iterator[str]:
    """Paragraphs, and a list for each of Args, Returns and Raises."""
    for paragraph in text.split("\n\n"):
        first, *rest = paragraph.splitlines()
        if first not in ("Args:", "Returns:", "Raises:"):
            yield markdown(" ".join(line.strip() for line in [first, *rest]))
            continue
        items: list[str] = []
        for line in rest:
            if re.match(r"    \S", line):
                items.append(line.strip())
            else:
                items[-1] += f" {line.strip()}"
        yield "\n".join([first, "", *(f"* {list_item(item)}" for item in items)])


def list_item(text: str) -> str:
    """What stands before the first colon is a name."""
    name, _, meaning = text.partition(": ")
    return f"`{name}`: {markdown(meaning)}"
