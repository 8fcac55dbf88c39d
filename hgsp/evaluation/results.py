"""Results with their protocols, kept in ``results.json``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from hgsp.console.json_files import read_json_file
from hgsp.console.locks import held
from hgsp.console.portable_paths import portable, portable_path
from hgsp.console.report_files import ProtocolEntry
from hgsp.console.report_schema import DONE, EVALUATION_RESULTS, EVALUATION_SCHEMA, FAILED, PRUNED, ROLES, TOKEN_PPL
from hgsp.console.schemas import Count, NonNegative, OneOf, Stored
from hgsp.environment import write_json
from hgsp.errors import InputError, NumericalError
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT
from hgsp.evaluation.tasks import is_text
from hgsp.models.hub import with_revision
from hgsp.models.identity import files_sha256
from hgsp.models.pruned_bin import BIN_NAME

_REMEDY = "move it away or choose another --output"


@dataclass(frozen=True)
class Metric:
    """A measured number. ``unit`` may be empty; ``stderr`` has the same unit; ``higher_is_better`` None = neither.

    ``correct``: of an accuracy, "1" or "0" for every item, so that models are compared item by item.

    Raises:
        NumericalError: the value is not finite.
    """

    name: str
    value: float
    unit: str = ""
    stderr: float | None = None
    higher_is_better: bool | None = None
    correct: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise NumericalError(f"{self.name} is {self.value}")


@dataclass(frozen=True)
class TaskResult:
    """One task on one model; a failed one has a ``reason`` and no metrics.

    Results with equal ``request`` are comparable and are not measured twice. ``model`` identifies the weights.
    ``protocol`` describes the measurement in full, ``summary`` in a few words.
    """

    role: Annotated[str, OneOf(ROLES)]
    task: str
    status: Annotated[str, OneOf((DONE, FAILED))]
    model: str
    request: Mapping[str, Any]
    metrics: tuple[Metric, ...] = ()
    num_items: Count | None = None
    summary: str = ""
    protocol: Annotated[Mapping[str, Any], Stored(ProtocolEntry)] = field(default_factory=dict)
    reason: str | None = None
    seconds: NonNegative | None = None

    @property
    def key(self) -> str:
        """The task and its request: equal for comparable results."""
        return json.dumps([self.task, self.request], sort_keys=True)

    @property
    def by_name(self) -> dict[str, Metric]:
        """The metrics by name."""
        return {metric.name: metric for metric in self.metrics}


class _Model(TypedDict):
    path: str
    identity: str


class _ResultsFile(TypedDict):
    schema_version: Literal[1]
    models: dict[Annotated[str, OneOf(ROLES)], _Model]
    results: list[TaskResult]


@dataclass
class Results:
    """The content of one ``results.json``. ``models``: role -> {"path", "identity"}.

    A file names local models and texts relative to its own folder: they are found again after all have moved.
    """

    path: Path
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    results: list[TaskResult] = field(default_factory=list)
    _entered: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    _added: list[TaskResult] = field(default_factory=list, repr=False)
    _dropped: list[Callable[[TaskResult], bool]] = field(default_factory=list, repr=False)
    _written: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, folder: Path) -> Results:
        """Read the file of a folder, or start empty.

        Raises:
            InputError: the file was not written by this version.
        """
        path = folder / EVALUATION_RESULTS
        if not os.path.lexists(path):
            return cls(path)
        content = read_json_file(path, _ResultsFile, f"{path} to be absent or written by this version", _REMEDY)
        results = [replace(item, task=_found(item.task, folder)) for item in content["results"]]
        for item in results:
            needed = TOKEN_PPL if is_text(item.task) else "acc" if item.task in ZERO_SHOT else None
            if item.status == DONE and needed and needed not in item.by_name:
                raise InputError(expected=f"a {needed} of {item.task} in {path}", got="none", remedy=_REMEDY)
        models = {
            role: {"path": _found(model["path"], folder), "identity": model["identity"]}
            for role, model in content["models"].items()
        }
        return cls(path, models, results)

    def enter(self, role: str, path: str, identity: str) -> None:
        """Assign a model to a role and drop results of other weights in it; equal weights may have moved.

        Raises:
            InputError: the file has results of another measured model.
        """
        known = self.models.get(role)
        moved = known is not None and self._portable(known["path"]) != self._portable(path)
        if role == PRUNED and known is not None and moved and known["identity"] != identity:
            raise InputError(
                expected=f"{self.path} to hold results of {path}",
                got=f"results of {known['path']}",
                remedy="choose another --output",
            )
        self.results = [item for item in self.results if item.role != role or item.model == identity]
        self.models[role] = self._entered[role] = {"path": path, "identity": identity}

    def done(self, role: str, key: str) -> TaskResult | None:
        """Return the finished result of a role for a key, None without one."""
        found = (item for item in self.results if item.role == role and item.key == key and item.status == DONE)
        return next(found, None)

    def add(self, result: TaskResult) -> None:
        """Add a result; it replaces one with the same role and key, and failures to prepare the task."""

        def replaced(item: TaskResult) -> bool:
            never_ran = item.status == FAILED and item.task == result.task and not item.request
            return item.role == result.role and (item.key == result.key or never_ran)

        self.results = [item for item in self.results if not replaced(item)]
        self.results.append(result)
        self._added.append(result)

    def drop(self, superseded: Callable[[TaskResult], bool]) -> None:
        """Drop the results that new ones supersede, here and in the file."""
        self._dropped.append(superseded)
        self.results = [item for item in self.results if not superseded(item)]

    def merge(self) -> None:
        """Take over the results that other evaluations have written since; those added here replace equal ones.

        Raises:
            InputError: another evaluation has entered another model in the same role.
        """
        current = Results.open(self.path.parent)
        for role, model in self._entered.items():
            known = current.models.get(role, model)
            if known["identity"] != model["identity"] and role in self._written:
                raise InputError(
                    expected=f"one {role} model in {self.path}",
                    got=f"another evaluation that measures {known['path']} there",
                    remedy="repeat this one with another --output; its results so far are replaced",
                )
            current.enter(role, **model)
        for superseded in self._dropped:
            current.drop(superseded)
        for result in self._added:
            current.add(result)
        self.models, self.results = current.models, current.results

    def write(self, extra: Mapping[str, Any]) -> None:
        """Merge and replace the file, with ``extra`` beside models and results.

        Raises:
            InputError: as ``merge``.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{self.path.name}.lock")
        if lock.is_symlink():  # of a downloaded folder: filelock would empty its target
            lock.unlink()
        with held(lock):
            self.merge()
            self._write(extra)
            self._written.update(self._entered)

    def _write(self, extra: Mapping[str, Any]) -> None:
        results = [{**asdict(item), "task": self._portable(item.task)} for item in self.results]
        content = {"results": results, **extra}
        write_json(
            {"schema_version": EVALUATION_SCHEMA, "models": self.portable_models(), **portable(content)}, self.path
        )

    def portable_models(self) -> dict[str, dict[str, str]]:
        """Return ``models`` with paths relative to the folder of the file."""
        return {role: {**model, "path": self._portable(model["path"])} for role, model in self.models.items()}

    def _portable(self, path: str) -> str:
        return portable_path(path, self.path.resolve().parent)


def _found(path: str, folder: Path) -> str:
    """Return the absolute path of a model that a file in ``folder`` names, or the name of one that is elsewhere."""
    try:
        place = folder / Path(path).expanduser()
        return str(place.resolve()) if place.exists() else path
    except (OSError, RuntimeError):  # a name too long, the home of an unknown user, links in a circle
        return path


def canonical_path(name: str) -> str:
    """Return an equal path for all ways to name a model: a .bin beside its config is the folder."""
    path = Path(name)
    if not path.exists():
        return name
    if path.name == BIN_NAME and (path.parent / "config.json").exists():
        path = path.parent
    return str(path.resolve())


def model_identity(name: str) -> str:
    """Identify a model: by the content of local files, or by the cached commit of a hub id."""
    path = Path(canonical_path(name))
    if path.exists():
        return files_sha256(path)[:16]
    from huggingface_hub import try_to_load_from_cache

    plain, revision = with_revision(name)
    cached = try_to_load_from_cache(plain, "config.json", **revision)
    return f"{plain}@{Path(cached).parent.name}" if isinstance(cached, str) else name
