#!/usr/bin/env python3
"""Prune one model to several sizes from one scoring pass, measure each, and save it.

python examples/several_sizes.py --model HuggingFaceTB/SmolLM2-135M-Instruct --output smollm2
"""

import argparse
from collections.abc import Sequence

import hgsp


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``OUTPUT-10``, ``OUTPUT-20`` and ``OUTPUT-30``: Hugging Face folders, 10 to 30 % smaller."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id, folder or .gguf file")
    parser.add_argument("--text", default="wikitext2", help="text to calibrate on and to measure perplexity on")
    parser.add_argument("--num_sequences", type=int, default=128)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--output", default="pruned", help="prefix of the folders")
    options = parser.parse_args(argv)

    model, tokenizer = hgsp.load(options.model)
    text = hgsp.calibration(options.text, tokenizer, num_sequences=options.num_sequences, seq_len=options.seq_len)
    scores = hgsp.score(model, text, method="fisher_token")
    print("dense", hgsp.evaluate(model, tokenizer, tasks=[options.text], max_windows=4), sep="\n")
    for percent in (10, 20, 30):
        plan = scores.select(ratio=percent / 100, depth_slope=0.5)
        print(plan)
        pruned = hgsp.prune(model, plan, reconstruct=text)
        print(hgsp.evaluate(pruned, tokenizer, tasks=[options.text], max_windows=4))
        hgsp.save(pruned, tokenizer, f"{options.output}-{percent}")


if __name__ == "__main__":
    main()
