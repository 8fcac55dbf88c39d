"""Results of a training: the merged model, checkpoint files, the adapter and the loss curve."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hgsp.environment import write_json
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.places import is_bin
from hgsp.recovery.training import Trained

CURVE_COLUMNS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


def recovered_model(pruned_model: str, method: str, trained: Trained, dtype: torch.dtype, device: str) -> Any:
    """Load the trained model in ``dtype`` with stock tensors: the adapter is merged into freshly read weights."""
    if method == "full":
        return load_pruned(trained.checkpoint, device=device, dtype=dtype)
    from peft import PeftModel

    model = load_pruned(pruned_model, device=device, dtype=dtype)
    return _merged(PeftModel.from_pretrained(model, str(trained.checkpoint)))


def merged_in_memory(adapted: Any, trained: Trained) -> Any:
    """Merge the best state's adapter into the model that was trained, without reading its weights again."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(adapted, load_peft_weights(str(trained.checkpoint), device="cpu"))
    return _merged(adapted)


def _merged(adapted: Any) -> Any:
    return adapted.merge_and_unload(safe_merge=True).requires_grad_(False).eval()


def base_of_adapter(pruned_model: str) -> str:
    """Return the name that an adapter gives its base: the folder of a .bin, which other tools cannot read."""
    folder = Path(pruned_model).parent
    return str(folder) if is_bin(pruned_model) and (folder / "config.json").is_file() else pruned_model


def relative_base(base: str, adapter: Path) -> str:
    """Return the hub id of an adapter's base, or the path of its folder from the adapter's own.

    ``import hgsp`` makes PEFT read it so (``hgsp.models.autoregister``), whatever the current folder is.
    """
    if not Path(base).exists():
        return base
    path = Path(os.path.relpath(Path(base).resolve(), adapter.resolve())).as_posix()
    return path if path.startswith("..") else f"./{path}"


def write_result(
    model: Any, tokenizer: Any, trained: Trained, folder: Path, *, method: str, with_bin: bool, title: str
) -> None:
    """Write checkpoint, ``.bin``, adapter and loss curve, with its title, into an existing folder."""
    save_pruned(model, tokenizer, folder, with_bin=with_bin)
    if method == "lora":
        (folder / "adapter").mkdir()
        shutil.copyfile(trained.checkpoint / "adapter_model.safetensors", folder / "adapter/adapter_model.safetensors")
        config = json.loads((trained.checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = relative_base(config["base_model_name_or_path"], folder / "adapter")
        config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in the order of its hashes
        write_json(config, folder / "adapter/adapter_config.json")
    runs = trained.checkpoint.parent / "runs"
    if runs.is_dir():
        shutil.copytree(runs, folder / "runs")
    rows = loss_curve(trained.history)
    with (folder / "loss_curve.csv").open("w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, CURVE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    plot_losses(rows, folder / "loss_curve.png", title)


def loss_curve(history: Sequence[Mapping[str, float]]) -> list[dict[str, float | str]]:
    """Return one row per step, with empty cells for losses not measured there."""
    rows: dict[float, dict[str, float | str]] = {}
    for entry in history:
        if "loss" in entry or "eval_loss" in entry:
            row = rows.setdefault(entry["step"], dict.fromkeys(CURVE_COLUMNS, ""))
            row.update({name: entry[name] for name in CURVE_COLUMNS if name in entry})
    return [rows[step] for step in sorted(rows)]


def plot_losses(rows: Sequence[Mapping[str, float | str]], path: Path, title: str) -> None:
    """Plot training and held-out loss over steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label, marker in (("loss", "training", None), ("eval_loss", "held out", "o")):
        points = [(row["step"], row[name]) for row in rows if row[name] != ""]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()
    figure.savefig(path, dpi=120)


def held_out_loss(trained: Trained) -> dict[str, float] | None:
    """Return the held-out loss before training and of the kept state; None if nothing was held out."""
    measured = {entry["step"]: entry["eval_loss"] for entry in trained.history if "eval_loss" in entry}
    return {"first": measured[0], "kept": measured[trained.kept_step]} if measured else None


def padding_token(tokenizer: Any, num_embeddings: int) -> int:
    """Return the id that fills a batch: the padding token if the model has a row for it, else the end of text.

    It is masked everywhere; no vocabulary grows.
    """
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None or pad >= num_embeddings else pad)
