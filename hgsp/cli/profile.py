"""Time the blocks of a model on this device, for budgets in time and predicted speed-ups."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hgsp.console.exit_codes import quiet_libraries, run_guarded
from hgsp.console.flags import option, parse, require, require_counts
from hgsp.console.settings_file import command_line, settings_beside, write_settings
from hgsp.costs.names import CLOCKS, PHASES
from hgsp.models.dtypes import DTYPE_NAMES
from hgsp.models.hub import HubConfig

#: Default context lengths, those that the model has positions for.
CONTEXT_LENGTHS = (512, 2048)
OUT_OF_MEMORY = "nothing was written. Try smaller --batch_sizes or --context_lengths"


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(HubConfig):
    """Options of ``hgsp profile``."""

    GROUP: ClassVar[str] = "measurement"

    model: str = option(
        help="hub id, folder or .gguf file of the dense model; its weights are not read",
        metavar="MODEL",
        positional=True,
    )
    output: str = option(help="file to write the latency table to, for --profile")
    device: str | None = option(None, help="cuda:0, cpu or mps (unset: the best available)")
    dtype: str = option("bfloat16", help="dtype in which the model will be served", choices=DTYPE_NAMES)
    mode: str = option("both", help="prefill = the whole prompt, decode = one token", choices=(*PHASES, "both"))
    batch_sizes: tuple[int, ...] = option((1, 16), help="sequences at a time", type=int, nargs="+", range="at least 1")
    context_lengths: tuple[int, ...] | None = option(
        None,
        help=f"tokens of the prompt or in the cache (unset: {' and '.join(map(str, CONTEXT_LENGTHS))}, as far as the "
        "model has positions)",
        type=int,
        nargs="+",
        range="at least 1",
    )
    repeats: int = option(
        20, help="passes per batch size and context length; slow ones get fewer", type=int, range="at least 1"
    )
    threads: int | None = option(None, help="CPU threads (unset: the choice of PyTorch)", type=int, range="at least 1")
    clock: str = option("wall", help="; ".join(f"{name} = {what}" for name, what in CLOCKS.items()), choices=CLOCKS)
    overwrite: bool = option(False, help="replace an existing table", group="output", recorded=False)

    def __post_init__(self) -> None:
        self.pin("model")
        object.__setattr__(self, "batch_sizes", tuple(self.batch_sizes))
        require_counts(self, "repeats")
        for name in ("batch_sizes", "context_lengths"):
            values = getattr(self, name)
            require(values is None or min(values) >= 1, f"--{name}", "at least 1 each", values)
        require(self.threads is None or self.threads >= 1, "--threads", "at least 1", self.threads)

    @property
    def phases(self) -> tuple[str, ...]:
        return PHASES if self.mode == "both" else (self.mode,)


OPTIONS = ProfileConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp profile") -> int:
    """Run the command; exit code 0 done, 2 bad input (nothing written), 1 failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(OPTIONS, arguments, prog=prog, description=__doc__ or "")
        return profile(config, command_line(prog, arguments, config))

    return run_guarded(run, out_of_memory=OUT_OF_MEMORY)


def profile(config: ProfileConfig, command: str) -> int:
    """Measure, write the table, and print it with the speed-ups that it predicts.

    Raises:
        InputError: an unusable output file, an unknown device or model, or contexts longer than its positions.
    """
    quiet_libraries()
    import torch
    from rich.console import Console

    from hgsp.console.progress import terminal
    from hgsp.console.result_folders import check_file_target, reserved
    from hgsp.costs.profile import ProfileOptions
    from hgsp.costs.profile import profile as measure
    from hgsp.costs.tables import describe
    from hgsp.models.loading import inspect_model

    target = Path(config.output)
    check_file_target(target, config.overwrite, "--output")
    device = _single_device(config)
    source = inspect_model(config.model, config.dtype, dequantize=True)
    options = ProfileOptions(
        device=device,
        dtype=config.dtype,
        phases=config.phases,
        batch_sizes=config.batch_sizes,
        context_lengths=_context_lengths(config, source.config),
        repeats=config.repeats,
        clock=config.clock,
    )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with reserved(target):
        table = measure(config.model, source.config, source.geometry, options, progress=terminal)
        write_settings(config, settings_beside(target), command)
        table.write(target)
    console = Console(width=min(80, Console().width), markup=False, emoji=False)
    for shown in describe(table, source.geometry):
        console.print(shown)
    print(f"latency table: {target}")
    return 0


def _single_device(config: ProfileConfig) -> str:
    from hgsp.models.devices import resolve_device

    require(config.device != "auto", "--device", "one device", config.device, "name it, such as cuda:0")
    device = resolve_device(config.device)
    require(device == "cpu" or config.clock == "wall", "--clock", f"wall on {device}", config.clock)
    return device


def _context_lengths(config: ProfileConfig, model_config: object) -> tuple[int, ...]:
    """Return the given context lengths, or the default ones that the model has positions for."""
    from hgsp.models.loading import check_positions

    if config.context_lengths is not None:
        check_positions(model_config, "--context_lengths", max(config.context_lengths))
        return tuple(config.context_lengths)
    limit = getattr(model_config, "max_position_embeddings", CONTEXT_LENGTHS[-1])
    return tuple(length for length in CONTEXT_LENGTHS if length <= limit) or (limit,)


if __name__ == "__main__":
    sys.exit(main())
