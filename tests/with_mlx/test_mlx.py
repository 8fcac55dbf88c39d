"""mlx-lm computes from every folder it is said to read what Transformers computes from the checkpoint."""

import pytest

from conftest import TINY, make_tiny, make_tokenizer
from exporting import (
    PLANS,
    REAL_CASES,
    answers_of,
    assert_agrees,
    exported,
    pruned_folder,
    real_checkpoints,
    skip_without,
)

#: Of mlx on a CPU, in dense models as well: its log-probabilities of Qwen2.5-0.5B, which it reads as it was published,
#: are 8e-4 from those in float64, and those of Transformers in float32 are 5e-5 from them.
MLX_ERROR = 1e-3

#: Name -> tiny model, what differs, plan and target.
CASES = {
    **{f"{name}, {plan}": (name, {}, plan, "mlx") for name, plan in zip(TINY, PLANS, strict=True)},
    "qwen2": ("qwen2-14q2kv", {"hidden_size": 112}, "attention gone", "mlx"),
    "llama with biases": ("llama-mha-biased", {}, "first attention gone", "mlx"),
    "llama, linear rope": (
        "llama-8q4kv",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        "MLP gone",
        "mlx",
    ),
    "llama, scaled rope": (
        "llama-8q4kv",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        "non-uniform",
        "mlx",
    ),
    "llama as DeciLM": ("llama-8q4kv", {}, "attention gone", "decilm"),
    "qwen2 as DeciLM": ("qwen2-14q2kv", {"hidden_size": 112}, "MLP gone", "decilm"),
    "stock llama": ("llama-8q4kv", {}, "uniform", "stock"),
    "stock mistral": ("llama-8q4kv", {}, "uniform, layer gone", "stock"),
    "stock qwen3": ("qwen3-8q2kv", {}, "uniform", "stock"),
}
CASES = {
    case: (name, {"hidden_size": 112} if name.startswith("qwen2") else changes, plan, target)
    for case, (name, changes, plan, target) in CASES.items()
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    parent = tmp_path_factory.mktemp("checkpoints")
    tiny = {
        case: pruned_folder(make_tiny(name, **changes), plan, make_tokenizer(), parent / case)
        for case, (name, changes, plan, _) in CASES.items()
    }
    return tiny | real_checkpoints(parent)


@pytest.fixture(scope="module")
def answers(checkpoints):
    targets = {case: target for case, (*_, target) in CASES.items()}
    return answers_of("mlx_lm", [(folder, targets.get(case, "mlx")) for case, folder in checkpoints.items()])


@pytest.mark.parametrize("name", [*CASES, *REAL_CASES])
def test_the_folder_answers_like_the_checkpoint(checkpoints, answers, name):
    folder, target = skip_without(checkpoints, name), CASES[name][-1] if name in CASES else "mlx"
    assert_agrees(answers[folder, target], folder, MLX_ERROR if name in REAL_CASES else 1e-4)


def test_the_self_check_runs_the_engine(tmp_path):
    folder = pruned_folder(make_tiny("qwen3-8q2kv"), "non-uniform", make_tokenizer(), tmp_path / "pruned")
    checks = exported(folder, "mlx").exported.checks
    assert checks[1].startswith("mlx-lm: log-probabilities of 31 tokens equal the checkpoint's within")
