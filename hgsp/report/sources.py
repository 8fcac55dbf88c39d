"""The files of a finished result, read for its report. A key that a file lacks leaves out a section, not the page."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hgsp.console.report_files import EvaluationReport, PruningReport, RecoveryReport, read_report_file
from hgsp.console.report_schema import (
    EVALUATION_RESULTS,
    PRUNED,
    PRUNING_REPORT,
    RECOVERED,
    RECOVERY_REPORT,
)
from hgsp.errors import InputError, one_line
from hgsp.report.content import LeftOut

GROUP_TABLE, LOSS_CURVE = "global_group_table.csv", "loss_curve.csv"
SCHEMAS = {PRUNING_REPORT: PruningReport, RECOVERY_REPORT: RecoveryReport, EVALUATION_RESULTS: EvaluationReport}


class Record(dict[str, Any]):
    """An object of a JSON file. A missing key leaves out the section that needs it: older results have fewer."""

    def __missing__(self, key: str) -> Any:
        raise LeftOut(f"this result has no {key}")


@dataclass
class GroupColumns:
    """The rows of the group table of one kind. ``layers``: dense layer -> [groups, kept groups, prior]."""

    scores: list[float] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    layers: dict[int, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sources:
    """The files of one result folder, None for those that it lacks."""

    folder: Path
    pruning: Record | None
    recovery: Record | None
    evaluation: Record | None

    def role_of(self, result: Record) -> str:
        """Return the role of an evaluation's result: a recovered folder measures itself as "pruned"."""
        is_own = result["role"] == PRUNED and (self.folder / RECOVERY_REPORT).is_file()
        return RECOVERED if is_own else str(result["role"])

    def of_pruning(self) -> Record:
        """Return the pruning report.

        Raises:
            LeftOut: there is none.
        """
        if self.pruning is None:
            raise LeftOut("this folder has no pruning report")
        return self.pruning

    def of_recovery(self) -> Record:
        """Return the recovery report.

        Raises:
            LeftOut: there is none.
        """
        if self.recovery is None:
            raise LeftOut("the model was not trained after pruning")
        return self.recovery


def read_sources(folder: Path) -> Sources:
    """Read the reports of a folder.

    Raises:
        InputError: the folder holds none, or one that this version does not read.
    """
    pruning, recovery = read_report(folder / PRUNING_REPORT), read_report(folder / RECOVERY_REPORT)
    evaluation = read_report(folder / "evaluation" / EVALUATION_RESULTS) or read_report(folder / EVALUATION_RESULTS)
    if pruning is None and recovery is None and evaluation is None:
        raise InputError(
            expected=f"a result with {', '.join(SCHEMAS)}",
            got=f"{folder}, which has none of them",
            remedy="name the folder that a command wrote",
        )
    if recovery is None and pruning is not None:
        recovery = pruning.get("recovery")
    return Sources(folder, pruning, recovery, evaluation)


def read_report(path: Path) -> Record | None:
    """Read a report; None if there is no file.

    Raises:
        InputError: damaged, of another version, or without the name of a model.
    """
    if not path.is_file():
        return None
    record: Record = _recorded(read_report_file(path, SCHEMAS[path.name]))
    return record


def _recorded(value: Any) -> Any:
    if isinstance(value, dict):
        return Record({key: _recorded(item) for key, item in value.items()})
    return [_recorded(item) for item in value] if isinstance(value, list) else value


def read_group_table(folder: Path) -> dict[str, GroupColumns]:
    """Return kind -> columns of the group table.

    Raises:
        LeftOut: the folder has no table, or a damaged one.
    """
    path = folder / GROUP_TABLE
    if not path.is_file():
        raise LeftOut(f"this folder has no {GROUP_TABLE}")
    kinds = {"attention": GroupColumns(), "mlp": GroupColumns()}
    with _readable(path), path.open(newline="", encoding="utf-8") as lines:
        rows = csv.reader(lines, strict=True)
        layer, kind, prior, score, kept = map(next(rows, []).index, ("layer", "kind", "prior", "score", "kept"))
        for row in rows:
            columns, is_kept = kinds[row[kind]], {"0": False, "1": True}[row[kept]]
            columns.scores.append(_finite(row[score]))
            columns.kept.append(is_kept)
            counts = columns.layers.setdefault(int(row[layer]), [0, 0, _finite(row[prior])])
            counts[0] += 1
            counts[1] += is_kept
    return kinds


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Leave out the section of a damaged table.

    Raises:
        LeftOut: names the file and the error.
    """
    try:
        yield
    except (csv.Error, IndexError, KeyError, ValueError, TypeError) as error:
        raise LeftOut(f"{path.name} is damaged ({type(error).__name__}: {one_line(error)})") from error


def _finite(text: str) -> float:
    """Return a number of a table.

    Raises:
        ValueError: none, NaN or infinity.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!a} is not finite")
    return number


def read_losses(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Return (step, loss) pairs of training and of held-out rows.

    Raises:
        LeftOut: the folder has no loss curve, or a damaged one.
    """
    path = folder / LOSS_CURVE
    if not path.is_file():
        raise LeftOut(f"this folder has no {LOSS_CURVE}")
    with _readable(path), path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, strict=True))
        return {
            name: [(_finite(row["step"]), _finite(row[name])) for row in rows if row[name]]
            for name in ("loss", "eval_loss")
        }


def results_below(folder: Path) -> Iterator[Path]:
    """Yield the folder if it holds a result, else the finished results below it."""
    if any((folder / name).is_file() for name in SCHEMAS):
        yield folder
        return
    found = {path.parent for name in (PRUNING_REPORT, RECOVERY_REPORT) for path in folder.rglob(name)}
    yield from sorted(path for path in found if not path.name.endswith((".partial", ".training")))
