"""Write one table and two plots of all results below some folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hgsp.console.exit_codes import run_guarded
from hgsp.console.flags import option, parse, require
from hgsp.environment import install_command, replacing, write_atomically
from hgsp.errors import InputError
from hgsp.models.places import is_folder

if TYPE_CHECKING:
    from hgsp.study.collect import Result


@dataclass(frozen=True, kw_only=True)
class SummaryConfig:
    """Options of ``hgsp summarize``."""

    GROUP: ClassVar[str] = "output"

    folders: tuple[str, ...] = option(
        help="folders to search for results, recursively", nargs="+", metavar="DIR", positional=True
    )
    output: str | None = option(None, help="folder for summary.csv, .md, .tex and the plots (default: the first DIR)")

    def __post_init__(self) -> None:
        object.__setattr__(self, "folders", tuple(self.folders))
        for folder in self.folders:
            require(is_folder(folder), "DIR", "a folder", folder, "check the path")


OPTIONS = SummaryConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp summarize") -> int:
    """Run the command; exit code 0 done, 2 no results found (nothing written)."""
    return run_guarded(lambda: summarize(parse(OPTIONS, argv, prog=prog, description=__doc__ or "")))


def summarize(config: SummaryConfig) -> int:
    """Collect results, write tables and plots, and list the folders skipped.

    Raises:
        InputError: no results were found.
    """
    from rich.console import Console

    from hgsp.console.report_schema import PRUNING_REPORT
    from hgsp.report.compare import write_comparison
    from hgsp.study import collect as collecting
    from hgsp.study import tables

    results, skipped = collecting.collect([Path(folder) for folder in config.folders])
    if not results:
        reasons = "".join(f"; {item.folder}: {item.reason}" for item in skipped)
        raise InputError(
            expected=f"a result with {PRUNING_REPORT} below {', '.join(config.folders)}",
            got=f"none{reasons}",
            remedy="prune a model first",
        )
    output = Path(config.output or config.folders[0])
    written = {
        "summary.csv": tables.to_csv(results),
        "summary.md": tables.to_markdown(results, skipped),
        "summary.tex": tables.to_latex(results),
    }
    for name, text in written.items():
        write_atomically(output / name, text)
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000  # no wrapping
    for table in tables.terminal_tables(results):
        console.print(table)
    print(tables.NOTE)
    for item in skipped:
        print(f"skipped: {item.folder}: {item.reason}")
    drawn = [*draw(results, output), *write_comparison(results_folders(results), output)]
    print("written: " + ", ".join(str(output / name) for name in [*written, *drawn]))
    return 0


def results_folders(results: Sequence[Result]) -> list[Path]:
    """Return the folders of results, of recovered ones too."""
    return list(
        dict.fromkeys(folder for result in results for folder in (result.folder, result.recovered_folder) if folder)
    )


def draw(results: Sequence[Result], output: Path) -> list[str]:
    """Draw the plots and return their file names; without matplotlib, print how to install it."""
    if find_spec("matplotlib") is None:
        print(f"no plots: install matplotlib ({install_command('plots')})")
        return []
    from hgsp.study import plots

    drawn = []
    for name, figure, missing in (
        ("summary_ppl.png", plots.plot_perplexity(results), "no perplexity before and after"),
        ("summary_layers.png", plots.plot_kept_groups(results), "no global_group_table.csv"),
    ):
        if figure is None:
            print(f"no {name}: {missing}")
        else:
            with replacing(output / name) as partial:
                figure.savefig(partial, dpi=130)
            drawn.append(name)
    return drawn


if __name__ == "__main__":
    sys.exit(main())
