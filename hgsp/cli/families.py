"""List the supported architectures: the groups that are removed, exports, and the weights they were tested on."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hgsp.console.columns import aligned
from hgsp.console.exit_codes import run_guarded
from hgsp.console.flags import option, parse

if TYPE_CHECKING:
    from hgsp.models.families import Family

HEAD = ("model_type", "models", "removes", "refits", "trains", "exports", "tested on")
ON_SCREEN = ("model_type", "removes", "exports", "tested on")
NOTE = """
All are scored with every method, refitted (--reconstruct), searched, trained
(hgsp finetune) and read layer by layer (--offload). Channels inside experts
leave with --expert_channels, but for GPT-OSS, whose gates are interleaved.
Models whose layers have sliding windows, partial rotary embeddings or longrope
can be exported to "stock" only; `hgsp doctor DIR` judges one."""


@dataclass(frozen=True, kw_only=True)
class FamiliesConfig:
    """Options of ``hgsp families``."""

    GROUP: ClassVar[str] = "output"

    json: bool = option(False, help="print JSON")


OPTIONS = FamiliesConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp families") -> int:
    """Run the command; exit code 0."""
    return run_guarded(lambda: families(parse(OPTIONS, argv, prog=prog, description=__doc__ or "")))


def families(config: FamiliesConfig) -> int:
    """Print one line for every family."""
    rows = family_rows()
    if config.json:
        print(json.dumps([dict(zip(HEAD, row, strict=True)) for row in rows], indent=2))
        return 0
    columns = [HEAD.index(name) for name in ON_SCREEN]
    print(*aligned([[row[column] for column in columns] for row in (HEAD, *rows)]), NOTE, sep="\n")
    return 0


def family_rows() -> list[tuple[str, ...]]:
    """Return the cells of every family, in the order of ``HEAD``."""
    from hgsp.exports.family_targets import targets_of
    from hgsp.models.families import FAMILIES

    return [
        (
            family.model_type,
            family.models,
            ("KV groups, " if family.prunes_kv_groups else "") + ("experts" if family.experts else "channels"),
            _refits(family),
            "attention" if family.experts else "yes",
            ", ".join(targets_of(family)) or "none",
            family.real_weights or "random weights",
        )
        for family in FAMILIES.values()
    ]


def _refits(family: Family) -> str:
    if family.experts:
        return "attention" + (", experts that lose channels" * (not family.experts.stacked))
    return "toward the output before its norm" if family.blocks["mlp"].post_norm else "yes"


if __name__ == "__main__":
    sys.exit(main())
