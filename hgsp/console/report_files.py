"""Schemas of the reports in a result folder, and the one way in which commands read them.

Missing entries are left to the reader, because older results have fewer; those that are there have these types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from hgsp.console.json_files import read_json_file
from hgsp.console.report_schema import DONE, FAILED, ROLES
from hgsp.console.schemas import Above, Between, Count, NonNegative, OneOf

Report = TypeVar("Report")

_Index = Annotated[int, Between(0, 10**5)]


class Measured(TypedDict, total=False):
    """A perplexity with the protocol that comparisons need."""

    ppl: Annotated[float, Above(0)]
    stderr: NonNegative | None
    tokens: Count
    windows: Count
    seq_len: Count
    bos: bool
    dtype: str
    split: str
    sha256: str


class Calibration(TypedDict, total=False):
    """A text that was read for scores or for a reconstruction."""

    source: str
    texts: list[str]
    sequences: Count
    seq_len: Count


class Prompt(TypedDict, total=False):
    """A prompt of the report with its continuations, None where a model gave none."""

    prompt: str
    chat: bool
    before: str | None
    after: str | None


class Samples(TypedDict, total=False):
    """Greedy continuations before and after."""

    before: str | None
    after: str | None
    prompts: list[Prompt]


class LayerReport(TypedDict, total=False):
    """Groups that one dense layer keeps."""

    layer: _Index
    kept_kv_groups: list[Count]
    kept_mlp_channels: list[Count]
    kept_experts: list[Count]
    kept_expert_slots: list[Count]
    num_kv_groups: Count
    num_mlp_channels: Count
    num_experts: Count
    num_expert_slots: Count
    kept_linear_attention: bool
    kept_ratio: NonNegative
    prior_mode: str


class Scoring(TypedDict, total=False):
    """Settings that decided the order of groups."""

    temperature: float
    depth_slope: float
    attention_slope: float
    seed: int
    labels: str
    calibration: Calibration | None


class Search(TypedDict, total=False):
    """The steps of the budget search, divergences in nats per token."""

    kl_before: float
    kl_after: float
    kl_of_steps: list[float]


class EmptiedBlock(TypedDict, total=False):
    """A block that the search removed whole."""

    layer: _Index
    kind: str


class WholeBlocks(TypedDict, total=False):
    """Candidates with emptied blocks."""

    emptied: list[EmptiedBlock]
    kl_by_emptied_blocks: dict[int, float]


class ModuleReport(TypedDict, total=False):
    """The fit of one module."""

    layer: _Index
    module: str
    ridge: NonNegative | None
    error_before: NonNegative | None
    error_after: NonNegative | None
    refitted_experts: Count
    few_tokens: list[Count]


class ReconstructionReport(TypedDict, total=False):
    """A reconstruction."""

    method: str
    calibration: Calibration
    modules: list[ModuleReport]


class VerdictReport(TypedDict, total=False):
    """The verdict on a model."""

    name: str
    reason: str


class Speed(TypedDict, total=False):
    """Predicted and measured factors of speed."""

    workload: str
    predicted_speedup: float | None
    measured_speedup: float | None


class _Versioned(TypedDict):
    schema_version: Literal[1]


class _Common(TypedDict, total=False):
    command: str
    environment: dict[str, Any]
    warnings: list[str]
    collapsed: bool | None
    verdict: VerdictReport | None
    timings_s: dict[str, NonNegative]
    peak_memory_bytes: Count | None
    samples: Samples | None
    evaluation: dict[str, dict[str, Measured]]


class TrainingData(TypedDict, total=False):
    """The rows of a training."""

    source: str
    train_sequences: Count
    train_tokens: Count
    learned: str


class HeldOutLoss(TypedDict):
    """The loss on held-out rows of the first state and of the one that was kept."""

    first: float
    kept: float


class TriedLearningRate(TypedDict):
    """A short run before a training; a loss of None was not finite."""

    learning_rate: float
    held_out_loss: float | None


class RecoverySection(_Common, total=False):
    """The section ``recovery`` of a pruning report."""

    pruned_model: str
    method: Literal["lora", "full"]
    distilled_from: str | None
    data: TrainingData
    parameters: dict[str, Count]
    steps: Count
    kept_step: Count
    learning_rate: float
    probes: list[TriedLearningRate]
    held_out_loss: HeldOutLoss | None


class RecoveryReport(_Versioned, RecoverySection):
    """``recovery_analysis.json``."""


class _OfPruning(_Versioned, _Common):
    base_model: str
    reached_ratio: float


class PruningReport(_OfPruning, total=False):
    """``pruning_analysis.json``."""

    importance_method: str
    asked_ratio: float
    asked_ratio_of: str
    reached_ratio_decoder: float
    params_before: Count
    params_after: Count
    weight_bytes_before: Count
    weight_bytes_after: Count
    kv_cache_bytes_per_token_before: Count
    kv_cache_bytes_per_token_after: Count
    gqa_ratio: Count
    removed_layers: list[_Index]
    layers: list[LayerReport]
    scoring: Scoring
    search: Search | None
    whole_blocks: WholeBlocks | None
    reconstruction: ReconstructionReport | None
    speed: Speed | None
    recovery: RecoverySection


class MetricEntry(TypedDict, total=False):
    """A number of an evaluation."""

    name: str
    value: float
    unit: str
    stderr: NonNegative | None
    higher_is_better: bool | None
    correct: str | None


class ProtocolEntry(TypedDict, total=False):
    """The entries of a protocol that are read again; each task has more."""

    split: str
    description: str
    dtype: str
    sha256: str
    last_window: str
    bos: bool
    seq_len: Count
    windows: Count
    tokens: Count
    timing_spread: NonNegative


class ResultEntry(TypedDict, total=False):
    """The result of one task on one model."""

    role: Annotated[str, OneOf(ROLES)]
    task: str
    status: Annotated[str, OneOf((DONE, FAILED))]
    metrics: list[MetricEntry]
    num_items: Count | None
    summary: str
    protocol: ProtocolEntry
    reason: str | None


class ModelEntry(TypedDict):
    """A model of an evaluation."""

    path: str


class EvaluationReport(_Versioned, total=False):
    """``results.json``, as reports read it; ``hgsp.evaluation.results`` adds to it, and is stricter."""

    command: str
    environment: dict[str, Any]
    warnings: list[str]
    collapsed: bool | None
    models: dict[Annotated[str, OneOf(ROLES)], ModelEntry]
    results: list[ResultEntry]


def read_report_file(path: Path, schema: type[Report]) -> Report:
    """Read a report that a command wrote.

    Raises:
        InputError: damaged, or of another version; names file and field.
    """
    return read_json_file(
        path, schema, f"a {path.name} written by this version", "restore it, or run the command again"
    )
