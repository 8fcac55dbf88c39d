"""The same command in another environment: another order of hashes, locale, thread count, and memory setting."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hard.world import STAGES, Experiment, World, contents
from hgsp.console.checksums import CHECKSUMS
from hgsp.models.pruned_bin import BIN_NAME

#: Stages that write numbers; the study is made of them and runs in a process of its own.
NUMERIC = ("prune", "score", "cut", "reconstruction", "search", "training", "evaluation", "export")
_MODULES = [str(Path(__file__).resolve().parents[2])]


@dataclass(frozen=True)
class Variant:
    """A change of the environment or of flags that must not change a byte, for all stages or some.

    ``containers`` are files with their tensors in another order: their own tests compare them.
    """

    name: str
    environment: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()
    stages: tuple[str, ...] = NUMERIC
    containers: tuple[str, ...] = ()


VARIANTS = (
    Variant("the same", (("PYTHONHASHSEED", "0"),)),
    Variant("another order of hashes", (("PYTHONHASHSEED", "1"),)),
    Variant("another locale and time zone", (("LC_ALL", "C"), ("TZ", "Asia/Shanghai"), ("PYTHONUTF8", "0"))),
    Variant("two threads", (("OMP_NUM_THREADS", "2"), ("MKL_NUM_THREADS", "2"))),
    Variant(
        "layers read from files",
        flags=("--offload",),
        stages=("prune", "score", "cut", "reconstruction"),
        containers=(BIN_NAME, CHECKSUMS),
    ),
)


def repeat(world: World, name: str, variant: Variant) -> list[str]:
    """Run a stage in a new process, and return the files with other bytes."""
    stage = STAGES[name]
    work = world.new_work(f"repeat-{name}-{os.getpid()}", stage)
    environment = {
        **os.environ,
        **{"TMPDIR": str(work / "tmp"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(_MODULES)},
        **dict(variant.environment),
    }
    done = subprocess.run(
        [sys.executable, "-m", "hgsp", *stage.arguments, *variant.flags],
        cwd=work, env=environment, capture_output=True, text=True, errors="replace", timeout=600, check=False,
    )  # fmt: skip
    if done.returncode:
        return [f"exit code {done.returncode}: {done.stderr[-300:]}"]
    found, expected = contents(work), world.expected[name]
    changed = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    changed = [key for key in changed if not key.endswith(variant.containers)]
    return [f"other bytes: {sorted(changed)[:4]}"] if changed else []


def repeats(world: World, name: str) -> Iterator[Experiment]:
    """Yield the variants of a stage, as label and experiment."""
    for variant in VARIANTS:
        if name in variant.stages:
            yield variant.name, lambda variant=variant: repeat(world, name, variant)
