"""The self-check of an exported folder: its tensors, and its log-probabilities where an engine is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import hgsp
from hgsp.errors import NumericalError
from hgsp.exports import engine_log_probs
from hgsp.exports.inventory import Tensors
from hgsp.exports.source import ExportSource
from hgsp.models.configs import describe
from hgsp.models.fusion import unfused
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import ModelSource
from hgsp.models.offload import load_offloaded
from hgsp.models.safetensor_files import SafetensorFiles

#: Largest accepted difference of log-probabilities in float32. Sums in another order differ by some 1e-5, a misplaced
#: head by more than 0.1.
LIMIT = 1e-3
NUM_TOKENS = 32
#: Engine -> its name for people.
ENGINE_NAMES = {"vllm": "vLLM", "mlx_lm": "mlx-lm"}


def check_tensors(folder: Path, tensors: Tensors, source: ExportSource) -> str:
    """Read the weights again and compare them with the checkpoint.

    Raises:
        NumericalError: a name, a shape or a value differs.
    """
    written = SafetensorFiles(folder)
    if different := written.shapes.keys() ^ tensors.keys():
        raise NumericalError(f"{len(different)} tensors are missing or unknown in the export, as {min(different)}")
    for name, tensor in tensors.items():
        if not tensor.holds(written.read(name), source.read):
            raise NumericalError(f"{name} of the export differs from the checkpoint")
    return f"read again: {len(tensors)} tensors equal the checkpoint's, and the padding holds no values"


def check_log_probs(source: ExportSource, folder: Path, config: Any | None, engines: Sequence[str]) -> list[str]:
    """Compare log-probabilities of random tokens, in float32, with those of the checkpoint in Transformers.

    Args:
        config: of the class that Transformers reads the export with; None for an export that it cannot read.
        engines: keys of ``ENGINE_NAMES`` that read the export.

    Raises:
        NumericalError: they differ.
    """
    tokens = check_tokens(int(source.config["vocab_size"]))
    expected = log_probs_of(source.folder, describe(source.folder).config, tokens)
    lines = []
    if config is not None:
        lines.append(_compared("Transformers", log_probs_of(folder, config, tokens), expected))
    for engine in engines:
        name = ENGINE_NAMES[engine]
        if not is_installed(engine):
            lines.append(f"{name}: not run, for it is not installed here; export again in an environment with it")
            continue
        answer, failure = ask_engine(engine, folder, tokens.tolist())
        if answer is None:
            lines.append(f"{name}: could not be run here ({failure})")
        else:
            lines.append(_compared(name, torch.tensor(answer["log_probs"]), expected))
    return lines


def is_installed(engine: str) -> bool:
    """Return whether an engine can be imported; a mere folder of its name is a package without a file of its own."""
    found = find_spec(engine)
    return found is not None and found.origin is not None


def check_tokens(vocab_size: int) -> Tensor:
    """Return random token ids [T], the same in every run."""
    return torch.randint(0, vocab_size, (NUM_TOKENS,), generator=torch.Generator().manual_seed(0))


def log_probs_of(folder: Path, config: Any, tokens: Tensor) -> Tensor:
    """Return the log-probability of every token but the first [T-1], with one layer in memory at a time.

    Args:
        tokens: int64 [T].
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    skeleton.tie_weights()
    opened = ModelSource(str(folder), config, skeleton, geometry_of(unfused(skeleton)), ())
    decoder, _ = load_offloaded(opened, "float32", "cpu")
    with torch.inference_mode():
        logits = decoder.model(tokens[None], use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]


def ask_engine(
    engine: str, folder: Path, tokens: Sequence[int], num_greedy: int = 0
) -> tuple[dict[str, Any] | None, str]:
    """Run an engine in a process of its own; returns its answer, or None and the last line of its error."""
    request = {"engine": engine, "folder": str(folder.resolve()), "tokens": list(tokens), "num_greedy": num_greedy}
    finished = run_engine([request])
    if finished.returncode:
        return None, (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1][:200]
    return json.loads(finished.stdout.strip().splitlines()[-1]), ""


def run_engine(requests: Sequence[Mapping[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Run ``engine_log_probs``; its last lines of output are one answer per request."""
    root = str(Path(hgsp.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", engine_log_probs.__name__, json.dumps(list(requests))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def _compared(engine: str, found: Tensor, expected: Tensor) -> str:
    difference = (found - expected).abs().max().item()
    if not difference <= LIMIT:
        raise NumericalError(f"log-probabilities in {engine} differ from the checkpoint's by up to {difference:.2g}")
    return f"{engine}: log-probabilities of {len(found)} tokens equal the checkpoint's within {difference:.1g}"
