"""Options of measuring: of every recipe that evaluates before and after, and of ``run_evaluation.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hgsp.console.flags import option, require, require_counts
from hgsp.data.config import TextConfig
from hgsp.data.texts import check_dataset_name, dataset_names
from hgsp.evaluation.tasks import parse_tasks
from hgsp.models.dtypes import DTYPE_NAMES
from hgsp.models.hub import HubConfig

#: Windows of each text that a recipe measures on a CPU by default.
CPU_EVAL_WINDOWS = 16


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(TextConfig):
    """Options of every recipe that measures perplexity before and after."""

    GROUP: ClassVar[str] = "evaluation"

    skip_evaluation: bool = option(False, help="no evaluation")
    eval_tasks: str = option("wikitext,c4", help="comma list of texts whose perplexity is measured before and after")
    eval_seq_len: int | None = option(
        None, help="tokens per evaluation window (unset: 2048, or the model's limit)", type=int, range="at least 2"
    )
    eval_max_windows: int | None = option(
        None,
        help="use only the first windows of each text, 0 = all "
        f"(unset: all, but {CPU_EVAL_WINDOWS} on a CPU, where all would take hours)",
        type=int,
        range="at least 0",
    )

    def __post_init__(self) -> None:
        require(self.eval_seq_len is None or self.eval_seq_len >= 2, "--eval_seq_len", "at least 2", self.eval_seq_len)
        require(
            self.eval_max_windows is None or self.eval_max_windows >= 0,
            "--eval_max_windows",
            "at least 0",
            self.eval_max_windows,
        )
        for task in self.evaluation_texts:
            check_dataset_name(task, "--eval_tasks", "evaluation/run_evaluation.py measures other tasks")

    @property
    def evaluation_texts(self) -> tuple[str, ...]:
        """The names of the texts to measure perplexity on; none with ``--skip_evaluation``."""
        return () if self.skip_evaluation else tuple(filter(None, dataset_names(self.eval_tasks)))


@dataclass(frozen=True, kw_only=True)
class MeasurementOptions:
    """Options that measured numbers depend on. ``limit`` also limits windows of a text unless ``max_windows`` does.

    ``dtype`` is the requested one, None = that of the model.
    """

    batch_size: int = 4
    limit: int | None = None
    max_windows: int | None = None
    add_bos: bool = False
    drop_last_window: bool = False
    dtype: str | None = None

    def __post_init__(self) -> None:
        require_counts(self, "batch_size")
        for name in ("limit", "max_windows"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name}", "at least 1", value)

    @property
    def window_limit(self) -> int | None:
        """The largest number of windows of a text, None for all."""
        return self.limit if self.max_windows is None else self.max_windows


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(HubConfig):
    """Options of ``run_evaluation.py``: models, tasks and protocol. Raises InputError for invalid values."""

    GROUP: ClassVar[str] = "tasks and protocol"

    model_path: str = option(help="pruned_model.bin, its folder, any Hugging Face folder or hub id, or a .gguf file")
    base_model: str | None = option(
        None, help="dense model: provides the tokenizer and, with --compare, a column", group="models"
    )
    recovered_model: str | None = option(None, help="model after recovery, for a third column", group="models")
    compare: bool = option(False, help="measure --base_model too and show the differences", group="models")
    tasks: str = option(
        "wikitext,c4",
        help="comma list of wikitext, ptb, c4, builtin or a text file (perplexity), lambada, boolq, piqa, hellaswag, "
        "winogrande, arc_easy, arc_challenge, openbookqa (zeroshot = these seven), efficiency",
    )
    device: str | None = option(None, help="cuda:0, cpu, mps; unset = the best available", group="resources")
    dtype: str | None = option(
        None, help="dtype of the weights; unset = as stored", choices=DTYPE_NAMES, group="resources"
    )
    batch_size: int = option(
        4,
        help="sequences per forward pass; changes results by float rounding at most",
        type=int,
        group="resources",
        range="at least 1",
    )
    seq_len: tuple[int, ...] | None = option(
        None,
        help="tokens per perplexity window, one or several values (unset: 2048, or the model's limit)",
        type=int,
        nargs="+",
        range="at least 2",
    )
    limit: int | None = option(
        None, help="use only the first items of each task, and windows of each text", type=int, range="at least 1"
    )
    max_windows: int | None = option(
        None, help="use only the first windows of each text (unset: as --limit)", type=int, range="at least 1"
    )
    add_bos: bool = option(False, help="begin every perplexity window with the BOS token")
    drop_last_window: bool = option(False, help="drop a short last window, as GPTQ, SparseGPT and Wanda do")
    prompt_len: int = option(128, help="efficiency: prompt length in tokens", type=int, range="at least 1")
    decode_len: int = option(
        16, help="efficiency: tokens decoded after the prompt, one at a time", type=int, range="at least 1"
    )
    repeats: int = option(5, help="efficiency: timed rounds, after one warm-up round", type=int, range="at least 1")
    data_dir: str | None = option(None, help="folder with local texts and tasks (docs/DATA.md); also HGSP_DATA_DIR")
    output: str | None = option(
        None, help="folder for results.json and results.md (unset: evaluation/ in the model's)", group="output"
    )
    rerun: bool = option(
        False, help="measure tasks again that results.json already has", group="output", recorded=False
    )

    def __post_init__(self) -> None:
        self.pin("model_path", "base_model", "recovered_model")
        parse_tasks(self.tasks)
        lengths = self.seq_len if isinstance(self.seq_len, (tuple, list, type(None))) else (self.seq_len,)
        object.__setattr__(self, "seq_len", None if lengths is None else tuple(dict.fromkeys(lengths)))
        for length in self.seq_len or ():
            require(length >= 2, "--seq_len", "at least 2", length)
        require_counts(self, "batch_size", "prompt_len", "decode_len", "repeats")
        assert self.options  # checks its own values
        require(self.dtype is None or self.dtype in DTYPE_NAMES, "--dtype", f"one of {DTYPE_NAMES}", self.dtype)
        require(not self.compare or self.base_model is not None, "--compare", "given together with --base_model", True)
        require(self.device != "auto", "--device", "one device", "auto", "for several use `accelerate launch`")

    @property
    def options(self) -> MeasurementOptions:
        """The options that all numbers but those of efficiency depend on."""
        return MeasurementOptions(
            batch_size=self.batch_size,
            limit=self.limit,
            max_windows=self.max_windows,
            add_bos=self.add_bos,
            drop_last_window=self.drop_last_window,
            dtype=self.dtype,
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        """The canonical task names, each once, in the order given."""
        return parse_tasks(self.tasks)
