"""Options that say how much leaves a model and which shapes it may have. Importing them costs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hgsp.console.flags import byte_count, option, require, require_counts
from hgsp.costs.names import COST_NAMES, PHASES
from hgsp.pruning.names import AUTO_MULTIPLE, AUTO_MULTIPLE_FROM, RATIO_OF

TARGETS = ("target_speedup", "target_bytes", "target_kv_bytes")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Options of the budget: a ratio of parameters, or a target."""

    GROUP: ClassVar[str] = "budget"

    pruning_ratio: tuple[float, ...] | None = option(
        None,
        help="fraction of ALL parameters to remove, in [0, 1), or of what --ratio_of names; several make several "
        "results from one scoring pass (required unless a target is given)",
        type=float,
        nargs="+",
        group="required",
        range="in [0, 1)",
    )
    ratio_of: str = option(
        "all",
        help="parameters that --pruning_ratio is a fraction of: all, or those of the decoder layers (no embeddings, no "
        "head), as papers count",
        choices=RATIO_OF,
    )
    cost: str | None = option(
        None,
        help="unit that the ranking divides importance by: "
        + ", ".join(f"{name} ({unit})" for name, unit in COST_NAMES.items())
        + " (unset: that of the target, else params)",
        choices=COST_NAMES,
    )
    target_speedup: float | None = option(
        None,
        help="remove as little as makes the model this many times as fast, by --profile",
        type=float,
        range="above 1",
    )
    target_bytes: int | None = option(
        None,
        help="remove as little as leaves this many bytes of weights in --dtype, such as 5GB",
        type=byte_count,
        range="above 0",
    )
    target_kv_bytes: int | None = option(
        None,
        help="remove as little as leaves this many bytes of KV cache per token, such as 64KiB",
        type=byte_count,
        range="above 0",
    )
    profile: str | None = option(None, help="latency table of this model and device, from `hgsp profile`")
    workload: str | None = option(
        None,
        help="pass whose speed counts, PHASE,BATCH,CONTEXT such as decode,1,2048 (unset: the smallest one in the "
        "table, of decoding where it has it)",
    )

    def __post_init__(self) -> None:
        ratios = self.pruning_ratio
        object.__setattr__(self, "pruning_ratio", None if ratios is None else _as_tuple(ratios))
        for ratio in self.pruning_ratio or ():
            require(0 <= ratio < 1, "--pruning_ratio", "in [0, 1)", ratio, "0.2 removes 20 % of all parameters")
        require(self.ratio_of in RATIO_OF, "--ratio_of", f"one of {', '.join(RATIO_OF)}", self.ratio_of)
        with_ratio = self.ratio_of == "all" or ratios is not None
        require(with_ratio, "--ratio_of", "given together with --pruning_ratio", self.ratio_of)
        require(
            len(set(self.pruning_ratio or ())) == len(self.pruning_ratio or ()),
            "--pruning_ratio",
            "different values",
            ratios,
        )
        given = [name for name in ("pruning_ratio", *TARGETS) if getattr(self, name) is not None]
        wanted = f"given, or one of {', '.join(f'--{name}' for name in TARGETS)}"
        require(len(given) == 1, "--pruning_ratio", wanted, " and ".join(given) or "neither", "name one of them")
        if self.cost is not None:
            require(self.cost in COST_NAMES, "--cost", f"one of {', '.join(COST_NAMES)}", self.cost)
        if self.target_speedup is not None:
            require(self.target_speedup > 1, "--target_speedup", "a number > 1", self.target_speedup)
        for name in ("target_bytes", "target_kv_bytes"):
            require(getattr(self, name) is None or getattr(self, name) > 0, f"--{name}", "> 0", getattr(self, name))
        needs_profile = self.ranking_cost == "latency" or self.target_speedup is not None
        remedy = "measure one with `hgsp profile`"
        require(self.profile is not None or not needs_profile, "--profile", "given for speed", None, remedy)
        require(self.workload is None or self.profile is not None, "--workload", "given with --profile", self.workload)
        if self.workload is not None:
            self.parsed_workload()

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """The ratio of every result, None for that of a target."""
        return self.pruning_ratio or (None,)

    def suffix_for(self, ratio: float | None) -> str:
        """Return the ending of the folder and repository of one of several ratios: its percentage."""
        return "" if ratio is None or len(self.ratios) == 1 else f"_{ratio * 100:g}"

    @property
    def target_name(self) -> str | None:
        """The flag of the target, without its dashes; None for ratios."""
        return next((name for name in TARGETS if getattr(self, name) is not None), None)

    @property
    def ranking_cost(self) -> str:
        """The unit of the ranking in force, a key of ``COST_NAMES``."""
        default = {"target_speedup": "latency", "target_kv_bytes": "kv_bytes"}.get(self.target_name or "", "params")
        return self.cost or default

    def parsed_workload(self) -> tuple[str, int, int]:
        """Return phase, batch size and context length of ``--workload``.

        Raises:
            InputError: it has another form.
        """
        phase, *numbers = str(self.workload).split(",")
        valid = phase in PHASES and len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers)
        expected = f"PHASE,BATCH,CONTEXT with a phase of {', '.join(PHASES)}"
        require(valid, "--workload", expected, self.workload, "such as decode,1,2048")
        return phase, int(numbers[0]), int(numbers[1])


