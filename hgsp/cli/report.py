"""Write report.html and report.md of a result again, or of several results side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hgsp.console.exit_codes import run_guarded
from hgsp.console.flags import option, parse, require
from hgsp.console.result_folders import refuse_unwritable
from hgsp.errors import InputError
from hgsp.models.places import is_folder


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Options of ``hgsp report``."""

    GROUP: ClassVar[str] = "output"

    folders: tuple[str, ...] = option(
        help="folders of results; a folder that is none stands for all results below it",
        nargs="+",
        metavar="DIR",
        positional=True,
    )
    output: str | None = option(
        None, help="folder for report.html and report.md (unset: DIR for one result, else the working folder)"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "folders", tuple(self.folders))
        for folder in self.folders:
            require(is_folder(folder), "DIR", "a folder", folder, "check the path")


OPTIONS = ReportConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp report") -> int:
    """Run the command; exit code 0 done, 2 no result (nothing written)."""
    return run_guarded(lambda: report(parse(OPTIONS, argv, prog=prog, description=__doc__ or "")))


def report(config: ReportConfig) -> int:
    """Read the results and write the page.

    Raises:
        InputError: no result, one that this version does not read, or a page in the way that is not ours.
    """
    from hgsp.report.compare import comparison_of
    from hgsp.report.page import HTML, MARKDOWN, has_foreign_page, page_of, write_page
    from hgsp.report.sources import read_sources, results_below

    results = list(dict.fromkeys(result for folder in config.folders for result in results_below(Path(folder))))
    if not results:
        raise InputError(
            expected=f"a result below {', '.join(config.folders)}", got="none", remedy="prune or measure a model first"
        )
    output = Path(config.output) if config.output else results[0] if len(results) == 1 else Path.cwd()
    refuse_unwritable(output, "--output")
    if has_foreign_page(output):
        raise InputError(
            expected=f"no {HTML} in {output}, or one written by hgsp",
            got="one written by something else",
            remedy="choose another folder with --output",
        )
    sources = [read_sources(folder) for folder in results]
    write_page(page_of(sources[0]) if len(sources) == 1 else comparison_of(sources), output)
    print(f"written: {output / HTML}, {output / MARKDOWN}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
