#!/usr/bin/env python3
"""Quantise a GGUF file and measure its perplexity with llama-cpp-python; run by quantized.py in that environment.

Reads a JSON object from stdin: ``quantize`` ([source, target, type] or null), ``model`` (a file) and ``windows`` (lists
of token ids). Prints a JSON object: the file's bytes and the summed NLL of each window.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

ROWS = 128  # of logits in float64 at a time


def main() -> None:
    # Repacked weights of any quantised model end in a segmentation fault on processors with AMX
    # (llama-cpp-python 0.3.36); the results are the same without.
    defaults = llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    order = json.load(sys.stdin)
    if order["quantize"]:
        quantize(*order["quantize"])
    found = {"bytes": Path(order["model"]).stat().st_size, "nll": nll(order["model"], order["windows"])}
    json.dump(found, sys.stdout)


def quantize(source: str, target: str, name: str) -> None:
    """Write a file in a type such as ``Q4_K_M``."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = len(os.sched_getaffinity(0))
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not write {target}")


def nll(model: str, windows: list[list[int]]) -> list[float]:
    """Return the summed next-token NLL of each window in nats, float64 over float32 logits."""
    length = max(map(len, windows))
    llama = llama_cpp.Llama(model, n_ctx=length, n_batch=512, logits_all=True, verbose=False)
    totals = []
    for window in windows:
        llama.reset()
        llama.eval(window)
        logits, targets = llama.scores[: len(window) - 1], np.array(window[1:])
        total = 0.0
        for start in range(0, len(targets), ROWS):
            rows = logits[start : start + ROWS].astype(np.float64)
            rows -= rows.max(1, keepdims=True)
            chosen = np.take_along_axis(rows, targets[start : start + ROWS, None], 1)[:, 0]
            total += float((np.log(np.exp(rows).sum(1)) - chosen).sum())
        totals.append(total)
    return totals


if __name__ == "__main__":
    main()
