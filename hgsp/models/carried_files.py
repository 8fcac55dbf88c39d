"""Files that pruning does not change: tokenizer and generation config, carried over byte for byte.

The tokenizer knows what it was loaded from. A tokenizer or generation config that no longer equals its file is written
by transformers instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import CHAT_TEMPLATE_DIR

from hgsp.console.scratch import ScratchFolder
from hgsp.errors import InputError
from hgsp.models.hub import with_revision
from hgsp.models.places import HUB_ID, is_bin
from hgsp.models.pruned_bin import read_bin
from hgsp.models.tokenizers import TOKENIZER_FILES, load_tokenizer, read_tokenizer

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
#: Where the loader of transformers 5 found a tokenizer, which it saves as if it were a setting.
_LOADER_KEYS = ("is_local", "local_files_only")
#: Classes of transformers 5 alone -> their name in both versions.
_NAMES_IN_BOTH = {"TokenizersBackend": "PreTrainedTokenizerFast"}
_PROBE = "Hello  world, it's 12345!\n\n\tDef f(x): Ünïcødé 你好 🙂 "


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer beside ``config.json``: the very files it was loaded from, unless it has been changed since.

    It has if transformers saves it differently from one loaded afresh. Such a tokenizer, one from a .gguf file, and one
    whose source is gone are written by ``save_pretrained``. ``tokenizer_config.json`` alone is edited, where
    transformers 4 or 5 could not read it or would read other token ids from this folder.
    """
    files = {name: content for name, content in _source_files(tokenizer).items() if name != GENERATION_CONFIG}
    if TOKENIZER_CONFIG in files and _unchanged(tokenizer):
        write_files(files, folder)
    else:
        _save(tokenizer, folder)
        _edit_tokenizer_config(folder, {})
    _make_readable(folder, tokenizer)


def write_generation_config(generation_config: Any, tokenizer: Any, folder: Path) -> None:
    """Write ``generation_config.json``: the file beside the tokenizer's source if it says the same."""
    stored = _source_files(tokenizer).get(GENERATION_CONFIG)
    if stored is not None and _settings(GenerationConfig.from_dict(json.loads(stored))) == _settings(generation_config):
        (folder / GENERATION_CONFIG).write_bytes(stored)
    else:
        # save_pretrained would refuse the settings of some published models, such as a temperature without sampling
        generation_config.to_json_file(folder / GENERATION_CONFIG)


def load_tokenizer_in_bin(path: Path) -> Any:
    """Load the tokenizer in a ``pruned_model.bin``.

    Raises:
        InputError: no such file, or one that holds more than tensors and plain values.
    """
    content = read_bin(path)
    with ScratchFolder() as folder:
        write_files(_files_in_bin(content), folder)
        (folder / "config.json").write_text(content["config"], encoding="utf-8")
        tokenizer = read_tokenizer(str(folder), str(path))
    tokenizer.name_or_path = str(path)
    return tokenizer


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files by name into ``folder`` and its folder of chat templates, whatever other place a name claims."""
    for name, content in files.items():
        own = CHAT_TEMPLATE_DIR if Path(name).parent == Path(CHAT_TEMPLATE_DIR) else ""
        (folder / own).mkdir(exist_ok=True)
        (folder / own / Path(name).name).write_bytes(content)


def _source_files(tokenizer: Any) -> dict[str, bytes]:
    """Return tokenizer files and generation config that the tokenizer was loaded with; none if they are gone."""
    name = str(getattr(tokenizer, "name_or_path", ""))
    if is_bin(name):
        content = read_bin(Path(name))
        stored = content["generation_config"]
        return _files_in_bin(content) | ({} if stored is None else {GENERATION_CONFIG: stored.encode()})
    folder = Path(name)
    if name and not folder.exists() and HUB_ID.fullmatch(name):
        try:
            plain, revision = with_revision(name)
            folder = Path(snapshot_download(plain, local_files_only=True, **revision))
        except OSError:
            return {}
    found = [path for pattern in (*TOKENIZER_FILES, GENERATION_CONFIG) for path in folder.glob(pattern)] if name else []
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def _files_in_bin(content: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in content["tokenizer_files"].items()}


def _unchanged(tokenizer: Any) -> bool:
    """Return whether a tokenizer is the one that loading it again gives."""
    name = str(tokenizer.name_or_path)
    try:
        again = load_tokenizer_in_bin(Path(name)) if is_bin(name) else load_tokenizer(name)
    except InputError:
        return False
    return _saved(again) == _saved(tokenizer)


def _saved(tokenizer: Any) -> dict[str, bytes]:
    with ScratchFolder() as folder:
        _save(tokenizer, folder)
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _save(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer without the padding and truncation of its last batch, which transformers would save too."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tokenizer.save_pretrained(folder)
        return
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    tokenizer.save_pretrained(folder)
    if padding is not None:
        backend.enable_padding(**padding)
    if truncation is not None:
        backend.enable_truncation(**truncation)


def _make_readable(folder: Path, tokenizer: Any) -> None:
    """Edit ``tokenizer_config.json`` where transformers 4 or 5 could not read it, or would read other token ids.

    Without a class, both look for one in ``config.json`` and ask about its custom code. Transformers 4 fails for a list
    of ``extra_special_tokens``, which it calls ``additional_special_tokens``.
    """
    path = folder / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    edits: dict[str, Any] = {}
    own_class = _NAMES_IN_BOTH.get(type(tokenizer).__name__, type(tokenizer).__name__)
    named = config.get("tokenizer_class")
    if named in (None, *_NAMES_IN_BOTH) or (
        named not in (own_class, f"{own_class}Fast") and not _same_ids(folder, tokenizer)
    ):
        edits["tokenizer_class"] = own_class
    if isinstance(config.get("extra_special_tokens"), list):
        edits |= {"additional_special_tokens": config["extra_special_tokens"], "extra_special_tokens": None}
    if edits:
        _edit_tokenizer_config(folder, edits)


def _edit_tokenizer_config(folder: Path, edits: Mapping[str, Any]) -> None:
    """Set keys, remove those set to None, and remove what the loader left."""
    path = folder / TOKENIZER_CONFIG
    config: dict[str, Any] = {**(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}), **edits}
    removed = {*_LOADER_KEYS, *(key for key, value in edits.items() if value is None)}
    kept = {key: value for key, value in config.items() if key not in removed}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _same_ids(folder: Path, tokenizer: Any) -> bool:
    """Return whether the folder's tokenizer reads a text of many kinds as the given one does."""
    read = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    probe = _PROBE + "".join(tokenizer.all_special_tokens)
    return len(read) == len(tokenizer) and read(probe)["input_ids"] == tokenizer(probe)["input_ids"]


def _settings(generation_config: Any) -> dict[str, Any]:
    return {key: value for key, value in generation_config.to_dict().items() if key not in _NO_SETTINGS}


#: Entries of a generation config that say who wrote it.
_NO_SETTINGS = ("transformers_version", "_from_model_config", "_commit_hash")
