#!/usr/bin/env python3
"""Measure the perplexity of a GGUF file with llama-cpp-python; run by quantized.py in that environment.

Reads a JSON object from stdin: ``model`` (a file) and ``windows`` (lists of token ids). Prints the summed NLL of each
window.
"""

from __future__ import annotations

import json
import sys
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
    json.dump(nll(order["model"], order["windows"]), sys.stdout)


def nll(model: str, windows: list[list[int]]) -> list[float]:
    """Return the summed next-token NLL of each window in nats, float64 over float32 logits."""
    length = max(map(len, windows))
    llama = llama_cpp.Llama(
        model, n_ctx=length, n_batch=512, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
    )
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
