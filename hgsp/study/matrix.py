"""The cells of the study and their commands, as data and pure functions; nothing runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS_DIR, SMOKE_RESULTS_DIR = "results", "results/smoke"


@dataclass(frozen=True)
class Cell:
    """One model at one ratio; the study's own ``flags`` come before those the user passes through."""

    model: str  # name of its folder in the results folder
    base_model: str
    percent: int
    flags: tuple[str, ...] = ()

    @property
    def output_name(self) -> str:
        """``--output_name`` of the pruning command."""
        return f"{self.model}/prune_{self.percent}"

    def folder(self, results_dir: str) -> Path:
        """Return the result folder."""
        return Path(results_dir) / self.output_name

    def arguments(self, results_dir: str, passed: Sequence[str], scores: Path | None) -> list[str]:
        """Return the arguments of the pruning command."""
        arguments = ["--base_model", self.base_model, "--output_name", self.output_name]
        arguments += ["--pruning_ratio", f"{self.percent / 100:g}"]
        if results_dir != RESULTS_DIR:
            arguments += ["--results_dir", results_dir]
        arguments += [*self.flags, *passed]
        return arguments if scores is None else [*arguments, "--scores", str(scores)]


#: Results folder -> (hub id, percentages). Query heads per KV head: 4:1, 4:1 and 7:1.
STUDY = {
    "LLaMA-3-8B": ("meta-llama/Meta-Llama-3-8B", (20, 30, 50)),
    "Mistral-7B-v0.3": ("mistralai/Mistral-7B-v0.3", (20, 30)),
    "Qwen2.5-7B": ("Qwen/Qwen2.5-7B", (20, 30)),
}

#: Flags that reduce the matrix to minutes on a CPU.
SMOKE_FLAGS: tuple[str, ...] = (
    *("--device", "cpu", "--temperature", "0.0", "--dataset", "builtin", "--nsamples", "16", "--seq_len", "128"),
    *("--eval_tasks", "builtin", "--eval_seq_len", "512", "--eval_max_windows", "8", "--no_bin"),
)
#: Folder in MODELS_DIR -> (results folder, percentages, results folder and flags of the stand-in if it is missing).
SMOKE_STUDY: dict[str, tuple[str, tuple[int, ...], tuple[str, tuple[str, ...]] | None]] = {
    "smollm2-135m": ("SmolLM2-135M", (20, 30, 50), None),
    "mistral-135m": ("Mistral-135M", (20, 30), ("SmolLM2-135M-fisher", ("--importance_method", "fisher"))),
    "qwen2.5-0.5b": ("Qwen2.5-0.5B", (20, 30), ("SmolLM2-135M-seed-7", ("--seed", "7"))),
}


def study_cells(models_dir: Path | None) -> list[Cell]:
    """Return the cells of the study; folders in ``models_dir``, named as on the hub, take precedence over the hub."""
    cells = []
    for model, (hub_id, percentages) in STUDY.items():
        local = None if models_dir is None else models_dir / hub_id.rpartition("/")[2]
        base_model = str(local) if local is not None and local.is_dir() else hub_id
        cells += [Cell(model, base_model, percent) for percent in percentages]
    return cells


def smoke_cells(folders: Mapping[str, Path]) -> list[Cell]:
    """Return the same matrix of small models; SmolLM2, which is required, stands in for missing ones."""
    cells = []
    for name, (model, percentages, stand_in) in SMOKE_STUDY.items():
        base_model, flags = folders.get(name), SMOKE_FLAGS
        if base_model is None:
            assert stand_in is not None
            base_model, model, flags = folders["smollm2-135m"], stand_in[0], SMOKE_FLAGS + stand_in[1]
        cells += [Cell(model, str(base_model), percent, flags) for percent in percentages]
    return cells


def planned_arguments(cells: Sequence[Cell], results_dir: str, passed: Sequence[str]) -> list[list[str]]:
    """Return every cell's arguments if none fails: a model's first cell scores it, the others reuse its scores."""
    first: dict[str, Path] = {}
    arguments = []
    for cell in cells:
        arguments.append(cell.arguments(results_dir, passed, first.get(cell.model)))
        first.setdefault(cell.model, cell.folder(results_dir) / "scores.npz")
    return arguments
