"""A tiny model, its scores and pruned folder, and the stages of a pruning project as commands over them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hard.forked import Ended, finish, run, start
from hgsp.console.checksums import CHECKSUMS, read_checksums
from hgsp.environment import file_sha256

#: A label, and what to do; it returns everything that was wrong.
Experiment = tuple[str, Callable[[], list[str]]]

INPUTS = "../../inputs"
#: Files with times, commands or pictures: they have to be there and whole, but not the same.
VOLATILE = (".log", ".yaml", "analysis.json", "results.json", ".md", ".html", ".png", ".tex", "summary.csv")
#: Files of a result that are written once it has its name, and written again at the next occasion.
LATER = ("report.html", "report.md", "training.log")

MODEL = ("--base_model", f"{INPUTS}/dense", "--device", "cpu")
TEXT = ("--dataset", f"{INPUTS}/text.txt", "--nsamples", "4", "--seq_len", "32", "--data_dir", INPUTS)
RESULT = ("--results_dir", "out", "--output_name", "p", "--min_mlp_width", "8", "--temperature", "0")
MEASURED = ("--eval_tasks", f"{INPUTS}/text.txt", "--eval_max_windows", "1", "--eval_seq_len", "32")
CUT = ("cut", *MODEL, *TEXT, *RESULT, "--scores", f"{INPUTS}/scores.npz", "--skip_evaluation", "--pruning_ratio", "0.2")
TRAIN = (
    *("--pruned_model", f"{INPUTS}/pruned", "--data_path", f"{INPUTS}/rows.json", "--output_dir", "out/r"),
    *("--device", "cpu", "--skip_evaluation", "--max_steps", "3", "--eval_steps", "1", "--val_size", "4"),
    *("--batch_size", "2", "--micro_batch_size", "2", "--cutoff_len", "64"),
)


@dataclass(frozen=True)
class Stage:
    """A command in a folder with ``out``, ``tmp`` and ``spill``.

    ``target`` is its result. ``again`` are the flags to try in turn when it is repeated. ``old`` is a file or folder of
    the inputs that is at the target first.
    """

    arguments: tuple[str, ...]
    target: str
    again: tuple[tuple[str, ...], ...] = ((), ("--overwrite",))
    old: str | None = None
    before: Callable[[], None] = field(default=lambda: None)


def _small_study() -> None:
    """Let the study have two cells, which run in its own process."""
    from hgsp.cli import prune, study
    from hgsp.study import processes
    from hgsp.study.matrix import Cell

    class Done:
        def __init__(self, code: int) -> None:
            self.poll = lambda: code

    flags = (*TEXT, "--min_mlp_width", "8", "--temperature", "0", "--skip_evaluation", "--device", "cpu")
    cells = [Cell("m", f"{INPUTS}/dense", percent, flags) for percent in (20, 30)]
    study.chosen_cells = lambda _smoke: cells
    processes.subprocess_starter = lambda *_: lambda arguments, *_: Done(prune.main(arguments))


STAGES: dict[str, Stage] = {
    "prune": Stage(
        ("prune", *MODEL, *TEXT, *RESULT, *MEASURED, "--pruning_ratio", "0.2", "--spill_dir", "spill"), "out/p"
    ),
    "overwrite": Stage((*CUT, "--overwrite"), "out/p", again=((),), old="pruned"),
    "score": Stage(("score", *MODEL, *TEXT, "--output", "out/scores.npz", "--spill_dir", "spill"), "out/scores.npz"),
    "cut": Stage(CUT, "out/p"),
    "reconstruction": Stage((*CUT, "--reconstruct", "blocks", "--reconstruct_nsamples", "8"), "out/p"),
    "search": Stage((*CUT, "--search", "2"), "out/p"),
    "training": Stage(("finetune", *TRAIN), "out/r", again=((), ("--resume",), ("--overwrite",))),
    "evaluation": Stage(
        (
            *(
                "evaluate",
                "--model_path",
                f"{INPUTS}/pruned",
                "--data_dir",
                INPUTS,
                "--device",
                "cpu",
                "--output",
                "out/e",
            ),
            *("--tasks", f"{INPUTS}/text.txt", "--seq_len", "32", "--limit", "2"),
        ),
        "out/e",
        again=((),),
    ),
    "study": Stage(("study", "--smoke", "--results_dir", "out"), "out/m", again=((),), before=_small_study),
    "export": Stage(
        ("export", f"{INPUTS}/pruned", "--to", "decilm", "--output", "out/g", "--no_check"), "out/g", again=((),)
    ),
}


@dataclass
class World:
    """The folder of all experiments, with the undisturbed result of every stage."""

    root: Path
    expected: dict[str, dict[str, str]] = field(default_factory=dict)
    old: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def new_work(self, name: str, stage: Stage) -> Path:
        """Return a fresh folder for one experiment."""
        work = self.root / "runs" / name
        shutil.rmtree(work, ignore_errors=True)
        for part in ("out", "tmp", "spill"):
            (work / part).mkdir(parents=True)
        if stage.old is not None:
            shutil.copytree(self.root / "inputs" / stage.old, work / stage.target)
        return work

    def expect(self, name: str) -> None:
        """Run a stage undisturbed and keep what it leaves, and the time it takes."""
        stage = STAGES[name]
        work = self.new_work(f"expected-{name}", stage)
        self.old = contents(work / stage.target) if stage.old is not None else self.old
        ended = run(work, stage.arguments, stage.before)
        assert ended.code == 0, ended.errors
        self.expected[name] = contents(work)
        self.seconds[name] = ended.seconds


def make_world(root: Path, stages: Iterable[str] = ()) -> World:
    """Make the inputs, and the undisturbed results of some stages.

    Inputs that need a computation are made in children, so that this process can still fork.
    """
    inputs = root / "inputs"
    inputs.mkdir(parents=True)
    world = World(root)
    work = world.new_work("inputs", Stage((), ""))
    ended = finish(*start(work, lambda: _make_inputs(inputs)))
    assert ended.code == 0, ended.errors
    for arguments, made in (
        (("score", *MODEL, *TEXT, "--output", "out/scores.npz", "--dtype", "float32"), None),
        ((*CUT[:-1], "0.3", "--scores", "out/scores.npz", "--dtype", "float32"), "pruned"),
    ):
        ended = run(work, arguments)
        assert ended.code == 0, ended.errors
        source = work / ("out/p" if made else "out/scores.npz")
        source.rename(inputs / (made or "scores.npz"))
        if not made:
            shutil.copyfile(inputs / "scores.npz", source)
    for name in stages:
        world.expect(name)
    return world


def _make_inputs(inputs: Path) -> int:
    """Write the dense model, a text, and rows to train on."""
    from conftest import make_tiny, make_tokenizer
    from hgsp.data.texts import CALIBRATE, load_text

    make_tiny("llama-8q4kv", num_hidden_layers=2, intermediate_size=64).save_pretrained(inputs / "dense")
    make_tokenizer().save_pretrained(inputs / "dense")
    (inputs / "text.txt").write_text(load_text("builtin", CALIBRATE).content[:20_000], encoding="utf-8")
    rows = [{"instruction": f"Repeat {n}.", "input": "", "output": f"{n} " * (1 + n % 3)} for n in range(12)]
    (inputs / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return 0


def contents(place: Path) -> dict[str, str]:
    """Return every name below a folder, or of a file, with the hash of its content where that is always the same."""
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    found = {}
    for path in files:
        name = path.relative_to(place).as_posix()
        stable = path.is_file() and not path.is_symlink() and not path.name.endswith(VOLATILE)
        found[name] = hashlib.sha256(_stable_part(path)).hexdigest() if stable else ""
    return found


def _stable_part(path: Path) -> bytes:
    """Return the content of a file, of checksums without those of files that are never the same."""
    content = path.read_bytes()
    if path.name != CHECKSUMS:
        return content
    return b"".join(line for line in content.splitlines(True) if not line.decode().rstrip().endswith(VOLATILE))


def faults_of(world: World, name: str, work: Path) -> list[str]:
    """Return everything wrong with a disturbed run's folder: half-written results, or an old one that is lost."""
    stage, target = STAGES[name], work / STAGES[name].target
    expected = {key: value for key, value in world.expected[name].items() if _is_below(key, stage.target)}
    wholes = [_below(expected, stage.target), *([world.old] if stage.old is not None else [])]
    if not target.exists():
        return ["the old result is lost"] if stage.old is not None else []
    if name in ("evaluation", "study"):  # files that appear one after the other, each of them whole
        return _damaged(target) + (_damaged_cells(expected, work) if name == "study" else [])
    found = contents(target)
    if not any(_same(found, whole) for whole in wholes):
        return [f"half-written: {sorted(set(wholes[0].items()) ^ set(found.items()))[:4]}"]
    return _damaged(target)


