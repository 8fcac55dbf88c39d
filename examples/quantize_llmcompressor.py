#!/usr/bin/env python3
"""Quantise a dense or pruned checkpoint for vLLM with llm-compressor: GPTQ in 4 or 8 bits, or FP8.

python examples/quantize_llmcompressor.py FOLDER OUTPUT --scheme gptq --group_size 64 --text wiki.train.raw

Needs hgsp and llmcompressor, which pins transformers: use an environment of its own. GPTQ needs widths in multiples of
the group size (--mlp_multiple_of); FP8 takes any width and needs no text.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import hgsp  # noqa: F401  registers the classes of pruned models


def main(argv: Sequence[str] | None = None) -> None:
    """Write a folder of compressed-tensors weights, with the model's code where its layers differ in size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument("--scheme", choices=["gptq", "fp8"], default="gptq")
    parser.add_argument("--bits", type=int, choices=[4, 8], default=4, help="of a weight, for gptq")
    parser.add_argument("--group_size", type=int, default=64, help="input channels that share a scale, for gptq")
    parser.add_argument("--text", help="file to calibrate on, for gptq")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seq_len", type=int, default=512)
    options = parser.parse_args(argv)
    if options.scheme == "gptq" and options.text is None:
        parser.error("--scheme gptq needs --text")

    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    if options.scheme == "fp8":
        quantize_fp8(model)
    else:
        ids = tokenizer(Path(options.text).read_text(encoding="utf-8"))["input_ids"]
        starts = range(0, min(len(ids) - options.seq_len, options.nsamples * options.seq_len), options.seq_len)
        rows = [ids[start : start + options.seq_len] for start in starts]
        quantize_gptq(model, rows, options.bits, options.group_size)
    model.save_pretrained(options.output, save_compressed=True)
    tokenizer.save_pretrained(options.output)


def quantize_fp8(model: Any) -> None:
    """Quantise weights per channel and, when the model runs, activations per token."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]))


def quantize_gptq(model: Any, rows: list[list[int]], bits: int, group_size: int) -> None:
    """Quantise weights to integers with a scale per group, layer by layer; activations keep their dtype."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    oneshot(
        model=model,
        dataset=Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]),
        recipe=GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]),
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
    )


if __name__ == "__main__":
    main()
