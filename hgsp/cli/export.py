"""Write a pruned model in the format of another engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hgsp.console.exit_codes import quiet_libraries, run_guarded
from hgsp.console.flags import option, parse
from hgsp.console.settings_file import RUN_SETTINGS, command_line, write_settings
from hgsp.exports.names import GGUF_TYPES, TARGETS


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of ``hgsp export``."""

    GROUP: ClassVar[str] = "output"

    checkpoint: str = option(help="folder of a pruned, recovered or dense model", metavar="DIR", positional=True)
    to: str = option(help="; ".join(f"{name} = {what}" for name, what in TARGETS.items()), choices=TARGETS)
    output: str | None = option(None, help="new or empty folder to write to (unset: DIR-<target> beside DIR)")
    type: str = option(
        "f16", help="type of the weights in a GGUF file; other targets keep the stored dtype", choices=GGUF_TYPES
    )
    no_check: bool = option(False, help="do not read the result again to compare it with the checkpoint")


OPTIONS = ExportConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp export") -> int:
    """Run the command; exit code 0 done, 2 bad input (nothing written), 1 failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(OPTIONS, arguments, prog=prog, description=__doc__ or "")
        return export(config, command_line(prog, arguments, config))

    return run_guarded(run)


def export(config: ExportConfig, command: str) -> int:
    """Export, then print the files, what was checked, and the commands that serve them."""
    quiet_libraries()
    from hgsp.exports.export import export as write_export

    written = write_export(
        config.checkpoint,
        config.to,
        config.output,
        gguf_type=config.type,
        self_check=not config.no_check,
        finish=lambda folder: write_settings(config, folder / RUN_SETTINGS, command),
    )
    print(f"exported: {written.folder}")
    for file in written.exported.files:
        print(f"  {file} ({(written.folder / file).stat().st_size:,} bytes)")
    for line in (*written.exported.notes, *written.exported.checks):
        print(line)
    for line in written.serve:
        print(f"serve: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
