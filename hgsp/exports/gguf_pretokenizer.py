"""How a tokenizer splits text before it merges, recognised by its exact rules: llama.cpp knows each by a name.

A wrong name gives a model that runs and reads other tokens than it was trained on, so that unknown rules are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hgsp.errors import InputError

#: Values of ``tokenizer.ggml.model``.
BYTE_LEVEL_MODEL, SENTENCEPIECE_MODEL = "gpt2", "llama"


@dataclass(frozen=True)
class Splitting:
    """The rules by their names in llama.cpp; ``adds_space`` puts a space before a text."""

    model: str
    pre: str
    adds_space: bool = False


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_LETTERS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"

_LLAMA3 = "|".join((_CONTRACTIONS, _LETTERS, r"\p{N}{1,3}", _SYMBOLS, _SPACES))
_QWEN2 = "|".join((_CONTRACTIONS, _LETTERS, r"\p{N}", _SYMBOLS, _SPACES))
_TEKKEN = "|".join((_CASED_LETTERS, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES))

_REGEX_OF_GPT2 = ("ByteLevel", True)
_BYTES_ALONE = ("ByteLevel", False)

#: Steps of the pre-tokenizer, and whether whole words skip the merges -> the name of the rules.
_BYTE_LEVEL: Mapping[tuple[tuple[tuple[str, Any], ...], bool], str] = {
    ((("Split", _LLAMA3), _BYTES_ALONE), True): "llama-bpe",
    ((("Split", _QWEN2), _BYTES_ALONE), False): "qwen2",
    ((("Split", _TEKKEN), _BYTES_ALONE), True): "tekken",
    ((("Digits", True), _REGEX_OF_GPT2), False): "smollm",
    ((_REGEX_OF_GPT2,), False): "gpt-2",
}


def splitting_of(rules: Mapping[str, Any]) -> Splitting:
    """Return the rules' names for the content of a ``tokenizer.json``.

    Raises:
        InputError: rules that are not among the known ones.
    """
    model = rules["model"]
    if model["type"] != "BPE":
        raise _unknown(f"a {model['type']} model")
    if model.get("byte_fallback"):
        return Splitting(SENTENCEPIECE_MODEL, "default", _sentencepiece_space(rules))
    normalizer = rules.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        raise _unknown(f"the normalizer {normalizer}")
    steps = tuple(_step_of(step) for step in _steps(rules.get("pre_tokenizer")))
    name = _BYTE_LEVEL.get((steps, bool(model.get("ignore_merges"))))
    if name is None:
        raise _unknown(f"the pre-tokenizer {rules.get('pre_tokenizer')}")
    return Splitting(BYTE_LEVEL_MODEL, name)


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _step_of(step: Mapping[str, Any]) -> tuple[str, Any]:
    """Return kind and setting of one step; one with other settings is no known step."""
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step["individual_digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return kind, step["pattern"].get("Regex")
    return kind, None


def _sentencepiece_space(rules: Mapping[str, Any]) -> bool:
    """Return whether a space is put before a text, for the two forms in which SentencePiece models are stored.

    Raises:
        InputError: another form.
    """
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer, pre_tokenizer = rules.get("normalizer"), rules.get("pre_tokenizer")
    if pre_tokenizer is None and normalizer in (space, {"type": "Sequence", "normalizers": [space]}):
        return False
    prefixed = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}
    if pre_tokenizer is None and normalizer == prefixed:
        return True
    schemes = {"always": True, "first": True, "never": False}
    for scheme, adds_space in schemes.items():
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        if normalizer is None and pre_tokenizer == metaspace:
            return adds_space
    raise _unknown(f"normalizer {normalizer} and pre-tokenizer {pre_tokenizer} of a SentencePiece model")


def _unknown(got: str) -> InputError:
    return InputError(
        expected="a tokenizer of Llama-2, Llama-3, Qwen2, Qwen3, Mistral (SentencePiece or tekken), SmolLM2 or GPT-2",
        got=got,
        remedy="serve the folder with vLLM: a GGUF file with other rules would read other tokens",
    )
