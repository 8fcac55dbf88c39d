"""Examples in documents run on tiny models: Python blocks, and the commands from a dense to a recovered model."""

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
    "HuggingFaceTB/SmolLM2-135M-Instruct": "llama-8q4kv",
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
#: The blocks of a page must use one of these packages; examples of anything else show nothing of ours.
SHOWN = ("hgsp", "evaluation", "transformers")
#: A drawing and a generated tree.
WITHOUT_LANGUAGE = {"PROJECT_STRUCTURE.md"}
#: Pages in Chinese have the blocks of the English ones (test_translations.py).
WITH_PYTHON = [path for path in DOCUMENTS if blocks(path, "python") and not path.name.endswith(".zh.md")]
#: A GPU and time that the tests do not have.
QUICKER = {'"cuda"': '"cpu"', "max_steps=20": "max_steps=2"}


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


@pytest.fixture
def surroundings(models, data, tmp_path, monkeypatch):
    """Run below a fresh folder with the models, local texts and no network."""
    for folder in models.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    numbered = "".join(f"Line {n} of the text to calibrate on .\n" for n in range(4000))
    (data / "wikitext2" / "wiki.train.raw").write_text(numbered)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HGSP_DATA_DIR", str(data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_python_blocks_run_in_the_order_of_the_page(path):
    names = {"__name__": "__example__"}
    for number, text in enumerate(blocks(path, "python")):
        for shown, tested in QUICKER.items():
            text = text.replace(shown, tested)
        exec(compile(text, f"{name_of(path)}, block {number}", "exec"), names)
    shown = [getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in names.values()]
    assert any(module.startswith(SHOWN) for module in shown)


def test_there_are_python_blocks_to_run():
    found = {name_of(path) for path in WITH_PYTHON}
    assert {"README.md", "USAGE.md", "docs/PYTHON.md", "docs/MULTI_MODEL_GUIDE.md"} <= found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_output_is_shown_that_nothing_checks(path):
    """Commands, Python and configuration are tested elsewhere; a block of anything else would be taken on trust."""
    languages = {language for language, _ in fenced(path)}
    allowed = {"bash", "python", "yaml", "powershell"} | ({""} if name_of(path) in WITHOUT_LANGUAGE else set())
    assert languages <= allowed


#: Flags that make the commands take seconds and no network; a flag given twice takes its last value.
QUICK = {
    "run_global_pruning.py": (
        run_global_pruning,
        "--nsamples 4 --seq_len 32 --dataset builtin --device cpu"
        " --eval_tasks builtin --eval_seq_len 64 --eval_max_windows 2",
    ),
    "finetune_lora.py": (
        finetune_lora,
        "--max_steps 2 --batch_size 8 --cutoff_len 32 --val_size 4 --data_path builtin --device cpu"
        " --eval_tasks builtin --eval_seq_len 64 --eval_max_windows 2",
    ),
    "evaluation/run_evaluation.py": (
        run_evaluation,
        shlex.join(part for pair in FAST.items() for part in pair) + " --tasks builtin,efficiency --device cpu",
    ),
}


@pytest.mark.parametrize("document", ["README.md", "USAGE.md"])
def test_commands_from_a_dense_to_a_recovered_model(document, saved, make, tmp_path, monkeypatch):
    """The first block of each document that has all three commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = str(saved(make("llama-8q4kv")))
    way = next(text for text in blocks(REPOSITORY / document, "bash") if all(script in text for script in QUICK))
    for name in ("$(python scripts/demo_model.py)", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        way = way.replace(name, model)
    commands = [words for line in way.splitlines() if (words := shlex.split(line))[0] == "python"]
    assert [script for _, script, *_ in commands] == list(QUICK)
    for _, script, *arguments in commands:
        recipe, quick = QUICK[script]
        if "--recipe" in arguments:
            quick += " --reconstruct_nsamples 8"
        assert recipe.main([*arguments, *shlex.split(quick)]) == 0
    found = stored(tmp_path / "results" / "smollm2" / "prune_20" / "evaluation")["results"]
    assert {(item["role"], item["task"]) for item in found if item["status"] == "done"} == {
        (role, task) for role in ("dense", "pruned", "recovered") for task in ("builtin", "efficiency")
    }
