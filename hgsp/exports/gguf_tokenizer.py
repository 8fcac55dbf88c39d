"""The tokenizer of a checkpoint in the form that a GGUF file holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hgsp.errors import InputError
from hgsp.exports.gguf_pretokenizer import BYTE_LEVEL_MODEL, SENTENCEPIECE_MODEL, Splitting, splitting_of
from hgsp.exports.source import ExportSource
from hgsp.models.tokenizers import check_vocabulary, load_tokenizer

#: Score of SentencePiece tokens that no merge produces; they are never compared.
_UNMERGED = -1e9


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer for a GGUF file.

    Args:
        tokens: the text of every id of the embedding; ids without a token are padding.
        token_types: names of ``gguf.TokenType``, one per token.
        scores: of SentencePiece tokens, the higher the earlier they are merged; empty for byte-level BPE.
        merges: of byte-level BPE, in order; empty for SentencePiece.
        special_ids: ``bos``, ``eos``, ``eot``, ``eom``, ``unk`` and ``pad``, where there is one.
        chat_template: a template, or several by name.
    """

    splitting: Splitting
    tokens: tuple[str, ...]
    token_types: tuple[str, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    special_ids: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | Mapping[str, str] | None
    warnings: tuple[str, ...]


def read_vocabulary(source: ExportSource) -> tuple[Vocabulary, Any]:
    """Read the tokenizer of a checkpoint; returns it as a vocabulary, and as transformers loads it.

    Raises:
        InputError: none, one that llama.cpp has no rules for, or more tokens than the model has embeddings.
    """
    tokenizer = load_tokenizer(str(source.folder))
    size = int(source.config["vocab_size"])
    warnings = tuple(check_vocabulary(size, tokenizer))
    if not getattr(tokenizer, "is_fast", False):
        raise _unsupported("a tokenizer with a tokenizer.json", f"{type(tokenizer).__name__} without one")
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    splitting = splitting_of(rules)
    tokens, types = _tokens_of(rules, size, splitting)
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in rules["model"]["merges"]]
    if not merges:
        raise _unsupported("a tokenizer with merges", "single bytes alone, which llama.cpp refuses")
    byte_level = splitting.model == BYTE_LEVEL_MODEL
    adds_bos, adds_eos = _added_around_text(tokenizer)
    return (
        Vocabulary(
            splitting,
            tuple(tokens),
            tuple(types),
            () if byte_level else _scores_of(merges, tokens),
            tuple(" ".join(merge) for merge in merges) if byte_level else (),
            _special_ids(tokenizer, source),
            adds_bos,
            adds_eos,
            tokenizer.chat_template,
            warnings,
        ),
        tokenizer,
    )


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write the keys of a vocabulary."""
    from gguf import TokenType

    writer.add_tokenizer_model(vocabulary.splitting.model)
    writer.add_tokenizer_pre(vocabulary.splitting.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([TokenType[name] for name in vocabulary.token_types])
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    for name, index in vocabulary.special_ids.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    writer.add_add_space_prefix(vocabulary.splitting.adds_space)
    template = vocabulary.chat_template
    if isinstance(template, str):
        writer.add_chat_template(template)
    elif template:
        writer.add_chat_template([{"name": name, "template": text} for name, text in template.items()])


def _tokens_of(rules: Mapping[str, Any], size: int, splitting: Splitting) -> tuple[list[str], list[str]]:
    """Return the text and the type of all ids below ``size``."""
    tokens, types = [f"[PAD{index}]" for index in range(size)], ["UNUSED"] * size
    sentencepiece = splitting.model == SENTENCEPIECE_MODEL
    for token, index in rules["model"]["vocab"].items():
        if index < size:
            is_byte = sentencepiece and len(token) == 6 and token.startswith("<0x")
            tokens[index], types[index] = token, "BYTE" if is_byte else "NORMAL"
    for added in rules["added_tokens"]:
        index, text = added["id"], added["content"]
        if index < size:
            types[index] = "CONTROL" if added["special"] else "USER_DEFINED"
            tokens[index] = text.replace("▁", " ") if sentencepiece and not added["special"] else text
            if sentencepiece and text == rules["model"].get("unk_token"):
                types[index] = "UNKNOWN"
    return tokens, types


def _scores_of(merges: Sequence[tuple[str, ...]], tokens: Sequence[str]) -> tuple[float, ...]:
    """Return a score per token: minus the rank of the first merge that produces it, as SentencePiece orders pieces."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return tuple(-float(ranks[token]) if token in ranks else _UNMERGED for token in tokens)


def _special_ids(tokenizer: Any, source: ExportSource) -> dict[str, int]:
    """Return ids by their role; a model with several end tokens has the others as end of turn and of message.

    Raises:
        InputError: there is no end token; llama.cpp would take the token 11 or 2.
    """
    ids = {
        name: index
        for name in ("bos", "eos", "unk", "pad")
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None
    }
    for name in ("bos", "eos"):
        if name not in ids and isinstance(configured := source.config.get(f"{name}_token_id"), int):
            ids[name] = configured
    if "eos" not in ids:
        raise _unsupported("a tokenizer with an eos_token", "none in tokenizer_config.json or config.json")
    others = [index for index in _end_ids(source) if index != ids["eos"]]
    ids.update(zip(("eot", "eom"), others, strict=False))
    size = int(source.config["vocab_size"])
    return {name: index for name, index in ids.items() if 0 <= index < size}


def _end_ids(source: ExportSource) -> list[int]:
    """Return the ids at which generation ends, by the checkpoint's own settings."""
    file = source.folder / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else source.config
    found = settings.get("eos_token_id")
    return found if isinstance(found, list) else [] if found is None else [found]


def _added_around_text(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether the tokenizer puts BOS before and EOS after a text.

    Raises:
        InputError: it adds other tokens.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for bos in ([], [tokenizer.bos_token_id]):
        for eos in ([], [tokenizer.eos_token_id]):
            if whole == [*bos, *bare, *eos]:
                return bool(bos), bool(eos)
    added = [token for token in tokenizer.convert_ids_to_tokens(whole) if token in tokenizer.all_special_tokens]
    raise _unsupported("a tokenizer that adds BOS and EOS alone", f"{added} around a text")


def _unsupported(expected: str, got: str) -> InputError:
    return InputError(
        expected=f"{expected} for a GGUF file",
        got=got,
        remedy="put the tokenizer files of the dense model into the folder, or serve it with vLLM",
    )