def repeated(world: World, name: str, work: Path) -> list[str]:
    """Run a stage again, undisturbed, and return everything wrong with what it leaves."""
    stage = STAGES[name]
    ended = Ended(2, "", 0.0)
    for flags in stage.again:
        ended = run(work, (*stage.arguments, *flags), stage.before)
        if ended.code != 2:
            break
    if name == "export" and ended.code == 2 and "not empty" in ended.errors:
        ended = Ended(0, "", 0.0)  # exports are complete when they appear, and are never replaced
    if ended.code != 0:
        return [f"the repeated run ends with {ended.code}: {ended.errors[-300:]}"]
    found, expected = contents(work), world.expected[name]
    problems = [f"leftovers: {sorted(found.keys() - expected.keys())[:4]}"] if found.keys() - expected.keys() else []
    if missing := expected.keys() - found.keys():
        problems.append(f"missing: {sorted(missing)[:4]}")
    if changed := [key for key in expected.keys() & found.keys() if expected[key] != found[key]]:
        problems.append(f"other bytes: {sorted(changed)[:4]}")
    return problems + _damaged(work / stage.target)


def _same(found: dict[str, str], whole: dict[str, str]) -> bool:
    def fixed(names: dict[str, str]) -> dict[str, str]:
        return {key: value for key, value in names.items() if not key.endswith(LATER) and not _is_hidden(key)}

    return fixed(found) == fixed(whole)


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") and part != "." for part in key.split("/"))


