"""The arrows of the design, and calls that must not be found anywhere in our code."""

import ast
import re
from pathlib import Path

import pytest

from conftest import REPOSITORY

#: From the first stage to the last. A module imports only from stages before its own.
STAGES = (
    ("errors", "progress", "modeling_hgsp", "spilled", "products"),
    ("rows", "weight_files"),
    ("families", "data", "logs", "_autoregister", "options", "folders"),
    ("config", "geometry", "distributed", "calibration", "devices", "__init__"),
    ("layerwise", "groups", "cli", "least_squares", "block_fit", "boundaries"),
    ("loading", "walk", "normalization", "selection"),
    ("statistics", "prior", "divergence"),
    ("importance", "two_streams", "finished_layers", "scores", "surgery", "checkpoint", "offload", "gates"),
    ("scoring", "reconstruct", "as_cut", "search"),
    ("search_by_gradient", "search_by_profile"),
    ("request", "opened"),
    ("decision",),
    ("pipeline",),
    ("report",),
    ("recovery", "study"),
    ("commands",),
)
STAGE_OF = {name: number for number, names in enumerate(STAGES) for name in names}
MODULES = sorted((REPOSITORY / "hgsp").rglob("*.py"))
OURS = [*MODULES, *sorted((REPOSITORY / "evaluation").rglob("*.py")), *sorted(REPOSITORY.glob("*.py"))]


def unit_of(path):
    """The module or package of hgsp that a file belongs to."""
    return path.relative_to(REPOSITORY / "hgsp").parts[0].removesuffix(".py")


def imports_of(path):
    """Dotted names a file imports, anywhere in it; ``from hgsp import x`` counts as ``hgsp.x``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path):
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_earlier_stages(path):
    own = unit_of(path)
    assert own in STAGE_OF, f"give {own} its place in STAGES"
    for name in imports_of(path):
        parts = name.split(".")
        other = parts[1] if parts[0] == "hgsp" and len(parts) > 1 and parts[1] in STAGE_OF else None
        if other is not None and other != own:
            assert STAGE_OF[other] < STAGE_OF[own], f"{name_of(path)} imports hgsp.{other}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_library_never_imports_evaluation_or_recipes(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    recipes = set() if unit_of(path) == "commands" else {"run_global_pruning", "finetune_lora"}
    assert not roots & ({"evaluation", "tests", "benchmarks"} | recipes)


def calls_in(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            yield name, {keyword.arg: keyword.value for keyword in node.keywords}


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_forbidden_arguments_are_never_passed(path):
    """S30: no code from a hub. F6: no random weights. S14: no unpickling. F7: a switch that does nothing."""
    for name, keywords in calls_in(path):
        assert "trust_remote_code" not in keywords, name
        assert "ignore_mismatched_sizes" not in keywords, name
        assert "safe_serialization" not in keywords, name
        if name == "load" and "weights_only" in keywords:
            assert ast.literal_eval(keywords["weights_only"]) is True


def test_torch_load_is_never_called_without_weights_only():
    """S14."""
    calls = re.findall(r"torch\.load\([^)]*\)", "\n".join(path.read_text() for path in OURS))
    assert calls
    assert all("weights_only=True" in call for call in calls)


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_attributes_that_transformers_took_away_are_not_read(path):
    """S44: head counts and hidden size live in the config; attention modules do not have them."""
    gone = {"num_heads", "num_key_value_heads", "num_attention_heads", "hidden_size"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in gone:
            owner = ast.unparse(node.value)
            assert "attn" not in owner, ast.unparse(node)
            assert "attention" not in owner, ast.unparse(node)


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_only_auto_classes_choose_a_tokenizer(path):
    """S49."""
    used = {name.rpartition(".")[2] for name in imports_of(path) if name.startswith("transformers")}
    assert {name for name in used if "Tokenizer" in name} <= {"AutoTokenizer"}
    assert not re.search(r"resize_token_embeddings\(", path.read_text())


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_no_module_has_a_name_that_says_nothing(path):
    assert Path(path).stem not in {"utils", "helpers", "common", "misc"}
