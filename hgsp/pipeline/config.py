"""Options of the pruning and scoring commands: frozen, validated dataclasses. Importing them costs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from hgsp.console.flags import nearest_multiples, option, parse, require, require_counts, require_positive
from hgsp.data.config import TextConfig
from hgsp.data.texts import check_dataset_name, dataset_names
from hgsp.environment import launched_processes
from hgsp.evaluation.config import MeasureConfig
from hgsp.models.dtypes import DTYPE_NAMES
from hgsp.models.hub import HubConfig, UploadConfig
from hgsp.pipeline.budget_config import BudgetConfig, ExpertConfig, ShapeConfig
from hgsp.pipeline.recipes import (
    DEFAULT_EPSILON,
    DEFAULT_PROFILE_NSAMPLES,
    DEFAULT_RECONSTRUCT_NSAMPLES,
    DEFAULT_SEARCH_NSAMPLES,
    RECIPES,
    Recipe,
)
from hgsp.pruning.names import SHAPE_PRESETS
from hgsp.reconstruction.names import RECONSTRUCTIONS
from hgsp.recovery.config import DEFAULT_INSTRUCTIONS
from hgsp.scoring.names import IMPORTANCE_METHODS, LABELS, LAYER_IMPORTANCES, NORMALIZATIONS, TEXT_FREE_METHODS


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(ExpertConfig, TextConfig, HubConfig):
    """Options of every command that scores a model."""

    GROUP: ClassVar[str] = "scoring"
    GROUP_ORDER: ClassVar[tuple[str, ...]] = (
        *("budget", "scoring", "H-GSP prior", "reconstruction and search", "shapes", "recovery", "evaluation"),
        *("texts", "models", "resources", "output"),
    )

    base_model: str = option(help="hub id, local folder, or a .gguf file (de-quantised)")
    importance_method: str = option(
        Recipe.importance_method, help="method that scores the groups", choices=IMPORTANCE_METHODS
    )
    dataset: str = option(
        "wikitext2",
        help="calibration text: wikitext2, ptb, c4, builtin, or a text, .jsonl, .csv or .parquet file; of a comma "
        "list, each text gives the same number of sequences",
    )
    labels: str = option(
        Recipe.labels,
        help="labels of the loss whose gradients are scored: the text's next tokens, or tokens drawn from the model",
        choices=LABELS,
    )
    nsamples: int = option(
        Recipe.nsamples, help="calibration sequences; fewer = less memory and time", type=int, range="at least 1"
    )
    seq_len: int = option(256, help="tokens of a calibration sequence", type=int, range="at least 2")
    batch_size: int = option(4, help="sequences at a time, for scoring", type=int, range="at least 1")
    layer_importance: str = option(
        Recipe.layer_importance,
        help="measure of the influence of layers and blocks, for the H-GSP prior",
        choices=LAYER_IMPORTANCES,
        group="H-GSP prior",
    )
    use_gradient_checkpointing: bool = option(
        False, help="less memory while scoring, for more time; same scores", group="resources"
    )
    offload: bool = option(
        False, help="read one layer at a time from the safetensors files, when scoring and saving", group="resources"
    )
    dequantize: bool = option(False, help="prune a checkpoint in MXFP4 (GPT-OSS), de-quantised", group="resources")
    spill_dir: str | None = option(None, help="folder for activations (unset: kept in memory)", group="resources")
    device: str | None = option(
        None, help="cuda:0, cpu, mps, or auto for several (unset: the best available)", group="resources"
    )
    dtype: str = option("bfloat16", help="dtype of weights and result", choices=DTYPE_NAMES, group="resources")
    seed: int = option(42, help="seed of the calibration sequences and of random scores", type=int)
    overwrite: bool = option(False, help="replace an existing result", group="output", recorded=False)

    def __post_init__(self) -> None:
        self.pin("base_model")
        for name, choices in (
            ("importance_method", IMPORTANCE_METHODS),
            ("layer_importance", LAYER_IMPORTANCES),
            ("labels", LABELS),
            ("dtype", DTYPE_NAMES),
        ):
            require(getattr(self, name) in choices, f"--{name}", f"one of {', '.join(choices)}", getattr(self, name))
        require_counts(self, "nsamples", "batch_size")
        require(self.seq_len >= 2, "--seq_len", "at least 2", self.seq_len)
        for name in self.datasets:
            check_dataset_name(name, "--dataset")
        processes = launched_processes()
        require(self.nsamples >= processes, "--nsamples", f"at least {processes}, one per process", self.nsamples)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the calibration texts."""
        return dataset_names(self.dataset)

    @property
    def recipe(self) -> Recipe:
        """The settings of the pipeline among the flags."""
        return Recipe(**{item.name: getattr(self, item.name) for item in fields(Recipe) if hasattr(self, item.name)})

    @property
    def measures_influence(self) -> bool:
        """Whether the influence of layers and blocks is measured, for the H-GSP prior."""
        return self.recipe.temperature > 0

    @property
    def needs_calibration(self) -> bool:
        """Whether scoring reads text: all but two methods do, and so does the prior."""
        return self.importance_method not in TEXT_FREE_METHODS or self.measures_influence


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScoringConfig):
    """All options of ``hgsp score``."""

    output: str = option(help="the scores file to write, such as scores.npz")


