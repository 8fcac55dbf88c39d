"""Tasks of the lm-eval harness on a model in memory: its prompts, scoring and versions, on local rows if there are any.

The harness is imported late: perplexity and efficiency work without it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from hgsp.console.hub_access import ask_hub
from hgsp.console.progress import Progress, silent
from hgsp.data.files import UNREADABLE, is_file, unreadable
from hgsp.environment import install_command
from hgsp.errors import InputError, NumericalError
from hgsp.evaluation.metrics.language_model import language_model
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.models.processes import sum_over_processes

Row = dict[str, Any]


@dataclass(frozen=True)
class LocalFile:
    """A file in the data folder with a task's rows.

    ``read`` returns rows with the columns of the dataset on the hub. ``note`` describes a file that is not the whole
    split. ``overrides`` changes the harness's task for rows that are preprocessed.
    """

    name: str
    read: Callable[[Path], list[Row]]
    note: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HarnessSpec:
    """A task of the harness: its name and folder there, the split to score, local files to try in order, and metrics.

    ``metrics``: name in the harness -> (our name, unit, higher is better).
    """

    name: str
    folder: str
    split: str
    files: tuple[LocalFile, ...]
    metrics: Mapping[str, tuple[str, str, bool]]


@dataclass(frozen=True)
class HarnessTask:
    """A task with its rows, ready to run. ``source`` describes the rows for the protocol."""

    spec: HarnessSpec
    task: Any
    source: Mapping[str, Any]

    @property
    def num_items(self) -> int:
        """The number of items of the split."""
        return len(self.task.eval_docs)

    @property
    def version(self) -> str:
        """The version of the task in the harness."""
        return str(self.task.VERSION)


@dataclass(frozen=True)
class Score:
    """The value of a metric over ``num_items`` items, and its standard error (None for one item).

    ``correct``: of an accuracy, "1" or "0" for every item in the order of the rows.
    ``truncated``: items of which the model saw the end alone, because they have more tokens than its ``positions``.
    """

    value: float
    stderr: float | None
    num_items: int
    truncated: int = 0
    positions: int = 0
    correct: str | None = None


def harness_version() -> str:
    """Return the version of the installed harness.

    Raises:
        InputError: lm-eval or datasets is not installed.
    """
    try:
        import datasets  # noqa: F401
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError(
            expected="the packages lm-eval and datasets for this task",
            got=str(error),
            remedy=install_command("eval"),
        ) from error
    return metadata.version("lm_eval")


def load_task(spec: HarnessSpec, data_dir: str | Path | None) -> HarnessTask:
    """Load the harness's task with local rows if ``data_dir`` has them, else with those of the hub.

    Raises:
        InputError: the harness is not installed, the rows are neither local nor on the hub, or the file is not valid.
    """
    harness_version()
    _quiet()
    from lm_eval import tasks

    manager = tasks.TaskManager(
        include_defaults=False, include_path=str(Path(tasks.__file__).parent / spec.folder), metadata={}
    )
    found = _local_file(spec, data_dir)
    if found is not None:
        path, local = found
        loaded = _from_file(manager, spec, path, local)
        source = {
            "source": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "split": spec.split + (f" ({local.note})" if local.note else ""),
        }
    else:
        loaded = _from_hub(manager, spec, data_dir)
        source = {}
    (task,) = loaded["tasks"].values()
    task.set_config(key="num_fewshot", value=0)
    if found is None:
        source = {"source": " ".join(filter(None, (task.DATASET_PATH, task.DATASET_NAME))), "split": spec.split}
    return HarnessTask(spec, task, source)


def _local_file(spec: HarnessSpec, data_dir: str | Path | None) -> tuple[Path, LocalFile] | None:
    for local in spec.files if data_dir is not None else ():
        path = Path(str(data_dir)) / local.name
        if is_file(path):
            return path, local
    return None


def _from_file(manager: Any, spec: HarnessSpec, path: Path, local: LocalFile) -> Any:
    try:
        rows = local.read(path)
        if not rows:
            raise ValueError("no rows")
        return manager.load([_on_rows(spec, local, rows)])
    except InputError:
        raise
    except (AttributeError, *UNREADABLE) as error:
        raise unreadable(path, error, f"rows of {spec.name} as docs/DATA.md has them") from error


def _on_rows(spec: HarnessSpec, local: LocalFile, rows: list[Row]) -> dict[str, Any]:
    """Return the configuration of the harness's own task with ``rows`` as its only split."""

    def dataset(**_: Any) -> Any:
        from datasets import Dataset

        return {spec.split: Dataset.from_list(rows)}

    splits = {f"{split}_split": None for split in ("training", "validation", "test")}
    splits[f"{spec.split}_split"] = spec.split  # type: ignore[assignment]
    change = {"task": spec.name, "custom_dataset": dataset, **splits, **local.overrides}
    return {"group": "local", "task": [change]}


