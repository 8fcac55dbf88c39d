"""Measure a model in memory from Python: ``evaluate(model, tokenizer, tasks)``."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hgsp.console.progress import Progress, silent
from hgsp.data.texts import data_folder
from hgsp.evaluation.config import MeasurementOptions
from hgsp.evaluation.jobs import Measured, jobs_of
from hgsp.evaluation.metrics.efficiency import Workload
from hgsp.evaluation.side_by_side import measure
from hgsp.evaluation.tables import format_metric
from hgsp.evaluation.tasks import EFFICIENCY, parse_tasks
from hgsp.models.decoder import eval_mode


class Evaluation(Mapping[str, Mapping[str, float]]):
    """Metrics of one model by task, such as ``evaluation["wikitext2"]["token_ppl"]``; prints as a table.

    ``details[task]`` has the same with units, standard errors and the protocol.
    """

    def __init__(self, details: Mapping[str, Measured]) -> None:
        self.details = dict(details)

    def __getitem__(self, task: str) -> dict[str, float]:
        return {metric.name: metric.value for metric in self.details[task].metrics}

    def __iter__(self) -> Iterator[str]:
        return iter(self.details)

    def __len__(self) -> int:
        return len(self.details)

    def __repr__(self) -> str:
        rows = [("task", "metric", "value", "protocol"), *self._rows()]
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("task", "metric", "value", "protocol"))
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._rows())
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        for task, measured in self.details.items():
            for metric in measured.metrics:
                yield task, metric.name, format_metric(metric), measured.summary


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: str | Sequence[str] = ("wikitext2",),
    *,
    seq_len: int | None = None,
    batch_size: int = 4,
    limit: int | None = None,
    max_windows: int | None = None,
    data_dir: str | Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a causal LM where it is, with the protocols of ``run_evaluation.py``.

    Args:
        tasks: wikitext2 (or wikitext), ptb, c4, builtin or a text file (perplexity), lambada, boolq, piqa, hellaswag,
            winogrande, arc_easy, arc_challenge, openbookqa (zeroshot = these seven), efficiency.
        seq_len: tokens of a perplexity window; 2048 if unset, or the model's limit if that is lower.
        batch_size: sequences at a time. The numbers do not depend on it beyond float rounding.
        limit: only the first items of each task, and windows of each text.
        max_windows: only the first windows of each text; ``limit`` if unset.
        data_dir: folder of local texts and tasks (docs/DATA.md).

    Raises:
        InputError: an unknown task, missing rows or packages, a tokenizer that does not fit the model.
        NumericalError: the loss or a log-likelihood is not finite.
    """
    names = dict.fromkeys(
        name for given in ((tasks,) if isinstance(tasks, str) else tasks) for name in parse_tasks(given)
    )
    options = MeasurementOptions(batch_size=batch_size, limit=limit, max_windows=max_windows)
    seq_lens, folder = None if seq_len is None else (seq_len,), data_folder(data_dir)
    jobs = [job for name in names if name != EFFICIENCY for job in jobs_of(name, options, seq_lens, folder)]
    details: dict[str, Measured] = {}
    with eval_mode(model):
        for job in jobs:
            measured = job.run(model, tokenizer, progress)
            if measured is not None:
                details[job.task] = measured
        if EFFICIENCY in names:
            workload = Workload().within(getattr(model.config, "max_position_embeddings", None))
            details[EFFICIENCY] = measure({"model": model}, workload, str(model.device), progress)["model"]
    return Evaluation(details)