@dataclass(frozen=True, kw_only=True)
class PruneConfig(ScoringConfig, MeasureConfig, BudgetConfig, ShapeConfig, UploadConfig):
    """All options of ``run_global_pruning.py``. Raises InputError for values that make no sense."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "recipe": {name: recipe.settings() for name, recipe in RECIPES.items()},
        "shapes_for": SHAPE_PRESETS,
    }

    output_name: str = option(help="results go to {results_dir}/{output_name}/; with several ratios to ..._{percent}/")
    temperature: float = option(
        Recipe.temperature,
        help="H-GSP temperature: 0 = global importance only, 1 = full H-GSP, more = stronger",
        type=float,
        group="H-GSP prior",
        range="at least 0",
    )
    tau: float | None = option(
        Recipe.tau,
        help="H-GSP gate; unset = 25th percentile, 0 = block-wise only, inf = layer-wise only",
        type=float,
        group="H-GSP prior",
        range="at least 0, or inf",
    )
    epsilon: float | None = option(
        Recipe.epsilon,
        help="a layer that would keep less than this fraction of its parameters is removed whole "
        f"(unset: {DEFAULT_EPSILON} when temperature > 0, else no layer is removed)",
        type=float,
        group="H-GSP prior",
        range="in [0, 1]",
    )
    score_normalization: str = option(
        Recipe.score_normalization,
        help="normalization that makes importances of different layers comparable; auto = the method's own",
        choices=NORMALIZATIONS,
        group="scoring",
    )
    depth_slope: float = option(
        Recipe.depth_slope,
        help="multiply MLP scores by e^-S in the first layer up to e^S in the last: a reconstruction of later layers "
        "compensates for losses in early ones",
        type=float,
        group="scoring",
        range="in [-10, 10]",
    )
    attention_slope: float = option(
        Recipe.attention_slope, help="the same for KV groups", type=float, group="scoring", range="in [-10, 10]"
    )
    scores: str | None = option(None, help="scores.npz of the same model: prune without calibration", group="scoring")
    reconstruct: str = option(
        Recipe.reconstruct,
        help="refit o_proj and down_proj to the dense model's outputs, without training: lstsq = least squares, "
        "blocks = then all weights of each block too, bias = only a bias that is added to them",
        choices=RECONSTRUCTIONS,
        group="reconstruction and search",
    )
    reconstruct_nsamples: int | None = option(
        Recipe.reconstruct_nsamples,
        help=f"calibration sequences to reconstruct from (unset: {DEFAULT_RECONSTRUCT_NSAMPLES}; all there are in "
        "a shorter text)",
        type=int,
        group="reconstruction and search",
        range="at least 2",
    )
    rounds: int = option(
        Recipe.rounds,
        help="prune in this many rounds; after each, reconstruct (with --reconstruct) and score again",
        type=int,
        group="reconstruction and search",
        range="at least 1",
    )
    search: int = option(
        Recipe.search,
        help="steps of the budget search for widths per layer and kind that lower KL(dense || pruned)",
        type=int,
        group="reconstruction and search",
        range="at least 0",
    )
    search_nsamples: int | None = option(
        Recipe.search_nsamples,
        help=f"calibration sequences of the search (unset: {DEFAULT_SEARCH_NSAMPLES} to judge by; with --reconstruct "
        f"{DEFAULT_PROFILE_NSAMPLES}, of which a quarter judges; all there are in a shorter text)",
        type=int,
        group="reconstruction and search",
        range="at least 1",
    )
    finetune: bool = option(
        False, help="LoRA recovery right after pruning; the result goes to ..._finetuned/", group="recovery"
    )
    finetune_data_path: str = option(
        DEFAULT_INSTRUCTIONS, help="instruction data, as --data_path of finetune_lora.py", group="recovery"
    )
    finetune_epochs: float = option(3, help="recovery epochs", type=float, group="recovery", range="above 0")
    finetune_lr: float = option(3e-4, help="recovery learning rate", type=float, group="recovery", range="above 0")
    finetune_batch_size: int = option(
        128, help="effective recovery batch", type=int, group="recovery", range="at least 1"
    )
    finetune_micro_batch_size: int = option(
        4, help="recovery batch per step", type=int, group="recovery", range="at least 1"
    )
    lora_r: int = option(8, help="LoRA rank", type=int, group="recovery", range="at least 1")
    lora_alpha: int = option(16, help="LoRA alpha", type=int, group="recovery", range="at least 1")
    results_dir: str = option("results", help="where results go", group="output")
    dry_run: bool = option(
        False, help="print the shapes to prune from; load no weights, write nothing", group="output", recorded=False
    )
    no_bin: bool = option(False, help="do not write pruned_model.bin beside the safetensors", group="output")

    def __post_init__(self) -> None:
        ScoringConfig.__post_init__(self)
        MeasureConfig.__post_init__(self)
        BudgetConfig.__post_init__(self)
        ShapeConfig.__post_init__(self)
        for name, known in (("score_normalization", NORMALIZATIONS), ("reconstruct", RECONSTRUCTIONS)):
            value = getattr(self, name)
            require(value in known, f"--{name}", f"one of {', '.join(known)}", value)
        if self.reconstruct_nsamples is not None:
            require(self.reconstruct_nsamples >= 2, "--reconstruct_nsamples", "at least 2", self.reconstruct_nsamples)
            together = self.reconstruct != "none"
            require(together, "--reconstruct_nsamples", "given together with --reconstruct", self.reconstruct_nsamples)
        require(self.search >= 0, "--search", "at least 0", self.search)
        if self.search_nsamples is not None:
            require_counts(self, "search_nsamples")
            require(self.search > 0, "--search_nsamples", "given together with --search", self.search_nsamples)
        require_counts(self, "rounds", "lora_r", "lora_alpha", "finetune_batch_size", "finetune_micro_batch_size")
        batch, micro = self.finetune_batch_size, self.finetune_micro_batch_size
        expected, nearest = f"a multiple of --finetune_micro_batch_size {micro}", nearest_multiples(batch, micro)
        require(not self.finetune or batch % micro == 0, "--finetune_batch_size", expected, batch, nearest)
        require_positive(self, "finetune_epochs", "finetune_lr")
        finite = math.isfinite(self.temperature) and self.temperature >= 0
        require(finite, "--temperature", "a finite number >= 0", self.temperature, "0 switches the prior off")
        require(self.tau is None or self.tau >= 0, "--tau", ">= 0, or inf", self.tau, "leave it out for the percentile")
        require(self.epsilon is None or 0 <= self.epsilon <= 1, "--epsilon", "in [0, 1]", self.epsilon)
        for name in ("depth_slope", "attention_slope"):
            require(abs(getattr(self, name)) <= 10, f"--{name}", "in [-10, 10]", getattr(self, name))
        # --overwrite deletes the folder of this name: it must not be the results folder itself, nor outside of it
        inside = not {"", ".", ".."} & set(self.output_name.replace("\\", "/").split("/"))
        require(inside, "--output_name", "a relative name such as MODEL/prune_20", self.output_name)

    @property
    def recipe(self) -> Recipe:
        """The settings of the pipeline among the flags; uniform plans leave the budget search nothing to choose."""
        return replace(super().recipe, search=0) if self.uniform else super().recipe

    @property
    def reads_text(self) -> bool:
        """Whether calibration text is read, for scoring, the search or the reconstruction."""
        return self.recipe.reconstructs or self.recipe.search > 0 or self.scores_text

    @property
    def scores_text(self) -> bool:
        """Whether scoring reads text. With a scores file it does only if later rounds score again."""
        return self.needs_calibration and (self.scores is None or self.rounds > 1)

    def output_name_for(self, ratio: float | None) -> str:
        """Return the result folder's name; of several ratios, each has its percentage appended."""
        return f"{self.output_name}{self.suffix_for(ratio)}"


@dataclass(frozen=True, kw_only=True)
class CutConfig(PruneConfig):
    """All options of ``hgsp cut``."""

    scores: str = option(help="scores.npz of the same model, from `hgsp score` or an earlier run")


def settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the value of every option for a command line; argparse exits with 2 on one that it does not understand.

    Raises:
        InputError: a value that makes no sense.
    """
    config = parse(PruneConfig, arguments, prog="run_global_pruning.py", description="")
    return {item.name: getattr(config, item.name) for item in fields(config)}
