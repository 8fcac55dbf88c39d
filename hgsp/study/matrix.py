"""The cells of the study and the command of each: data and pure functions, nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS_DIR, SMOKE_RESULTS_DIR = "results", "results/smoke"


@dataclass(frozen=True)
class Cell:
    """One model at one ratio. ``flags`` are the study's own for this model, before those the user passes through."""

    model: str  # the folder's name under the results folder
    base_model: str
    percent: int
    flags: tuple[str, ...] = ()

    @property
    def output_name(self) -> str:
        return f"{self.model}/prune_{self.percent}"

    def folder(self, results_dir: str) -> Path:
        return Path(results_dir) / self.output_name

    def arguments(self, results_dir: str, passed: Sequence[str], scores: Path | None) -> list[str]:
        """What the pruning recipe is called with."""
        found = ["--base_model", self.base_model, "--output_name", self.output_name]
        found += ["--pruning_ratio", f"{self.percent / 100:g}"]
        if results_dir != RESULTS_DIR:
            found += ["--results_dir", results_dir]
        found += [*self.flags, *passed]
        return found if scores is None else [*found, "--scores", str(scores)]


#: Results folder -> (hub id, percentages). 4:1, 4:1 and 7:1 query heads per KV head.
STUDY = {
    "LLaMA-3-8B": ("meta-llama/Meta-Llama-3-8B", (20, 30, 50)),
    "Mistral-7B-v0.3": ("mistralai/Mistral-7B-v0.3", (20, 30)),
    "Qwen2.5-7B": ("Qwen/Qwen2.5-7B", (20, 30)),
}

#: What makes the same matrix take minutes on a processor.
SMOKE_FLAGS: tuple[str, ...] = (
    *("--device", "cpu", "--temperature", "0.0", "--dataset", "builtin", "--nsamples", "16", "--seq_len", "128"),
    *("--eval_tasks", "builtin", "--eval_seq_len", "512", "--eval_max_windows", "8", "--no_bin"),
)
#: Folder in MODELS_DIR -> (results folder, percentages, name and flags in its place where the folder is not there).
SMOKE_STUDY: dict[str, tuple[str, tuple[int, ...], tuple[str, tuple[str, ...]] | None]] = {
    "smollm2-135m": ("SmolLM2-135M", (20, 30, 50), None),
    "mistral-135m": ("Mistral-135M", (20, 30), ("SmolLM2-135M-fisher", ("--importance_method", "fisher"))),
    "qwen2.5-0.5b": ("Qwen2.5-0.5B", (20, 30), ("SmolLM2-135M-seed-7", ("--seed", "7"))),
}


def study_cells(models_dir: Path | None) -> list[Cell]:
    """The matrix of the study. A model's folder in ``models_dir``, named as on the hub, goes before the hub."""
    cells = []
    for model, (hub_id, percentages) in STUDY.items():
        local = None if models_dir is None else models_dir / hub_id.rpartition("/")[2]
        base_model = str(local) if local is not None and local.is_dir() else hub_id
        cells += [Cell(model, base_model, percent) for percent in percentages]
    return cells


def smoke_cells(folders: Mapping[str, Path]) -> list[Cell]:
    """The same matrix on small models in these folders; SmolLM2, which must be there, stands in for others."""
    cells = []
    for name, (model, percentages, in_its_place) in SMOKE_STUDY.items():
        base_model, flags = folders.get(name), SMOKE_FLAGS
        if base_model is None:
            assert in_its_place is not None
            base_model, model, flags = folders["smollm2-135m"], in_its_place[0], SMOKE_FLAGS + in_its_place[1]
        cells += [Cell(model, str(base_model), percent, flags) for percent in percentages]
    return cells


def planned(cells: Sequence[Cell], results_dir: str, passed: Sequence[str]) -> list[list[str]]:
    """Every cell's arguments if none fails: a model's first cell scores it, the others cut from its scores."""
    first: dict[str, Path] = {}
    arguments = []
    for cell in cells:
        arguments.append(cell.arguments(results_dir, passed, first.get(cell.model)))
        first.setdefault(cell.model, cell.folder(results_dir) / "scores.npz")
    return arguments
