"""Valid files of every kind, from which mutations start: written by the commands' own writers where those are quick."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import TrainerState

from conftest import make_tiny, make_tokenizer
from gguf_tokenizers import byte_level
from hgsp.console.state_files import write_state
from hgsp.costs.latency import BlockTimings, LatencyTable, Workload
from hgsp.evaluation.results import Metric, Results, TaskResult
from hgsp.exports.export import export
from hgsp.models.checkpoint import save_pruned
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.prior import Influence
from hgsp.scoring.scores import Scores
from hgsp.search.search import SearchState
from plans import plan_of
from reports import evaluation, pruning, recovery, write_group_table, write_losses

GEOMETRY, SMALL = "llama-8q4kv", {"intermediate_size": 16, "num_hidden_layers": 2, "hidden_size": 32}
FITS = [
    {"layer": 0, "module": "mlp.down_proj", "ridge": 0.1, "error_before": 0.5, "error_after": 0.2, "changed": True},
    {"layer": 0, "module": "self_attn.o_proj", "ridge": None, "error_before": None, "error_after": 0.0}
    | {"changed": False},
]


def tiny_model() -> Any:
    return make_tiny(GEOMETRY, **SMALL)


def a_plan() -> PrunePlan:
    keep = [LayerKeep((0, 2), tuple(range(9))), LayerKeep((0, 1, 2, 3), tuple(range(16)))]
    return plan_of(geometry_of(tiny_model()), keep)


def dense_folder(folder: Path) -> Path:
    tiny_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def pruned_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_pruned(apply_plan(tiny_model(), a_plan()), make_tokenizer(), folder)
    return folder


def plan(folder: Path) -> bytes:
    a_plan().write_json(folder / "plan.json")
    return (folder / "plan.json").read_bytes()


def scores(folder: Path) -> list[bytes]:
    layer = {"attention": np.array([1.0, 2.0, 3.0, 4.0]), "mlp": np.arange(16.0)}
    outputs = {f"{kind}.output": values / 2 for kind, values in layer.items()}
    influence = Influence(np.array([0.1, 0.2]), np.array([0.1, 0.1]), np.array([0.2, 0.3]))
    provenance = {"base_model": "m", "importance_method": "taylor", "seed": 1, "dtype": "float32", "labels": "text"}
    sample = np.zeros((2, 7, 16), np.float32)
    written = []
    for measured, layers in ((influence, (layer, layer)), (None, ({**layer, **outputs}, {**layer, **outputs}))):
        Scores(layers, measured, sample, provenance).write(folder / "scores.npz")
        written.append((folder / "scores.npz").read_bytes())
    return written


def states(folder: Path) -> list[bytes]:
    path = folder / "state.json"
    SearchState("f", [[0.0, 0.1], [0.2, 0.0]], {"a": 0.1, "b": 0.2}, [1.0, 0.9], [True]).write(path)
    written = [path.read_bytes()]
    tensors = {"model.layers.0.mlp.down_proj.weight": "0" * 64}
    for kind, content in (
        ("reconstruction", {"fingerprint": "f", "layers": {"0": {"findings": FITS, "tensors": tensors}}}),
        ("training", {"data_path": "rows.json", "lora_r": 8}),
    ):
        path.unlink()
        write_state(path, kind, content)
        written.append(path.read_bytes())
    return written


def trainer_state(folder: Path) -> bytes:
    history = [{"loss": 2.5, "grad_norm": 1.0, "step": 1}, {"eval_loss": 2.0, "step": 2}]
    state = TrainerState(global_step=2, epoch=1.0, log_history=history, best_model_checkpoint="x/checkpoint-2")
    return json.dumps(asdict(state)).encode()


def write_trainer_files(folder: Path) -> Path:
    """Write what the Trainer writes beside its progress."""
    place = folder / "checkpoint-2"
    place.mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, place / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": 2}, place / name)
    return place


def results(folder: Path) -> bytes:
    found = Results.open(folder)
    for role, ppl in (("dense", 10.0), ("pruned", 12.0)):
        found.enter(role, f"models/{role}", f"{role}-weights")
        protocol = {"split": "test", "sha256": "ab", "seq_len": 64, "windows": 2, "tokens": 126, "bos": False}
        done: dict[str, Any] = {"status": "done", "model": f"{role}-weights", "request": {"seq_len": 64}}
        for task, name in (("c4", "token_ppl"), ("piqa", "acc"), ("boolq", "acc"), ("efficiency", "prefill_ms_batch1")):
            metrics = (Metric(name, ppl, stderr=0.5, higher_is_better=False),)
            found.add(TaskResult(role, task, metrics=metrics, num_items=3, protocol=protocol, seconds=1.0, **done))
        found.add(TaskResult(role, "obqa", "failed", f"{role}-weights", {}, reason="no network"))
    found.write({"warnings": []})
    return (folder / "results.json").read_bytes()


def analysis(folder: Path) -> list[bytes]:
    more = {"asked_ratio_of": "all", "recovery": recovery()}
    return [json.dumps(content).encode() for content in (pruning(), pruning(**more), recovery(), evaluation())]


def tables(folder: Path) -> list[bytes]:
    write_group_table(folder)
    write_losses(folder)
    return [(folder / name).read_bytes() for name in ("global_group_table.csv", "loss_curve.csv")]


def latency(folder: Path) -> bytes:
    timings = BlockTimings(0.1, (0.2, 0.3), {1: (0.1, 0.2), 8: (0.1,)}, 0.01)
    workloads = [Workload("decode", batch, context) for batch in (1, 4) for context in (16, 64)]
    widths = {1: (1, 16), 8: (8,)}
    settings = ("tiny", 32, 8, 2, "a CPU", "float32", "cpu", (1, 4), widths)
    LatencyTable(*settings, dict.fromkeys(workloads, timings), {"torch": "2"}).write(folder / "latency.json")
    return (folder / "latency.json").read_bytes()


def rows() -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    return [
        {"instruction": "Add", "input": "1 and 2", "output": "3"},
        {"instruction": "Go on", "output": "B", "system": "Be short.", "history": [["Begin", "A"]]},
        {"messages": messages, "system": "Be short.", "tools": [{"type": "function", "function": {"name": "add"}}]},
        {"text": "Once upon a time."},
    ]


def gguf(folder: Path) -> bytes:
    tokenizer = byte_level("smollm", only="Some text.")  # each token takes time in every execution
    make_tiny(GEOMETRY, **SMALL, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1).save_pretrained(
        folder / "dense"
    )
    tokenizer.save_pretrained(folder / "dense")
    written = export(folder / "dense", "gguf", folder / "gguf", gguf_type="f32", self_check=False)
    (file,) = written.folder.glob("*.gguf")
    return file.read_bytes()
