#!/usr/bin/env python3
"""Quantise the weights of a dense or pruned checkpoint with torchao, for Transformers and vLLM.

python examples/quantize_torchao.py FOLDER OUTPUT --type int8

Needs hgsp and torchao. int8 has a scale per output channel and takes any width; int4 has one per group of input
channels, and needs widths in multiples of the group size (--mlp_multiple_of).
"""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Write a folder that ``from_pretrained`` loads as it is, where torchao is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument("--type", choices=["int8", "int4"], default="int8")
    parser.add_argument("--group_size", type=int, default=64, help="input channels that share a scale, for int4")
    options = parser.parse_args(argv)

    import torch
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

    import hgsp  # noqa: F401  registers the classes of pruned models

    int4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(options.group_size))
    model = AutoModelForCausalLM.from_pretrained(
        options.folder,
        dtype="auto",
        device_map="cpu",
        quantization_config=TorchAoConfig(int4 if options.type == "int4" else Int8WeightOnlyConfig()),
    )
    model.save_pretrained(options.output)
    AutoTokenizer.from_pretrained(options.folder).save_pretrained(options.output)


if __name__ == "__main__":
    main()
