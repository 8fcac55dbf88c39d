"""The order of packages, and calls that must not be found anywhere in our code."""

import ast
import re
from pathlib import Path

import pytest

from conftest import REPOSITORY

#: A package imports only from itself and from packages before it; ``errors`` and ``environment`` serve everybody.
PACKAGES = [
    *("errors", "environment", "console", "data", "models", "costs", "layerwise", "scoring", "pruning"),
    *("reconstruction", "search", "evaluation", "recovery", "exports", "report", "pipeline", "study", "cli"),
]
#: Packages that do with less: measuring, training and exporting know nothing of pruning; reports read files.
INDEPENDENT = {"costs", "evaluation", "recovery", "exports", "report"}
FOR_INDEPENDENT = {"errors", "environment", "console", "data", "models"}
MODULES = sorted((REPOSITORY / "hgsp").rglob("*.py"))
OURS = [*MODULES, *sorted((REPOSITORY / "evaluation").rglob("*.py")), *sorted(REPOSITORY.glob("*.py"))]


def imports_of(path):
    """Dotted names a file imports, in functions too; ``from hgsp import x`` counts as ``hgsp.x``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # of files that travel together
                assert path.stem.startswith("modeling_hgsp_"), f"{path}: relative import"
                yield f"hgsp.models.{node.module}"
                continue
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_of_modules_in_strings(path):
    """Strings that ``importlib`` or ``python -m`` could load one of our modules by, parts of f-strings included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for name in re.findall(r"^[a-z]\w*(?:\.\w+)*", node.value):
                place = REPOSITORY / name.replace(".", "/")
                if (place.is_dir() and "." in name) or place.with_suffix(".py").is_file():
                    yield name


def name_of(path):
    return str(path.relative_to(REPOSITORY))


def package_of(name):
    """The package or top module of hgsp in a dotted name."""
    parts = name.split(".")
    return parts[1] if parts[0] == "hgsp" and len(parts) > 1 and parts[1] in PACKAGES else None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_packages_import_in_their_order_alone(path):
    own = package_of(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    if own is None:
        assert path.name in ("__init__.py", "__main__.py"), "give it a package of PACKAGES"
        return
    for name in [*imports_of(path), *names_of_modules_in_strings(path)]:
        other = package_of(name)
        if other is not None and other != own:
            assert PACKAGES.index(other) < PACKAGES.index(own), f"{name_of(path)} uses {name}"
            assert own not in INDEPENDENT or other in FOR_INDEPENDENT, f"{name_of(path)} uses {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_library_never_uses_the_scripts_and_aliases_beside_it(path):
    used = {name.split(".")[0] for name in [*imports_of(path), *names_of_modules_in_strings(path)]}
    assert not used & {"evaluation", "run_global_pruning", "finetune_lora", "tests", "benchmarks", "scripts"}


def test_five_files_at_most_lie_beside_the_packages():
    assert len([path for path in (REPOSITORY / "hgsp").iterdir() if path.is_file()]) <= 5


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_modules_and_functions_are_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{name_of(path)}: {node.name}"


def calls_in(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            yield name, {keyword.arg: keyword.value for keyword in node.keywords}


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_forbidden_arguments_are_never_passed(path):
    """No code from a hub, no random weights, no unpickling, and no switch that Transformers ignores."""
    for name, keywords in calls_in(path):
        assert ast.unparse(keywords.get("trust_remote_code", ast.Constant(False))) == "False", name
        assert "ignore_mismatched_sizes" not in keywords, name
        assert "safe_serialization" not in keywords, name
        if name == "load" and "weights_only" in keywords:
            assert ast.literal_eval(keywords["weights_only"]) is True


def test_torch_load_is_never_called_without_weights_only():
    """A pickled model could run code when it is loaded."""
    calls = re.findall(r"torch\.load\([^)]*\)", "\n".join(path.read_text() for path in OURS))
    assert calls
    assert all("weights_only=True" in call for call in calls)


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_attributes_that_transformers_took_away_are_not_read(path):
    """Head counts and hidden size live in the config; attention modules no longer have them."""
    gone = {"num_heads", "num_key_value_heads", "num_attention_heads", "hidden_size"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in gone:
            owner = ast.unparse(node.value)
            assert "attn" not in owner, ast.unparse(node)
            assert "attention" not in owner, ast.unparse(node)


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_only_auto_classes_choose_a_tokenizer(path):
    """A fixed class cannot read every family's files, and a resized vocabulary would change the model."""
    used = {name.rpartition(".")[2] for name in imports_of(path) if name.startswith("transformers")}
    assert {name for name in used if "Tokenizer" in name} <= {"AutoTokenizer"}
    assert not re.search(r"resize_token_embeddings\(", path.read_text())


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_no_module_has_a_name_that_says_nothing(path):
    assert Path(path).stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_text_files_are_utf_8_on_every_system(path):
    """Without an encoding, Windows reads and writes its code page."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            mode = next((arg.value for arg in node.args if isinstance(arg, ast.Constant)), None)
            opens_text = node.func.attr == "open" and isinstance(mode, str) and "b" not in mode
            if opens_text or node.func.attr in ("read_text", "write_text"):
                assert "encoding" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)
