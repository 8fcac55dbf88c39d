"""Examples in documents run: Python blocks, and the README's way from nothing to a recovered model, on tiny models."""

import pytest

from conftest import make_tiny
from documents import DOCUMENTS, blocks, fenced, name_of
from hgsp.checkpoint import save_pruned
from hgsp.surgery import apply_plan
from plans import mixed_plan

#: What examples call their models: folders of these names, relative to where they run, go before the hub.
DENSE = {
    "MODEL": "llama-8q4kv",
    "meta-llama/Meta-Llama-3-8B": "llama-8q4kv",
    "mistralai/Mistral-7B-v0.3": "mistral-8q4kv",
    "Qwen/Qwen2.5-7B": "qwen2-14q2kv",
}
PRUNED = {
    "results/LLaMA-3-8B/global_prune_20": "llama-8q4kv",
    "results/Mistral-7B-v0.3/global_prune_20": "mistral-8q4kv",
    "results/Qwen2.5-7B/global_prune_20": "qwen2-14q2kv",
}
#: Blocks that are not examples but the source of a page; test_generated_pages.py compares those.
WITHOUT_LANGUAGE = {"PROJECT_STRUCTURE.md", "docs/API.md"}


def python_blocks():
    for path in DOCUMENTS:
        for number, text in enumerate(blocks(path, "python")):
            yield pytest.param(text, id=f"{name_of(path)}: {number}")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """A folder with a tiny model under every name."""
    folder = tmp_path_factory.mktemp("models")
    for name, tiny in DENSE.items():
        make_tiny(tiny).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, tiny in PRUNED.items():
        (folder / name).mkdir(parents=True)
        model = make_tiny(tiny)
        save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, folder / name)
    return folder


@pytest.mark.parametrize("text", list(python_blocks()))
def test_python_blocks_run(text, models, data, monkeypatch):
    monkeypatch.chdir(models)
    monkeypatch.setenv("HGSP_DATA_DIR", str(data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec(compile(text.replace('"cuda"', '"cpu"'), "<block>", "exec"), {"__name__": "__example__"})


def test_there_are_python_blocks_to_run():
    found = {part.id.partition(":")[0] for part in python_blocks()}
    assert {"README.md", "USAGE.md"} <= found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_output_is_shown_that_nothing_checks(path):
    """Commands, Python and configuration are tested elsewhere; a block of anything else would be taken on trust."""
    languages = {language for language, _ in fenced(path)}
    allowed = {"bash", "python", "yaml"} | ({""} if name_of(path) in WITHOUT_LANGUAGE else set())
    assert languages <= allowed
