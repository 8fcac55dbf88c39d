"""Check a model's folder against its checksums, its config, its pruning plan and the dense model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from hgsp.console.exit_codes import fail, quiet_libraries, run_guarded
from hgsp.console.flags import option, parse
from hgsp.models.hub import HubConfig


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(HubConfig):
    """Options of ``hgsp verify``."""

    GROUP: ClassVar[str] = "models"

    checkpoint: str = option(
        help="folder of a pruned, recovered or dense model, or of an export",
        metavar="DIR",
        positional=True,
        group="output",
    )
    base_model: str | None = option(
        None,
        help="dense model that DIR was pruned from: hub id, folder or .gguf file (unset: the one that its report "
        "names, if it is on this machine)",
    )
    json: bool = option(False, help="print JSON", group="output")

    def __post_init__(self) -> None:
        self.pin("base_model")


OPTIONS = VerifyConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp verify") -> int:
    """Run the command; exit code 0 nothing differs, 1 a difference, 2 nothing to verify."""
    return run_guarded(lambda: verify(parse(OPTIONS, argv, prog=prog, description=__doc__ or "")))


def verify(config: VerifyConfig) -> int:
    """Print what every check found, and the first difference as an error."""
    quiet_libraries()
    from hgsp.pipeline.verify import DIFFERS, verify_folder

    checks = verify_folder(config.checkpoint, config.base_model)
    if config.json:
        print(json.dumps({"folder": config.checkpoint, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.name:<{width}}  {check.status}: {check.detail}")
    first = next((check for check in checks if check.status == DIFFERS), None)
    return 0 if first is None else fail(1, first.detail)


if __name__ == "__main__":
    sys.exit(main())
