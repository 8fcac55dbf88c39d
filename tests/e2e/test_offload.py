"""Layers read from files one at a time give the checkpoint that a model in memory gives."""

import json

import pytest
import torch
from safetensors.torch import load_file

import run_global_pruning
from conftest import make_tiny
from hgsp.pruning.plan import PrunePlan


def prune(base, results, *flags):
    argv = ["--base_model", base, "--output_name", "out", "--results_dir", results, "--pruning_ratio", "0.2"]
    argv += ["--dataset", "builtin", "--nsamples", "4", "--seq_len", "32", "--device", "cpu", "--eval_tasks", "builtin"]
    argv += ["--eval_max_windows", "2", "--eval_seq_len", "48", "--min_mlp_width", "8", *flags]
    assert run_global_pruning.main([str(part) for part in argv]) == 0
    return results / "out"


def tensors_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=() if (place + half) % 2 else pytest.mark.thorough)
        for place, name in enumerate(("llama-9q3kv-tied", "qwen2-14q2kv", "qwen3-8q2kv", "llama-mha-biased"))
        for half, dtype in enumerate(("float32", "bfloat16"))
    ],
)
def test_offload_equals_resident(saved, tmp_path, name, dtype):
    """Scores, kept indices, tensors, the .bin and perplexities; the dense model lies in several files."""
    model = make_tiny(name, vocab_size=272).to(getattr(torch, dtype))  # Qwen2 tokenizers add tokens of their own
    base = saved(model, max_shard_size="60KB")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 10], "temperature": 0.6}))
    assert len(list(base.glob("*.safetensors"))) > 2
    resident = prune(base, tmp_path / "resident", "--dtype", dtype)
    offloaded = prune(base, tmp_path / "offloaded", "--dtype", dtype, "--offload")
    plans = [PrunePlan.read_json(folder / "prune_plan.json") for folder in (resident, offloaded)]
    assert plans[0].layers == plans[1].layers
    expected, got = tensors_of(resident), tensors_of(offloaded)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[key], tensor) and got[key].dtype == tensor.dtype for key, tensor in expected.items())
    in_bin = torch.load(offloaded / "pruned_model.bin", weights_only=True)["state_dict"]
    assert in_bin.keys() == expected.keys()
    assert all(torch.equal(in_bin[key], tensor) for key, tensor in expected.items())
    analyses = [json.loads((folder / "pruning_analysis.json").read_text()) for folder in (resident, offloaded)]
    generating = [json.loads((folder / "generation_config.json").read_text()) for folder in (resident, offloaded)]
    assert generating[0] == generating[1]
    assert (generating[0]["eos_token_id"], generating[0]["temperature"]) == ([257, 10], 0.6)
    for when in ("before", "after"):
        assert analyses[0]["evaluation"][when] == analyses[1]["evaluation"][when]
