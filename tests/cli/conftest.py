"""Saved tiny models, a small data folder, and the evaluation recipe to run on them."""

import itertools
import json

import pytest

import run_global_pruning
from conftest import make_tiny
from evaluating import FAST
from evaluation import run_evaluation
from hgsp.models.checkpoint import save_pruned
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan
from pruning import BALANCED


@pytest.fixture
def dense(saved, make):
    return saved(make("llama-8q4kv"), "dense")


@pytest.fixture
def pruned(tmp_path, make, tokenizer):
    """A pruned folder with its .bin, as the pruning recipe leaves it."""
    folder = tmp_path / "pruned"
    folder.mkdir()
    model = make("llama-8q4kv")
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """A data folder with a little of everything that the tests evaluate."""
    folder = tmp_path / "data"
    rows = [{"goal": f"open door {n}", "sol1": "push it", "sol2": "eat it"} for n in range(4)]
    files = {
        "wikitext2/wiki.test.raw": "Robert is an English actor .\n" * 40,
        "c4/c4_sample_1000.jsonl": "".join(json.dumps({"text": f"Document {n} of many."}) + "\n" for n in range(30)),
        "lambada/lambada_test.jsonl": "".join(json.dumps({"text": f"She saw the {n} dog"}) + "\n" for n in range(4)),
        "tasks/piqa_valid.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "tasks/piqa_valid-labels.lst": "0\n0\n1\n0\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def evaluate(data):
    """``evaluate(model, *flags)`` runs the recipe and returns its exit code; later flags win."""

    def run(model, *flags):
        settings = [part for pair in FAST.items() for part in pair]
        return run_evaluation.main([str(f) for f in ("--model_path", model, "--data_dir", data, *settings, *flags)])

    return run


@pytest.fixture
def prune(saved, text_file, tmp_path):
    """``prune(name, *flags)`` runs the recipe on a tiny model and gives (exit code, result folder); later flags win."""
    bases = {}

    def run(name, *flags, family="llama-8q4kv", recipe=run_global_pruning.main):
        if family not in bases:
            bases[family] = saved(make_tiny(family, vocab_size=272), family, max_shard_size="60KB")
        paths = (
            "--base_model",
            bases[family],
            "--dataset",
            text_file,
            "--results_dir",
            tmp_path,
            "--output_name",
            name,
        )
        reconstructs = dict(itertools.pairwise(flags)).get("--reconstruct") != "none"
        pairs = [pair for pair in BALANCED.items() if reconstructs or pair[0] != "--reconstruct_nsamples"]
        settings = itertools.chain.from_iterable(pairs)
        return recipe([str(part) for part in (*settings, *paths, *flags)]), tmp_path / name

    return run