def _as_tuple(ratios: Any) -> tuple[float, ...]:
    return tuple(ratios) if isinstance(ratios, (tuple, list)) else (ratios,)


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The option of channels inside experts, which scoring must know too."""

    GROUP: ClassVar[str] = "shapes"

    expert_channels: bool = option(
        False,
        help="in mixtures of experts, channels inside experts leave too: the same number of every expert of a layer, "
        "each expert's own weakest; --min_mlp_width and --mlp_multiple_of hold for them",
    )


def multiple_or_auto(text: str) -> int | None:
    """Parse ``--mlp_multiple_of``: a number, or None for "auto"."""
    return None if text == "auto" else int(text)


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """Options of the shapes that a plan may have."""

    GROUP: ClassVar[str] = "shapes"

    mlp_multiple_of: int | None = option(
        None,
        help="MLP channels leave in blocks of this number, ranked as one, so that MLPs keep multiples of it: engines "
        f"run those faster and quantisers need them (unset or auto: {AUTO_MULTIPLE} for MLPs of at least "
        f"{AUTO_MULTIPLE_FROM:,} channels, else 1; with --uniform less where layers are many)",
        type=multiple_or_auto,
        metavar="N",
        range="at least 1",
    )
    uniform: bool = option(False, help="keep the same sizes in every layer, as stock model classes need")
    equal_kv_groups: bool = option(False, help="keep the same number of KV groups in every layer; widths may differ")
    allow_empty_blocks: bool = option(
        False,
        help="let the attention or the MLP of a layer leave whole; with --reconstruct, plans with different numbers of "
        "emptied blocks are refitted and the best one is kept",
    )
    freeze_first_n_layers: int = option(0, help="first layers never touched", type=int, range="at least 0")
    freeze_last_n_layers: int = option(0, help="last layers never touched", type=int, range="at least 0")
    min_kv_groups: int = option(
        1, help="KV groups every layer keeps unless removed whole", type=int, range="at least 1"
    )
    min_mlp_width: int = option(
        32, help="MLP channels every layer keeps unless removed whole", type=int, range="at least 1"
    )
    min_experts: int = option(
        1,
        help="experts every layer with a router keeps unless removed whole; never fewer than a token uses",
        type=int,
        range="at least 1",
    )

    def __post_init__(self) -> None:
        require_counts(self, "min_kv_groups", "min_mlp_width", "min_experts")
        if self.mlp_multiple_of is not None:
            require_counts(self, "mlp_multiple_of")
        for name in ("freeze_first_n_layers", "freeze_last_n_layers"):
            require(getattr(self, name) >= 0, f"--{name}", "at least 0", getattr(self, name))

    @property
    def shape_settings(self) -> Mapping[str, Any]:
        """The fields by the names of ``ShapeRules``."""
        return {
            "min_kv_groups": self.min_kv_groups,
            "min_mlp_width": self.min_mlp_width,
            "min_experts": self.min_experts,
            "freeze_first": self.freeze_first_n_layers,
            "freeze_last": self.freeze_last_n_layers,
            "mlp_multiple_of": self.mlp_multiple_of,
            "equal_kv_groups": self.equal_kv_groups,
            "uniform": self.uniform,
            "allow_empty_blocks": self.allow_empty_blocks,
        }
