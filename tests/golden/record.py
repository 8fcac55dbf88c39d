"""Record the golden numbers of two tiny models: ``python tests/golden/record.py`` from the root.

Weights come from NumPy's legacy generator, whose stream is frozen, and the text is the licence, so that no new version
of torch, Python or this repository changes the numbers.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import REPOSITORY, make_tiny
from hgsp.data.calibration import build_calibration
from hgsp.data.texts import Text
from hgsp.evaluation.metrics.ppl import perplexity
from hgsp.models.blocks import KINDS
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.score import score_groups

GOLDEN = Path(__file__).parent / "golden.json"
MODELS = ("llama-9q3kv-tied", "qwen2-14q2kv")
METHODS = ("taylor", "magnitude", "wanda", "fisher")
LICENCE = Text("licence", "whole file", "LICENSE", "''", (REPOSITORY / "LICENSE").read_text())


def frozen_model(name: str) -> Any:
    """Return a tiny model whose weights never change."""
    model, random = make_tiny(name), np.random.RandomState(7)
    with torch.no_grad():
        for parameter_name, parameter in sorted(model.named_parameters()):
            values = random.standard_normal(parameter.shape).astype(np.float32)
            centre = 1.0 if "norm" in parameter_name else 0.0
            parameter.copy_(centre + 0.1 * torch.from_numpy(values))
    return model


def numbers(name: str, tokenizer: Any) -> dict[str, Any]:
    """Return importances (sum and first of every layer), the hash of a plan, and perplexities before and after it."""
    model = frozen_model(name)
    calibration = build_calibration(LICENCE, tokenizer, 4, 48, seed=42)
    geometry = geometry_of(model)
    importance = {method: score_groups(Decoder(model), method, calibration).by_layer for method in METHODS}
    table = build_group_table(importance["taylor"], geometry)
    plan = select_groups(table, geometry, geometry.total_params // 3, ShapeRules(1, 8))
    before = perplexity(model, tokenizer, LICENCE, seq_len=64, max_windows=8)
    after = perplexity(apply_plan(model, plan), tokenizer, LICENCE, seq_len=64, max_windows=8)
    return {
        "calibration_sha256": calibration.sha256,
        "importance": {
            method: [{kind: [float(layer[kind].sum()), float(layer[kind][0])] for kind in KINDS} for layer in layers]
            for method, layers in importance.items()
        },
        "plan_sha256": plan_hash(plan),
        "removed_params": plan.removed_params,
        "ppl": [before.ppl, after.ppl],
    }


def plan_hash(plan: PrunePlan) -> str:
    """Hash the kept indices alone."""
    kept = [[list(keep.kv_groups), list(keep.mlp_channels)] for keep in plan.layers]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def main() -> None:
    """Write the golden file with the provenance of its numbers."""
    from conftest import make_tokenizer

    torch.set_num_threads(1)
    provenance = {
        **{package: metadata.version(package) for package in ("torch", "transformers", "numpy")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "recorded_with": "python tests/golden/record.py",
    }
    content = {"provenance": provenance, **{name: numbers(name, make_tokenizer()) for name in MODELS}}
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
