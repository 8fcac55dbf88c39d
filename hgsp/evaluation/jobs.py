"""Measurement jobs, prepared before any weights are loaded: a job knows its request and how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hgsp.console.progress import Progress, silent
from hgsp.console.report_schema import LAMBADA, TOKEN_PPL
from hgsp.data.texts import EVALUATE, Text, data_folder, load_text
from hgsp.errors import InputError
from hgsp.evaluation.config import MeasurementOptions
from hgsp.evaluation.metrics.harness import HarnessSpec, HarnessTask, harness_version, load_task, run_task
from hgsp.evaluation.metrics.lambada import LAMBADA as LAMBADA_SPEC
from hgsp.evaluation.metrics.ppl import perplexity
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT as ZERO_SHOT_SPECS
from hgsp.evaluation.results import Metric
from hgsp.evaluation.tasks import EFFICIENCY, is_text

SPECS: Mapping[str, HarnessSpec] = {LAMBADA: LAMBADA_SPEC, **ZERO_SHOT_SPECS}


@dataclass(frozen=True)
class Measured:
    """The metrics of one job and the protocol they were measured by; ``summary`` is its short form."""

    metrics: tuple[Metric, ...]
    num_items: int
    summary: str
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class PerplexityJob:
    """The token perplexity of one text at one window length."""

    text: Text
    seq_len: int | None
    options: MeasurementOptions
    uses_all_processes: bool = False

    @property
    def task(self) -> str:
        """The name of the text."""
        return self.text.name

    @property
    def request(self) -> dict[str, Any]:
        """Everything the number depends on besides the model and the tokenizer."""
        return {
            "sha256": self.text.sha256,
            "seq_len": self.seq_len,
            "max_windows": self.options.window_limit,
            "bos": self.options.add_bos,
            "last_window": "dropped" if self.options.drop_last_window else "scored",
            "dtype": self.options.dtype,
        }

    def run(self, model: Any, tokenizer: Any, progress: Progress = silent) -> Measured:
        """Measure a model.

        Raises:
            InputError, NumericalError: as :func:`perplexity`.
        """
        found = perplexity(
            model,
            tokenizer,
            self.text,
            seq_len=self.seq_len,
            batch_size=self.options.batch_size,
            add_bos=self.options.add_bos,
            max_windows=self.options.window_limit,
            drop_last=self.options.drop_last_window,
            progress=progress,
        )
        protocol = {key: value for key, value in asdict(found).items() if key not in ("ppl", "stderr")}
        bos = "BOS" if found.bos else "no BOS"
        return Measured(
            (Metric(TOKEN_PPL, found.ppl, "", found.stderr, higher_is_better=False),),
            found.windows,
            f"{found.split}, {found.windows} x {found.seq_len} tokens, {bos}, {found.dtype}",
            {**protocol, "description": found.protocol()},
        )


@dataclass(frozen=True)
class HarnessJob:
    """One zero-shot task of the lm-eval harness."""

    name: str
    loaded: HarnessTask
    options: MeasurementOptions
    uses_all_processes: bool = True  # each scores a share of the items

    @property
    def task(self) -> str:
        """The name of the task, ours rather than the harness's."""
        return self.name

    @property
    def request(self) -> dict[str, Any]:
        """Everything the number depends on besides the model and the tokenizer."""
        return {
            "harness": f"lm-eval {harness_version()}",
            "task_version": self.loaded.version,
            **self.loaded.source,
            "num_fewshot": 0,
            "limit": self.options.limit,
            "dtype": self.options.dtype,
        }

    def run(self, model: Any, tokenizer: Any, progress: Progress = silent) -> Measured | None:
        """Measure a model; None in all processes but the main one.

        Raises:
            NumericalError: a log-likelihood is not finite.
        """
        options = self.options
        scores = run_task(
            self.loaded, model, tokenizer, batch_size=options.batch_size, limit=options.limit, progress=progress
        )
        if scores is None:
            return None
        units = {name: (unit, better) for name, unit, better in self.loaded.spec.metrics.values()}
        metrics = tuple(
            Metric(name, score.value, units[name][0], score.stderr, units[name][1], score.correct)
            for name, score in scores.items()
        )
        some = next(iter(scores.values()))
        num_items = some.num_items
        dtype = str(model.dtype).removeprefix("torch.")
        first = "" if num_items == self.loaded.num_items else f"first {num_items} of "
        cut = f", {some.truncated} items cut to the last {some.positions} tokens" if some.truncated else ""
        summary = f"{first}{self.loaded.num_items} items{cut}, {self.loaded.source['split']}, 0-shot, {dtype}"
        protocol = {
            **self.request,
            "harness_task": self.loaded.spec.name,
            "items": num_items,
            "items_in_source": self.loaded.num_items,
            "truncated_items": some.truncated,
            "positions": some.positions,
            "dtype": dtype,
            "begins_with_bos": _begins_with_bos(tokenizer),
        }
        source = " ".join(str(self.loaded.source[key])[:64] for key in ("source", "split"))
        description = (
            f"{protocol['harness']}, task {protocol['harness_task']} version {protocol['task_version']}, 0-shot, "
            f"{source}, {first}{self.loaded.num_items} items{cut}, {dtype}, "
            f"{'BOS first (added by the tokenizer)' if protocol['begins_with_bos'] else 'no BOS'}"
        )
        return Measured(metrics, num_items, summary, {**protocol, "description": description})


Job = PerplexityJob | HarnessJob


def jobs_of(
    task: str, options: MeasurementOptions, seq_lens: Sequence[int] | None, data_dir: str | Path | None
) -> list[Job]:
    """Return the jobs of one task: one per window length for a text (None = the default length), else one.

    Raises:
        InputError: its rows, or packages it needs, are missing.
    """
    if is_text(task):
        text = load_text(task, EVALUATE, data_dir)
        return [PerplexityJob(text, seq_len, options) for seq_len in seq_lens or (None,)]
    return [HarnessJob(task, load_task(SPECS[task], data_dir), options)]


def prepare_jobs(
    tasks: Sequence[str], options: MeasurementOptions, seq_lens: Sequence[int] | None, data_dir: str | Path | None
) -> tuple[list[Job], dict[str, str]]:
    """Return the jobs of all tasks but efficiency, and task -> reason for those that cannot be measured.

    Raises:
        InputError: none of the tasks can be measured, or the data folder does not exist.
    """
    jobs: list[Job] = []
    failures: dict[str, str] = {}
    data_dir = data_folder(data_dir)
    for task in tasks:
        if task == EFFICIENCY:
            continue
        try:
            jobs += jobs_of(task, options, seq_lens, data_dir)
        except InputError as error:
            failures[task] = str(error)
            only = error
    if failures and not jobs and EFFICIENCY not in tasks:
        raise only
    return jobs, failures


def _begins_with_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
