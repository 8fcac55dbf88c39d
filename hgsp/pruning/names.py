"""Names and numbers that commands offer. Importing this module costs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Widths of large MLPs are multiples of this number, which kernels and group-wise quantisers work in.
AUTO_MULTIPLE = 64
#: The number of channels from which an MLP is large.
AUTO_MULTIPLE_FROM = 1024
#: Denominators of a ratio: all parameters of the model, or those of its decoder layers, as papers count.
RATIO_OF = ("all", "decoder")
#: Denominator -> its words in messages.
RATIO_PHRASES = {"all": "all parameters", "decoder": "the decoder layers' parameters"}

#: Engine -> the settings whose plans it takes at full speed. docs/SERVING.md says why.
SHAPE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "gguf": {"mlp_multiple_of": 256},
    "vllm": {"mlp_multiple_of": 64},
    "tensorrt": {"mlp_multiple_of": 256, "equal_kv_groups": True},
    "awq": {"mlp_multiple_of": 128},
    "stock": {"uniform": True},
}
