"""The architecture that a GGUF file names, and the models that none can hold."""

from __future__ import annotations

from dataclasses import dataclass

from hgsp.errors import InputError
from hgsp.exports.source import ExportSource


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Args:
        interleaves: rotary embeddings rotate adjacent pairs, not the two halves of a head.
        fuses_qkv: one tensor holds the rows of queries, keys and values.
        skips_attention: layers other than the first may lack attention.
    """

    name: str
    interleaves: bool = True
    fuses_qkv: bool = False
    skips_attention: bool = False


#: One size for all layers; any number of heads, and biases of all Linears.
LLAMA = Architecture("llama")
#: The same block with a size per layer.
DECI = Architecture("deci", skips_attention=True)
#: Norms of queries and keys per head; one size for all layers.
QWEN3 = Architecture("qwen3", interleaves=False)
#: The same block with a size per layer, tied embeddings and no frequency factors.
OPENELM = Architecture("openelm", interleaves=False, fuses_qkv=True)


def has_head_norms(source: ExportSource) -> bool:
    """Return whether queries and keys of every head are normalised."""
    return source.family.qk_norm == "head"


def architecture_of(source: ExportSource) -> Architecture:
    """Choose the architecture for a model.

    Raises:
        InputError: llama.cpp has none for it.
    """
    if source.beyond_llama:
        raise InputError(
            expected="a Llama, Mistral, Qwen2 or Qwen3 model with full attention for a GGUF file",
            got=f"{source.family.model_type}, with {source.beyond_llama}",
            remedy="serve the folder with Transformers",
        )
    if not has_head_norms(source):
        return LLAMA if source.is_uniform else DECI
    if source.config.get("attention_bias") or source.config.get("writer_bias"):
        raise _unsupported("a Qwen3 model without biases", "biases", "")
    if source.rope["rope_type"] == "llama3":
        raise _unsupported("another rope of a Qwen3 model", "rope_type 'llama3'", "")
    if source.is_uniform:
        return QWEN3
    if not source.ties_embeddings:
        raise _unsupported(
            "tied embeddings (as in Qwen3-0.6B, 1.7B and 4B) in a Qwen3 model with a size per layer",
            "a head of its own",
            "prune with --uniform, or ",
        )
    return OPENELM


def _unsupported(expected: str, got: str, remedy: str) -> InputError:
    return InputError(
        expected=f"{expected}: llama.cpp holds no other", got=got, remedy=f"{remedy}serve the folder with vLLM"
    )
