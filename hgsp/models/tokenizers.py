"""The tokenizer of a model, and whether the model has an embedding for every token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer
from transformers.utils import CHAT_TEMPLATE_DIR

from hgsp.errors import InputError, one_line
from hgsp.models.gguf_files import gguf_tokenizer
from hgsp.models.hub import HUB_ID, with_revision
from hgsp.models.loading import ModelSource

#: Files that may belong to a tokenizer, some of them for other programs than transformers.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_config.json",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    f"{CHAT_TEMPLATE_DIR}/*.jinja",
)
#: Tokens that a warning names.
NAMED_TOKENS = 3


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer saved with a model; no token is added and nothing is resized.

    Args:
        name: hub id (also ``id@revision``), folder or .gguf file.

    Raises:
        InputError: there is none, or one without a vocabulary.
    """
    if name.endswith(".gguf"):
        return gguf_tokenizer(Path(name))
    try:
        plain, revision = with_revision(name)
        if not Path(name).exists() and HUB_ID.fullmatch(name):
            patterns = list(TOKENIZER_FILES)  # those too that a pruned folder carries on
            snapshot_download(plain, allow_patterns=patterns, **revision)
        tokenizer = AutoTokenizer.from_pretrained(plain, **revision)
        if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()):  # made from config.json alone
            raise ValueError("an empty vocabulary: tokenizer files are missing")
        tokenizer.name_or_path = name  # with the revision, by which its files are found again
        return tokenizer
    except (OSError, ValueError) as error:
        raise InputError(
            expected=f"tokenizer files in '{name}'",
            got=one_line(error),
            remedy="copy the tokenizer files of the model into its folder",
        ) from error


def load_own_tokenizer(source: ModelSource) -> tuple[Any, list[str]]:
    """Load the tokenizer of a model whose weights are not loaded yet, with the warnings of ``check_vocabulary``.

    Raises:
        InputError: there is none, or it belongs to another model.
    """
    tokenizer = load_tokenizer(source.name)
    return tokenizer, check_vocabulary(source.config.vocab_size, tokenizer)


def check_vocabulary(num_embeddings: int, tokenizer: Any) -> list[str]:
    """Return a warning if added tokens of the tokenizer have no row in the model's embedding.

    ``check_token_ids`` refuses the texts in which one occurs.

    Raises:
        InputError: the vocabulary without added tokens is larger than the embedding.
    """
    if len(tokenizer) <= num_embeddings:
        return []
    if tokenizer.vocab_size > num_embeddings:
        raise InputError(
            expected=f"a tokenizer of at most {num_embeddings} tokens, the size of the model's embedding",
            got=f"{tokenizer.vocab_size} tokens",
            remedy="pass the tokenizer that belongs to the model",
        )
    surplus = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= num_embeddings)
    named = ", ".join(token for _, token in surplus[:NAMED_TOKENS])
    more = ", ..." if len(surplus) > NAMED_TOKENS else ""
    return [
        f"the tokenizer adds {len(surplus)} tokens that the model has no embedding for ({named}{more}): "
        "a text in which one of them occurs is refused"
    ]


def check_token_ids(largest_id: int, num_embeddings: int, tokenizer: Any | None, text: str) -> None:
    """Refuse a text with a token that has no row in the model's embedding.

    Args:
        largest_id: the largest token id of the text as the model reads it.
        tokenizer: gives the token its name; None names the id alone.
        text: the name of the text.

    Raises:
        InputError: with the token.
    """
    if largest_id >= num_embeddings:
        name = "" if tokenizer is None else f"{tokenizer.convert_ids_to_tokens(largest_id)!r}, "
        raise InputError(
            expected=f"a text in which every token has one of the model's {num_embeddings} embeddings",
            got=f"{name}id {largest_id}, in {text}",
            remedy="take the token out of the text, or pass the tokenizer that belongs to the model",
        )
