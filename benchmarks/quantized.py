#!/usr/bin/env python3
"""Perplexity at equal bytes: a dense and pruned models in GGUF types of fewer and fewer bits, measured by llama.cpp.

Exports every model to GGUF at F16, quantises it with the engine's tool, and measures all files on the same windows as
``hgsp evaluate`` reads: consecutive, without BOS. Resumes from the output file.

    python benchmarks/quantized.py --models dense=FOLDER prune_20=FOLDER --engine_python ENV/bin/python \\
        --data_dir DATA --output quantized.json
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from machine import provenance

import hgsp
from hgsp.console.exit_codes import quiet_libraries
from hgsp.data.texts import EVALUATE, load_text
from hgsp.evaluation.metrics.ppl import windows_of
from hgsp.models.tokenizers import load_tokenizer

ENGINE = Path(__file__).with_name("llama_cpp_engine.py")
QUANTIZE = Path(__file__).parent.parent / "examples" / "quantize_gguf.py"
TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--engine_python", required=True, help="Python of an environment with llama-cpp-python")
    parser.add_argument("--evaluate", default="wikitext2")
    parser.add_argument("--eval_seq_len", type=int, default=1024)
    parser.add_argument("--eval_windows", type=int, default=16)
    parser.add_argument("--data_dir")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()

    models = dict(item.split("=", 1) for item in options.models)
    text = load_text(options.evaluate, EVALUATE, options.data_dir)
    found = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"rows": []}
    protocol = {
        "text": text.name,
        "sha256": text.sha256,
        "seq_len": options.eval_seq_len,
        "windows": options.eval_windows,
        "engine": engine_version(options.engine_python),
    }
    done = {(row["model"], row["type"]) for row in found["rows"]}
    for name, folder in models.items():
        missing = [kind for kind in options.types if (name, kind) not in done]
        if not missing:
            continue
        windows = windows_of(
            text, load_tokenizer(folder), options.eval_seq_len, max_windows=options.eval_windows, drop_last=True
        )
        ids = [window.tolist() for window in windows]
        with tempfile.TemporaryDirectory(dir=options.output.parent) as scratch:
            exported = hgsp.export(folder, "gguf", Path(scratch) / "exported", gguf_type="f16", self_check=False)
            source = next(exported.folder.glob("*.gguf"))
            for kind in missing:
                row = {"model": name, "type": kind, **measure(options.engine_python, source, kind, ids)}
                found["rows"].append(row)
                write(options.output, protocol, found["rows"])
                print(json.dumps(row), flush=True)
    write(options.output, protocol, found["rows"])  # with the command for all rows, after a run that resumed


def write(output: Path, protocol: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    output.write_text(
        json.dumps({**provenance(), "protocol": protocol, "rows": rows}, indent=2) + "\n", encoding="utf-8"
    )


def measure(python: str, source: Path, kind: str, windows: list[list[int]]) -> dict[str, Any]:
    """Return bytes and perplexity of a file of one type, made from the F16 file."""
    target = source if kind == "F16" else source.with_name(f"{kind}.gguf")
    if kind != "F16":
        run([python, QUANTIZE, source, target, "--type", kind])
    nll = json.loads(run([python, ENGINE], json.dumps({"model": str(target), "windows": windows})))
    size, predicted = target.stat().st_size, sum(len(window) - 1 for window in windows)
    if kind != "F16":
        target.unlink()
    return {"bytes": size, "ppl": math.exp(math.fsum(nll) / predicted), "tokens": predicted}


def run(command: list[Any], text: str = "") -> str:
    """Return the standard output of a command.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {command[1]} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return done.stdout


def engine_version(python: str) -> str:
    """Return the version of the engine in its environment."""
    code = "import llama_cpp; print('llama-cpp-python', llama_cpp.__version__)"
    return run([python, "-c", code]).strip()


if __name__ == "__main__":
    main()
