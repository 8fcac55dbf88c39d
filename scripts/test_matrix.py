"""Test the wheel with the oldest and the newest versions that pyproject.toml claims, and without any extra.

Every cell is an environment of its own under build/matrix with the wheel in it, and the tests run outside the
repository. uv makes the environments; it finds Python on PATH and among those of pyenv, and a package index with CPU
builds of torch by UV_INDEX.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MATRIX = REPOSITORY / "build" / "matrix"
#: Scoring, surgery, saving, loading and perplexity; then a result from the command line, verified.
TESTS = (
    *("unit/scoring/test_methods.py", "unit/pruning/test_surgery.py", "unit/models/test_checkpoint.py"),
    *("unit/models/test_modeling.py", "unit/evaluation/test_ppl.py", "cli/test_verify.py"),
)
#: All commands without the modules that only Unix has, recovery included.
WITH_RECOVERY = (*TESTS, "cli/test_platforms.py")
#: What the cell without extras must do without.
OPTIONAL = ("peft", "datasets", "lm_eval", "matplotlib", "accelerate", "gguf")
CHECK = """
import importlib.util, sys, hgsp, torch, transformers
assert hgsp.__file__.startswith(sys.prefix), hgsp.__file__
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
assert not found, found
print("Python", sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)
"""


@dataclass(frozen=True)
class Cell:
    """An environment: its Python, extras, choice of versions, tests, and packages that must be absent."""

    python: str
    extras: tuple[str, ...]
    resolution: str
    tests: tuple[str, ...]
    absent: tuple[str, ...] = ()


CELLS = {
    "oldest": Cell("3.10", ("finetune", "gguf"), "lowest-direct", WITH_RECOVERY),
    "bare": Cell("3.12", (), "highest", TESTS, OPTIONAL),
    "newest": Cell("3.13", ("finetune", "gguf"), "highest", WITH_RECOVERY),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named cells, all by default; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)} (all)")
    parser.add_argument("--keep", action="store_true", help="keep the environments, of 1 to 6 GB each")
    args = parser.parse_args(argv)
    if unknown := set(args.cells) - set(CELLS):
        parser.error(f"no such cell: {', '.join(sorted(unknown))}")
    wheel = build_wheel()
    failed = [name for name in args.cells or CELLS if run_cell(name, wheel, keep=args.keep)]
    print(f"failed: {', '.join(failed)}" if failed else "all cells passed")
    return 1 if failed else 0


def build_wheel() -> Path:
    """Build the wheel of this checkout."""
    shutil.rmtree(MATRIX / "wheel", ignore_errors=True)
    uv("build", "--wheel", "--out-dir", MATRIX / "wheel", REPOSITORY)
    (wheel,) = (MATRIX / "wheel").glob("*.whl")
    return wheel


def run_cell(name: str, wheel: Path, *, keep: bool) -> int:
    """Make the environment, run the tests in an empty folder, and return their exit code."""
    cell, place = CELLS[name], MATRIX / name
    python, folder = place / "bin" / "python", MATRIX / f"{name}-run"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        uv("venv", "--clear", "--python", cell.python, place)
        wanted = [part for extra in cell.extras for part in ("--extra", extra)]
        resolution = ("--resolution", cell.resolution)
        uv("pip", "install", "--python", python, *resolution, "-r", REPOSITORY / "pyproject.toml", *wanted)
        uv("pip", "install", "--python", python, "--no-deps", wheel)
        uv("pip", "install", "--python", python, "pytest>=8", "hypothesis>=6.100")
        subprocess.run([python, "-c", CHECK, *cell.absent], cwd=folder, check=True)
        # deprecations of other versions are no failures
        settings = ("-c", REPOSITORY / "pyproject.toml", "--rootdir", REPOSITORY, "-o", "filterwarnings=default")
        pytest = [place / "bin" / "pytest", "-q", "--disable-warnings", "-p", "no:cacheprovider", *settings]
        tests = [REPOSITORY / "tests" / test for test in cell.tests]
        return subprocess.run([*pytest, *tests], cwd=folder, env=environment(), check=False).returncode
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def uv(*arguments: str | Path) -> None:
    """Run uv, quietly."""
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *arguments], env=environment(), check=True)


def environment() -> dict[str, str]:
    """Return the environment with the Pythons of pyenv on PATH, and without a path to this checkout."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    versions = [str(folder) for folder in sorted(pyenv.glob("*/bin"))]
    own = {"UV_CACHE_DIR": str(MATRIX / "cache"), "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**own, **kept, "PATH": os.pathsep.join([*versions, os.environ["PATH"]])}


if __name__ == "__main__":
    sys.exit(main())
