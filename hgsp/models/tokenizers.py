"""The tokenizer of a model, and whether the model has an embedding for every token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer
from transformers.utils import CHAT_TEMPLATE_DIR

from hgsp.errors import InputError, one_line
from hgsp.models.configs import read_object
from hgsp.models.gguf_files import gguf_tokenizer
from hgsp.models.hub import with_revision
from hgsp.models.loading import ModelSource
from hgsp.models.places import is_file, is_folder, is_gguf, is_hub_id
from hgsp.models.refusals import refusing
from hgsp.models.weight_files import is_plain_name

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
        InputError: there is none, one without a vocabulary, or one that cannot be read.
    """
    if is_gguf(name):
        return gguf_tokenizer(Path(name))
    plain, revision = with_revision(name)
    if is_hub_id(name):
        with refusing(lambda error: _no_tokenizer(name, error)):
            patterns = list(TOKENIZER_FILES)  # those too that a pruned folder carries on
            snapshot_download(plain, allow_patterns=patterns, **revision)
    tokenizer = read_tokenizer(plain, name, **revision)
    tokenizer.name_or_path = name  # with the revision, by which its files are found again
    return tokenizer


def read_tokenizer(place: str, name: str, **revision: str) -> Any:
    """Read a tokenizer from a folder or hub id; no code in it is executed.

    Args:
        name: its name in a refusal.

    Raises:
        InputError: it cannot be read, or names files outside its folder.
    """
    if is_folder(place) and is_file(file := Path(place, "tokenizer_config.json")):
        _check_names(read_object(file), file)
    with refusing(lambda error: _no_tokenizer(name, error)):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **revision)
        if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()):  # made from config.json alone
            raise ValueError("an empty vocabulary: tokenizer files are missing")
        if not isinstance(tokenizer.model_max_length, int | float):
            raise ValueError(f"model_max_length is {tokenizer.model_max_length!r:.50}, which is no number")
    templates = tokenizer.chat_template
    if isinstance(templates, dict):  # each is saved as a file of its name
        _refuse_paths(templates, f"chat templates of '{name}'")
    return tokenizer


def _check_names(config: Mapping[str, Any], file: Path) -> None:
    """Refuse the names of files in ``tokenizer_config.json`` that lead out of its folder."""
    templates = config.get("chat_template")
    named = [entry.get("name") for entry in templates if isinstance(entry, dict)] if isinstance(templates, list) else []
    others = config.get("fast_tokenizer_files")
    own = [config[key] for key in ("tokenizer_file", "vocab_file", "merges_file") if config.get(key) is not None]
    _refuse_paths([*named, *(others if isinstance(others, list) else []), *filter(_is_file, own)], str(file))


def _is_file(path: Any) -> bool:
    """Return whether a value is the path of a file here; published tokenizers name files of other machines."""
    return isinstance(path, str) and is_file(path)


def _refuse_paths(names: Iterable[Any], place: str) -> None:
    for name in names:
        if not is_plain_name(name):
            raise InputError(
                expected=f"names without separators in {place}",
                got=f"{name!r:.100}".encode("ascii", "backslashreplace").decode(),
                remedy="rename it, or download the tokenizer again",
            )


def _no_tokenizer(name: str, error: BaseException) -> InputError:
    return InputError(
        expected=f"tokenizer files in '{name}'",
        got=one_line(error),
        remedy="copy the tokenizer files of the model into its folder",
    )


def load_own_tokenizer(source: ModelSource) -> tuple[Any, list[str]]:
    """Load the tokenizer of a model whose weights are not loaded yet, with the warnings of ``check_vocabulary``.

    Raises:
        InputError: there is none, or it belongs to another model.
    """
    tokenizer = load_tokenizer(source.name)
    return tokenizer, check_vocabulary(source.config.vocab_size, tokenizer)


def check_vocabulary(num_embeddings: int, tokenizer: Any) -> list[str]:
    """Return a warning if tokens of the tokenizer have no row in the model's embedding.

    ``check_token_ids`` refuses the texts in which one occurs.

    Raises:
        InputError: the vocabulary without added tokens is larger than the embedding.
    """
    surplus = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= num_embeddings)
    if not surplus:
        return []
    if tokenizer.vocab_size > num_embeddings:
        raise InputError(
            expected=f"a tokenizer of at most {num_embeddings} tokens, the size of the model's embedding",
            got=f"{tokenizer.vocab_size} tokens",
            remedy="pass the tokenizer that belongs to the model",
        )
    named = ", ".join(token for _, token in surplus[:NAMED_TOKENS])
    more = ", ..." if len(surplus) > NAMED_TOKENS else ""
    return [
        f"the tokenizer has {len(surplus)} tokens that the model has no embedding for ({named}{more}): "
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
