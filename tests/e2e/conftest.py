"""Real models, made on first use by the tool beside the shared text; tests that need them are skipped without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import shared_folder


@pytest.fixture(scope="module")
def own_cores():
    """Give a real model this process's share of the cores: more threads than cores wait for each other, spinning."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_model():
    """``real_model(name)`` is the model's folder."""
    shared = shared_folder()
    if shared is None:
        pytest.skip("needs ../shared/tools/real_models.py (or HGSP_SHARED), which a plain clone does not have")
    models = Path(os.environ.get("HGSP_MODELS") or "~/.cache/hgsp-models").expanduser().resolve()

    def folder(name):
        if name == "qwen2.5-0.5b" and not (models / name / "config.json").is_file():
            pytest.skip(f"{name} is a download of 478 MB: make it with real_models.py first to include it")
        command = [sys.executable, str(shared / "tools" / "real_models.py"), name, "--out", str(models)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{name} could not be made: {done.stderr.strip().splitlines()[-1]}")
        return Path(done.stdout.strip().splitlines()[-1])

    return folder
