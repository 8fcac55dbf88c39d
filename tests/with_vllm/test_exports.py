"""vLLM computes from every folder that doctor says it runs what Transformers computes from the checkpoint."""

import pytest

from conftest import make_tiny, make_tokenizer
from exporting import (
    REAL_CASES,
    WIDE_HEADS,
    answers_of,
    assert_agrees,
    exported,
    promised,
    pruned_folder,
    real_checkpoints,
    skip_without,
)
from hgsp.exports.folder_check import ask_engine

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
    "qwen2, fewer heads": ("qwen2-14q2kv", {"hidden_size": 448, "head_dim": 32}, "uniform"),
}
#: Checkpoint and target of every answer; an empty target is the checkpoint itself.
CASES = [
    *((name, "stock" if "uniform" in name or "fewer" in name else "decilm") for name in (*TINY_CASES, *REAL_CASES)),
    ("20 %", ""),
]


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
    return answers_of("vllm", [(checkpoints[name], target) for name, target in CASES if name in checkpoints])


@pytest.mark.parametrize(("name", "target"), CASES)
def test_the_folder_answers_like_the_checkpoint(checkpoints, answers, name, target):
    folder = skip_without(checkpoints, name)
    assert_agrees(answers[folder, target], folder)


def test_qwen2_with_fewer_heads_needs_the_transformers_backend(checkpoints):
    """vLLM's own Qwen2 computes the head dimension from the hidden size, and doctor names the other backend."""
    folder = checkpoints["qwen2, fewer heads"]
    assert "--model-impl transformers" in promised("vllm", folder, "stock").use
    answer, failure = ask_engine("vllm", folder.with_name(f"{folder.name}-stock"), [1, 2, 3])
    assert answer is None
    assert failure


def test_the_self_check_runs_the_engine(tmp_path):
    model = make_tiny("llama-8q4kv", **WIDE_HEADS)
    folder = pruned_folder(model, "non-uniform", make_tokenizer(), tmp_path / "pruned")
    checks = exported(folder, "decilm").exported.checks
    assert checks[2].startswith("vLLM: log-probabilities of 31 tokens equal the checkpoint's within")