def _is_below(key: str, folder: str) -> bool:
    return key == folder or key.startswith(f"{folder}/")


def _below(names: dict[str, str], folder: str) -> dict[str, str]:
    return {key.removeprefix(folder).lstrip("/") or ".": value for key, value in names.items() if key != folder} or {
        ".": names[folder]
    }


def _damaged(place: Path) -> list[str]:
    """Return the files under their final names that nobody can read."""
    damaged = []
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        key = path.relative_to(place).as_posix()
        if not path.is_file() or _is_hidden(key):
            continue
        if path.suffix == ".json":
            with contextlib.suppress(ValueError):
                json.loads(path.read_text(encoding="utf-8"))
                continue
            damaged.append(f"damaged: {key}")
        elif path.stat().st_size == 0:
            damaged.append(f"empty: {key}")
        elif path.name == CHECKSUMS:
            digests = (read_checksums(path.parent) or {}).items()
            wrong = [name for name, digest in digests if file_sha256(path.parent / name) != digest]
            damaged += [f"other checksums: {wrong[:4]}"] if wrong else []
    return damaged


def _damaged_cells(expected: dict[str, str], work: Path) -> list[str]:
    problems = []
    for cell in sorted((work / "out/m").iterdir()):
        if cell.is_dir() and not cell.name.startswith("."):
            whole = _below(
                {key: value for key, value in expected.items() if _is_below(key, f"out/m/{cell.name}")},
                f"out/m/{cell.name}",
            )
            if not _same(contents(cell), whole):
                problems.append(f"half-written: {cell.name}")
    return problems
