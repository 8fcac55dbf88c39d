"""Calls, attributes and names that must not appear anywhere in our code."""

import ast
import re
from pathlib import Path

import pytest

from conftest import REPOSITORY

MODULES = sorted((REPOSITORY / "hgsp").rglob("*.py"))
OURS = [*MODULES, *sorted((REPOSITORY / "evaluation").rglob("*.py")), *sorted(REPOSITORY.glob("*.py"))]


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
        assert "trust_remote_code" not in keywords, name
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
