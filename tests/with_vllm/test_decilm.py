"""vLLM computes from a DeciLM folder, and from a stock one, what Transformers computes from the checkpoint."""

import pytest

from conftest import make_tiny, make_tokenizer
from exporting import (
    REAL_PLANS,
    WIDE_HEADS,
    answers_of,
    assert_agrees,
    exported,
    pruned_folder,
    real_checkpoints,
    skip_without,
)

#: Name -> tiny model, what differs, and plan.
TINY_CASES = {
    "llama, first attention gone": ("llama-8q4kv", WIDE_HEADS, "first attention gone"),
    "llama with biases, attention gone": ("llama-mha-biased", {**WIDE_HEADS, "hidden_size": 128}, "attention gone"),
    "qwen2, MLP gone": ("qwen2-14q2kv", {"hidden_size": 448, "head_dim": 32}, "MLP gone"),
    "mistral, layer gone": ("mistral-8q4kv", WIDE_HEADS, "layer gone"),
    "llama, scaled rope": (
        "llama-8q4kv",
        {
            **WIDE_HEADS,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        "non-uniform",
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    parent = tmp_path_factory.mktemp("checkpoints")
    tiny = {
        case: pruned_folder(make_tiny(name, **changes), plan, make_tokenizer(), parent / case)
        for case, (name, changes, plan) in TINY_CASES.items()
    }
    return tiny | real_checkpoints(parent)


@pytest.fixture(scope="module")
def answers(checkpoints):
    return answers_of(
        "vllm", {folder: exported(folder, "decilm", self_check=False).folder for folder in checkpoints.values()}
    )


@pytest.mark.parametrize("name", [*TINY_CASES, *REAL_PLANS])
def test_a_decilm_folder_answers_like_the_checkpoint(checkpoints, answers, name):
    folder = skip_without(checkpoints, name)
    assert_agrees(answers[folder], folder)


def test_a_stock_folder_answers_like_the_checkpoint(checkpoints):
    folder = skip_without(checkpoints, "uniform")
    stock = exported(folder, "stock", self_check=False).folder
    assert_agrees(answers_of("vllm", {folder: stock})[folder], folder)


def test_the_self_check_runs_the_engine(tmp_path):
    model = make_tiny("llama-8q4kv", **WIDE_HEADS)
    folder = pruned_folder(model, "non-uniform", make_tokenizer(), tmp_path / "pruned")
    checks = exported(folder, "decilm").exported.checks
    assert checks[2].startswith("vLLM: log-probabilities of 31 tokens equal the checkpoint's within")
