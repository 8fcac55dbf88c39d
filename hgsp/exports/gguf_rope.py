"""Rotary embeddings in a GGUF file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hgsp.errors import InputError
from hgsp.exports.source import ExportSource

#: Types that llama.cpp computes as transformers does.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
#: Settings of YaRN that llama.cpp does not read from a file, with the values it uses.
_YARN_SETTINGS = {
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
}


def check_rope(source: ExportSource) -> None:
    """Refuse rotary embeddings that the file cannot describe.

    Raises:
        InputError: another type, a part of the head rotated, or YaRN with settings that llama.cpp ignores.
    """
    rope = source.rope
    if rope["rope_type"] not in ROPE_TYPES:
        raise _unsupported(f"rope_type among {', '.join(ROPE_TYPES)}", f"'{rope['rope_type']}'")
    if (part := rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _unsupported("rotation of whole heads", f"partial_rotary_factor {part}")
    if rope["rope_type"] == "yarn":
        for key, default in _YARN_SETTINGS.items():
            if rope.get(key) not in (None, default):
                raise _unsupported(f"YaRN with {key} {default or 'unset'}", str(rope[key]))


def add_rope(writer: Any, source: ExportSource) -> None:
    """Write the keys of the rotary embedding, for a model that ``check_rope`` has accepted."""
    from gguf import RopeScalingType

    rope = source.rope
    writer.add_rope_dimension_count(source.head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        original = rope.get("original_max_position_embeddings") or source.config["max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(int(original))


def frequency_factors(source: ExportSource) -> Tensor | None:
    """Return the divisors [D / 2] of the rotary frequencies for rope type ``llama3``, float32; None for others."""
    if source.rope["rope_type"] != "llama3":
        return None
    default = {"rope_type": "default", "rope_theta": source.rope["rope_theta"]}
    return _inverse_frequencies(source, default) / _inverse_frequencies(source, dict(source.rope))


def _inverse_frequencies(source: ExportSource, rope: dict[str, Any]) -> Tensor:
    """Compute inverse frequencies [D / 2] as transformers does for a model of one head."""
    config = LlamaConfig(
        hidden_size=source.head_dim,
        num_attention_heads=1,
        head_dim=source.head_dim,
        max_position_embeddings=source.config["max_position_embeddings"],
        rope_parameters=rope,
    )
    frequencies: Tensor = LlamaRotaryEmbedding(config=config).inv_freq
    return frequencies.to(torch.float32)


def _unsupported(expected: str, got: str) -> InputError:
    return InputError(expected=f"{expected} for a GGUF file", got=got, remedy="serve the folder with vLLM")
