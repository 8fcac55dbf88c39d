"""What is to be measured, prepared before any weights are loaded: each job knows its request and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hgsp.console.progress import terminal
from hgsp.console.report_schema import TOKEN_PPL
from hgsp.data.texts import EVALUATE, Text, data_folder, load_text
from hgsp.errors import InputError
from hgsp.evaluation.config import EvaluationConfig
from hgsp.evaluation.metrics.harness import HarnessSpec, HarnessTask, harness_version, load_task, run_task
from hgsp.evaluation.metrics.lambada import LAMBADA as LAMBADA_SPEC
from hgsp.evaluation.metrics.ppl import perplexity
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT as ZERO_SHOT_SPECS
from hgsp.evaluation.results import Metric
from hgsp.evaluation.tasks import EFFICIENCY, LAMBADA, is_text

SPECS: Mapping[str, HarnessSpec] = {LAMBADA: LAMBADA_SPEC, **ZERO_SHOT_SPECS}


@dataclass(frozen=True)
class Measured:
    """What a job found: metrics and the protocol they were measured by, ``summary`` being its short form."""

    metrics: tuple[Metric, ...]
    num_items: int
    summary: str
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class PerplexityJob:
    """Token perplexity of one text at one window length."""

    text: Text
    seq_len: int | None
    config: EvaluationConfig
    shared_out: bool = False  # one process does it, whoever else there is

    @property
    def task(self) -> str:
        return self.text.name

    @property
    def request(self) -> dict[str, Any]:
        """Everything the number depends on besides the model and the tokenizer."""
        return {
            "sha256": self.text.sha256,
            "seq_len": self.seq_len,
            "max_windows": self.config.window_limit,
            "bos": self.config.add_bos,
            "last_window": "dropped" if self.config.drop_last_window else "scored",
            "dtype": self.config.dtype,
        }

    def run(self, model: Any, tokenizer: Any) -> Measured:
        """Raises InputError and NumericalError as :func:`perplexity` does."""
        found = perplexity(
            model,
            tokenizer,
            self.text,
            seq_len=self.seq_len,
            batch_size=self.config.batch_size,
            add_bos=self.config.add_bos,
            max_windows=self.config.window_limit,
            drop_last=self.config.drop_last_window,
            progress=terminal,
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
    """One task of the lm-eval harness, without examples in the prompt."""

    name: str
    loaded: HarnessTask
    config: EvaluationConfig
    shared_out: bool = True  # under accelerate launch every process takes a share of the items

    @property
    def task(self) -> str:
        return self.name

    @property
    def request(self) -> dict[str, Any]:
        """Everything the number depends on besides the model and the tokenizer."""
        return {
            "harness": f"lm-eval {harness_version()}",
            "task_version": self.loaded.version,
            **self.loaded.source,
            "num_fewshot": 0,
            "limit": self.config.limit,
            "dtype": self.config.dtype,
        }

    def run(self, model: Any, tokenizer: Any) -> Measured | None:
        """None in the processes that only take a share. Raises NumericalError for NaN logits."""
        config = self.config
        scores = run_task(
            self.loaded, model, tokenizer, batch_size=config.batch_size, limit=config.limit, progress=terminal
        )
        if scores is None:
            return None
        units = {name: (unit, better) for name, unit, better in self.loaded.spec.metrics.values()}
        metrics = tuple(
            Metric(name, score.value, units[name][0], score.stderr, units[name][1]) for name, score in scores.items()
        )
        num_items = next(iter(scores.values())).num_items
        dtype = str(model.dtype).removeprefix("torch.")
        first = "" if num_items == self.loaded.num_items else f"first {num_items} of "
        summary = f"{first}{self.loaded.num_items} items, {self.loaded.source['split']}, 0-shot, {dtype}"
        protocol = {
            **self.request,
            "harness_task": self.loaded.spec.name,
            "items": num_items,
            "items_in_source": self.loaded.num_items,
            "dtype": dtype,
            "begins_with_bos": _begins_with_bos(tokenizer),
        }
        source = " ".join(str(self.loaded.source[key])[:64] for key in ("source", "split"))
        description = (
            f"{protocol['harness']}, task {protocol['harness_task']} version {protocol['task_version']}, 0-shot, "
            f"{source}, {first}{self.loaded.num_items} items, {dtype}, "
            f"{'BOS first (as the tokenizer has it)' if protocol['begins_with_bos'] else 'no BOS'}"
        )
        return Measured(metrics, num_items, summary, {**protocol, "description": description})


Job = PerplexityJob | HarnessJob


def prepare_jobs(config: EvaluationConfig) -> tuple[list[Job], dict[str, str]]:
    """Jobs for all tasks whose rows are there, and task -> reason for the others. Efficiency is not among them.

    Raises:
        InputError: nothing of what was asked for can be measured, or the data folder is not there.
    """
    jobs: list[Job] = []
    failures: dict[str, str] = {}
    data_dir = data_folder(config.data_dir)
    for task in config.task_names:
        if task == EFFICIENCY:
            continue
        try:
            if is_text(task):
                text = load_text(task, EVALUATE, data_dir)
                jobs += [PerplexityJob(text, seq_len, config) for seq_len in config.seq_len or (None,)]
            else:
                jobs.append(HarnessJob(task, load_task(SPECS[task], data_dir), config))
        except InputError as error:
            failures[task] = str(error)
            only = error
    if failures and not jobs and EFFICIENCY not in config.task_names:
        raise only
    return jobs, failures


def _begins_with_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
