"""Examples in documents run: Python blocks, and the README's way from nothing to a recovered model, on tiny models."""

import shlex

import pytest

import finetune_lora
import run_global_pruning
from conftest import REPOSITORY, VOCAB, make_tiny
from documents import DOCUMENTS, blocks, fenced, name_of
from evaluating import FAST, stored
from evaluation import run_evaluation
from hgsp.models.checkpoint import save_pruned
from hgsp.pruning.surgery import apply_plan
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
#: AutoTokenizer gives every tokenizer beside a Qwen2 model one token more.
ROOMY = VOCAB + 1
#: Every block must leave something of one of these packages behind: an example of anything else shows nothing of ours.
SHOWN = ("hgsp", "evaluation", "transformers")
#: A drawing and signatures: test_documents.py and test_generated_pages.py compare those with the code.
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
        make_tiny(tiny, vocab_size=ROOMY).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, tiny in PRUNED.items():
        (folder / name).mkdir(parents=True)
        model = make_tiny(tiny, vocab_size=ROOMY)
        save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, folder / name)
    return folder


@pytest.mark.parametrize("text", list(python_blocks()))
def test_python_blocks_run(text, models, data, monkeypatch):
    monkeypatch.chdir(models)
    monkeypatch.setenv("HGSP_DATA_DIR", str(data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {"__name__": "__example__"}
    exec(compile(text.replace('"cuda"', '"cpu"'), "<block>", "exec"), names)
    assert any(getattr(value, "__module__", "").startswith(SHOWN) for value in names.values())


def test_there_are_python_blocks_to_run():
    found = {part.id.partition(":")[0] for part in python_blocks()}
    assert {"README.md", "README.zh.md", "USAGE.md", "docs/MULTI_MODEL_GUIDE.md"} <= found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_output_is_shown_that_nothing_checks(path):
    """Commands, Python and configuration are tested elsewhere; a block of anything else would be taken on trust."""
    languages = {language for language, _ in fenced(path)}
    allowed = {"bash", "python", "yaml"} | ({""} if name_of(path) in WITHOUT_LANGUAGE else set())
    assert languages <= allowed


#: What makes the README's recipes take seconds; a flag given twice takes its last value.
QUICK = {
    "run_global_pruning.py": (run_global_pruning, "--nsamples 4 --seq_len 32 --eval_seq_len 64 --eval_max_windows 2"),
    "finetune_lora.py": (
        finetune_lora,
        "--max_steps 2 --cutoff_len 32 --val_size 4 --eval_seq_len 64 --eval_max_windows 2",
    ),
    "evaluation/run_evaluation.py": (run_evaluation, shlex.join(part for pair in FAST.items() for part in pair)),
}


@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
def test_the_way_from_a_clone_to_a_recovered_model(document, saved, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = str(saved(make("llama-8q4kv")))
    (way,) = [text for text in blocks(REPOSITORY / document, "bash") if "scripts/demo_model.py" in text]
    commands = [shlex.split(line) for line in way.replace("$(python scripts/demo_model.py)", model).splitlines()]
    assert commands[:2] == [["make", "demo-model"], ["source", ".venv/bin/activate"]]
    assert [script for _, script, *_ in commands[2:]] == list(QUICK)
    for _, script, *arguments in commands[2:]:
        recipe, quick = QUICK[script]
        assert recipe.main([*arguments, *shlex.split(quick)]) == 0
    found = stored(tmp_path / "results" / "smollm2" / "prune_20" / "evaluation")["results"]
    assert {(item["role"], item["task"]) for item in found if item["status"] == "done"} == {
        (role, task) for role in ("dense", "pruned", "recovered") for task in ("builtin", "efficiency")
    }
