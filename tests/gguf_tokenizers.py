"""Small tokenizers that split text by the published rules of model families, trained on the built-in text."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hgsp.data.texts import CALIBRATE, load_text

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB_SIZE = 400


def split_by(pattern: str) -> Any:
    """A regular expression, then bytes."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


#: Name in llama.cpp -> pre-tokenizer, and whether whole words skip the merges.
RULES = {
    "llama-bpe": (split_by(LLAMA3), True),
    "qwen2": (split_by(QWEN2), False),
    "tekken": (split_by(TEKKEN), True),
    "smollm": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]),
        False,
    ),
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
}


def byte_level(rules: str, adds_bos: bool = False, normalizer: Any = None, only: str | None = None) -> Any:
    """A byte-level tokenizer of 400 tokens with BOS and EOS; or of the characters of ``only`` and their merges."""
    pre_tokenizer, ignore_merges = RULES[rules]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if only is None else sorted(set(only) - {" "} | {"Ġ"})
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([text() if only is None else only], trainer)
    return finished(tokenizer, "<|begin|>", "<|end|>", adds_bos)


def sentencepiece(scheme: str = "always", adds_bos: bool = True) -> Any:
    """A SentencePiece-like tokenizer of 400 tokens, with bytes for unknown characters, BOS and EOS.

    ``scheme`` is that of Metaspace, or ``legacy``: a normalizer instead.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator([text()], trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 259, show_progress=False))
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _ in learned)]
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return finished(tokenizer, "<s>", "</s>", adds_bos, unk_token="<unk>")


def finished(tokenizer: Any, bos: str, eos: str, adds_bos: bool, **names: str) -> Any:
    """Give a tokenizer its special tokens, and BOS before a text if wanted."""
    tokenizer.add_special_tokens([bos, eos, *names.values()])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, **names)


@cache
def text() -> str:
    return load_text("builtin", CALIBRATE).content[:100_000]
