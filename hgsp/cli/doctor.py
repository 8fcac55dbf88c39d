"""Tell which engines run a model, why others do not, and which flag or export would change it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hgsp.console.columns import aligned
from hgsp.console.exit_codes import quiet_libraries, run_guarded
from hgsp.console.flags import option, parse
from hgsp.environment import package_version

if TYPE_CHECKING:
    from hgsp.exports.divisibility import Divisibility
    from hgsp.exports.sizes import EngineSize
    from hgsp.exports.verdict import Engine, Verdict

#: Model types that exports have and checkpoints of ours have not -> the target of the export.
EXPORTED_TYPES = {"nemotron-nas": "decilm", "openelm": "mlx"}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Options of ``hgsp doctor``."""

    GROUP: ClassVar[str] = "output"

    checkpoint: str = option(
        help="folder of a pruned, recovered or dense model, or of an export", metavar="DIR", positional=True
    )
    json: bool = option(False, help="print JSON")


OPTIONS = DoctorConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp doctor") -> int:
    """Run the command; exit code 0 done, 2 no model."""
    return run_guarded(lambda: doctor(parse(OPTIONS, argv, prog=prog, description=__doc__ or "")))


def doctor(config: DoctorConfig) -> int:
    """Print the verdict of every engine, sizes, divisors and commands."""
    quiet_libraries()
    from hgsp.exports.divisibility import divisibility_of
    from hgsp.exports.engines import engines_that_read, judge_all
    from hgsp.exports.sizes import sizes_of, value_bytes_of
    from hgsp.exports.source import read_source

    folder = Path(config.checkpoint)
    if target := exported_target(folder):
        readers = [engine.name for engine in engines_that_read(target)]
        text = f"{folder} is an export (--to {target}) for {', '.join(readers)}"
        print(json.dumps({"folder": str(folder), "export": target, "engines": readers}) if config.json else text)
        return 0
    source = read_source(folder)
    verdicts = judge_all(source)
    # sizes and divisors are those of dense models
    sizes = [] if source.untried else sizes_of(source, value_bytes_of(source))
    divisibility = None if source.untried else divisibility_of(source)
    if config.json:
        found = {"folder": str(folder), "model_type": source.config["model_type"], "layers": len(source.shapes)}
        engines = [_as_dict(verdict, folder) for verdict in verdicts]
        found |= {} if divisibility is None else {"divisibility": asdict(divisibility)}
        found |= {"engines": engines, "sizes": [asdict(size) for size in sizes]}
        print(json.dumps(found, indent=2))
        return 0
    print(f"{folder}: {source.config['model_type']}, {len(source.shapes)} layers", end="\n\n")
    print(*aligned([_verdict_row(verdict) for verdict in verdicts]), sep="\n", end="\n\n")
    if divisibility is not None:
        print(*aligned([("format", "weights", "KV cache / token", ""), *map(_size_row, sizes)]), sep="\n", end="\n\n")
        print(*aligned(_divisors(divisibility)), sep="\n", end="\n\n")
    print(*_commands(verdicts, folder), sep="\n")
    return 0


def exported_target(folder: Path) -> str | None:
    """Return the target of the export in a folder; None if it holds no export, or one with a stock model."""
    from hgsp.models.configs import read_object
    from hgsp.models.places import is_file, is_folder

    config = folder / "config.json"
    if not is_file(config):
        return "gguf" if is_folder(folder) and any(folder.glob("*.gguf")) else None
    return EXPORTED_TYPES.get(str(read_object(config).get("model_type")))


def installed(engine: Engine) -> str:
    """Return the version of an engine here, or the program that there is; empty if it is not installed."""
    versions = (f"{name} {version}" for name in engine.packages if (version := package_version(name)))
    return next(versions, next((name for name in engine.programs if shutil.which(name)), ""))


def _as_dict(verdict: Verdict, folder: Path) -> dict[str, Any]:
    form = verdict.form
    return {
        "engine": verdict.engine.name,
        "status": verdict.status,
        "use": _use(form.use, form.export, folder) if form else None,
        "export": form.export or None if form else None,
        "note": verdict.note,
        "checked": form.checked if form else None,
        "findings": [asdict(finding) for finding in verdict.findings],
        "loss": form.loss if form and verdict.findings else "",
        "changes": list(verdict.changes),
        "installed": installed(verdict.engine) or None,
    }


def _verdict_row(verdict: Verdict) -> tuple[str, str, str]:
    """Return engine, verdict and reason of one line; what is installed follows the reason."""
    form, findings = verdict.form, [finding.violation for finding in verdict.findings]
    parts = [verdict.note, *[f"after hgsp export --to {form.export}"] * bool(form.export)] if form else []
    parts += findings
    if form and findings:
        parts.append(form.loss)
    if verdict.changes:
        parts.append(f"prune {' and '.join(map(_spoken, verdict.changes))}")
    elif form is None:
        parts.append("no flag changes it")
    closest = form or verdict.engine.forms[0]
    if not closest.was_run:
        parts.append(f"by the {closest.checked}, not run")
    if version := installed(verdict.engine):
        parts.append(f"here: {version}")
    return verdict.engine.name, verdict.status, "; ".join(filter(None, parts))


def _spoken(change: str) -> str:
    return f"with {change}" if change.startswith("--") else change


def _size_row(size: EngineSize) -> tuple[str, str, str, str]:
    return size.form, f"{size.weight_bytes / 1e6:,.1f} MB", f"{size.kv_bytes_per_token:,} B", size.note


def _divisors(found: Divisibility) -> list[tuple[str, str]]:
    def listed(numbers: Iterable[int]) -> str:
        return ", ".join(map(str, numbers)) or "none"

    return [
        ("common divisors", f"KV groups {found.kv_heads}, MLP widths {found.mlp_widths}"),
        ("tensor parallel", f"{listed(found.tensor_parallel)} of 2, 4, 8"),
        ("quantisation groups", f"{listed(found.group_sizes)} of 32, 64, 128"),
    ]


def _commands(verdicts: Sequence[Verdict], folder: Path) -> list[str]:
    """Return one line for each export and for each engine; they are not wrapped, to be copied."""
    exports = dict.fromkeys(verdict.form.export for verdict in verdicts if verdict.form and verdict.form.export)
    lines = [f"hgsp export {folder} --to {target}" for target in exports]
    for verdict in verdicts:
        if verdict.form:
            lines.append(f"{verdict.engine.name}: {_use(verdict.form.use, verdict.form.export, folder)}")
    return lines


def _use(use: str, export: str, folder: Path) -> str:
    return use.replace("{folder}", f"{folder}-{export}" if export else str(folder))


if __name__ == "__main__":
    sys.exit(main())
