"""vLLM serves a pruned folder without ``--trust-remote-code`` where the package's plugin is loaded."""

import json
import os
import subprocess
import sys

import pytest
import tomllib
import torch

from conftest import REPOSITORY, make_tiny
from hgsp.models.checkpoint import save_pruned
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan

#: Print log-probabilities of the tokens in ``ids.json``, each given those before it.
MEASURE = """
import json
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    ids = json.load(open("ids.json"))
    llm = LLM("pruned", dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=2)
    (result,) = llm.generate([{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, prompt_logprobs=0))
    scored = zip(ids[1:], result.prompt_logprobs[1:])
    json.dump([found[token].logprob for token, found in scored], open("measured.json", "w"))
"""


@pytest.fixture
def python(tmp_path):
    """``python(plugins)`` runs ``MEASURE`` with the plugins of these names, ours as pyproject.toml declares it."""
    entry_points = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    metadata = tmp_path / "installed" / "hgsp-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hgsp\nVersion: 0\n")
    for group, targets in entry_points.items():
        lines = [f"{name} = {target}" for name, target in targets.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    (tmp_path / "measure.py").write_text(MEASURE)

    def run(plugins):
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "HF_HUB_OFFLINE": "1",
            # first, because metadata of an older install may lie beside the package
            "PYTHONPATH": f"{metadata.parent}{os.pathsep}{REPOSITORY}",
            "VLLM_PLUGINS": plugins,
        }
        return subprocess.run(
            [sys.executable, "measure.py"],
            cwd=tmp_path,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=900,
            check=False,
        )

    return run


def test_log_probabilities_are_those_of_transformers(python, tokenizer, tmp_path):
    """In float32 within 1e-4 nats, the rounding of other kernels; without the plugin vLLM refuses the folder."""
    model = make_tiny("llama-8q4kv", head_dim=32)  # the smallest that its CPU attention takes
    pruned = apply_plan(model, mixed_plan(model))
    (tmp_path / "pruned").mkdir()
    save_pruned(pruned, tokenizer, tmp_path / "pruned", with_bin=False)
    ids = torch.randint(0, 256, (32,), generator=torch.Generator().manual_seed(1))
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    refused = python(plugins="")
    assert refused.returncode != 0
    assert "trust_remote_code" in refused.stderr + refused.stdout
    done = python(plugins="hgsp")
    assert done.returncode == 0, done.stderr
    expected = pruned(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    measured = torch.tensor(json.loads((tmp_path / "measured.json").read_text()))
    torch.testing.assert_close(measured, expected, atol=1e-4, rtol=0)