def _from_hub(manager: Any, spec: HarnessSpec, data_dir: str | Path | None) -> Any:
    ask_hub()
    try:
        return manager.load([spec.name])
    except (OSError, ValueError, RuntimeError) as error:
        looked = "no data folder" if data_dir is None else f"no {spec.files[0].name} in {data_dir}"
        raise InputError(
            expected=f"the rows of {spec.name}",
            got=f"{looked}, and the hub did not answer ({type(error).__name__}: {str(error).splitlines()[0][:120]})",
            remedy=f"put {spec.files[0].name} under a folder given as --data_dir or HGSP_DATA_DIR, or go online",
        ) from error


@fp32_matmul_fallback()
def run_task(
    task: HarnessTask, model: Any, tokenizer: Any, *, batch_size: int, limit: int | None, progress: Progress = silent
) -> dict[str, Score] | None:
    """Score the first ``limit`` items (None = all); return our metric names -> scores.

    Under ``accelerate launch`` every process scores a share of the items; None in all but the main one.

    Raises:
        NumericalError: a log-likelihood is not finite.
        InputError: a token of an item has no row in the embedding, or an answer alone exceeds the model's positions.
    """
    from lm_eval import evaluator

    lm = language_model(model, tokenizer, batch_size, task.spec.name)
    label, total = task.spec.name, _num_sequences(task, limit)
    lm.scored = iter(progress(range(total), label, total))
    found = evaluator.evaluate(
        lm, {"tasks": {task.spec.name: task.task}}, limit=limit, bootstrap_iters=0, log_samples=True
    )
    truncated = sum_over_processes(len(lm.truncated))
    if found is None:
        return None
    samples = sorted(found["samples"][task.spec.name], key=lambda sample: int(sample["doc_id"]))
    _check_finite(task.spec.name, samples)
    values = found["results"][task.spec.name]
    scores = {}
    for metric, (name, _, _) in task.spec.metrics.items():
        items = [float(sample[metric]) for sample in samples]
        correct = "".join(f"{item:.0f}" for item in items) if set(items) <= {0.0, 1.0} else None
        value, stderr = float(values[f"{metric},none"]), _stderr(metric, items)
        scores[name] = Score(value, stderr, len(items), truncated, lm.max_length, correct)
    return scores


def _num_sequences(task: HarnessTask, limit: int | None) -> int:
    """Estimate the sequences to score: choices of the first item times the number of items."""
    docs = task.task.eval_docs
    choices = len(task.task.doc_to_choice(docs[0])) if task.task.config.doc_to_choice is not None else 1
    return choices * min(len(docs), limit or len(docs))


def _check_finite(name: str, samples: Sequence[Mapping[str, Any]]) -> None:
    for sample in samples:
        for log_likelihood, _ in sample["filtered_resps"]:
            if not math.isfinite(log_likelihood):
                raise NumericalError(
                    f"a log-likelihood on item {sample['doc_id']} of {name} is {log_likelihood}; "
                    "a bf16-trained model may overflow in float16"
                )


def _stderr(metric: str, items: Sequence[float]) -> float | None:
    """Return the standard error of a mean as the harness computes it, of exp(-mean) by the delta method."""
    if len(items) < 2:
        return None
    stderr = statistics.stdev(items) / math.sqrt(len(items))
    return stderr * math.exp(-statistics.fmean(items)) if metric == "perplexity" else stderr


def _quiet() -> None:
    """Silence the progress bars and notices of the harness and of datasets."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import datasets

    datasets.disable_progress_bars()
