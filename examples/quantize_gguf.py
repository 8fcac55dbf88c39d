#!/usr/bin/env python3
"""Quantise a GGUF file to a type of llama.cpp, such as Q4_K_M, as ``llama-quantize`` does.

python examples/quantize_gguf.py results/my_model-gguf/my_model-F16.gguf q4_k_m.gguf --type Q4_K_M

Needs llama-cpp-python. Start from the F16 file that ``hgsp export --to gguf`` writes.
"""

import argparse
import ctypes
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Write the quantised file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("output")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{options.type}")
    params.nthread = options.threads
    if llama_cpp.llama_model_quantize(options.source.encode(), options.output.encode(), ctypes.byref(params)):
        raise SystemExit(f"error: llama.cpp could not write {options.output}")


if __name__ == "__main__":
    main()
