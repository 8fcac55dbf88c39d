"""A Hugging Face folder: weights in shards, config, and the checkpoint's tokenizer files as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from transformers.utils import CHAT_TEMPLATE_DIR, SAFE_WEIGHTS_INDEX_NAME

from hgsp.console.disk import check_free_space
from hgsp.errors import InputError
from hgsp.exports.inventory import Tensors, num_params
from hgsp.exports.source import ExportSource
from hgsp.models.checkpoint import DEFAULT_SHARD_BYTES
from hgsp.models.infinite_settings import with_named_infinities

#: Files of which a tokenizer needs one.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_TOKENIZER_FILES = (
    *_VOCABULARIES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
)


def check_tokenizer(source: ExportSource) -> None:
    """Refuse a checkpoint without a tokenizer, which no engine serves.

    Raises:
        InputError: it has none.
    """
    if not any((source.folder / name).is_file() for name in _VOCABULARIES):
        raise InputError(
            expected=f"tokenizer files in {source.folder} ({' or '.join(_VOCABULARIES)})",
            got="none",
            remedy="copy the tokenizer files of the dense model into that folder",
        )


def write_folder(
    folder: Path,
    source: ExportSource,
    tensors: Tensors,
    config: Mapping[str, Any],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> tuple[Path, ...]:
    """Write an export, one file of weights at a time, and return its files relative to the folder.

    Raises:
        InputError: the disk is too full.
    """
    dtype = source.dtype
    needed = num_params(tensors) * dtype.itemsize
    check_free_space(folder, needed, "the weights", "choose another place with --output")
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.numel * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].build(source.read, dtype) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")
    (folder / "config.json").write_text(
        json.dumps(with_named_infinities(config), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    for name in _TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    if (source.folder / CHAT_TEMPLATE_DIR).is_dir():
        shutil.copytree(source.folder / CHAT_TEMPLATE_DIR, folder / CHAT_TEMPLATE_DIR)
    return tuple(sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()))


def shared_settings(source: ExportSource) -> dict[str, Any]:
    """Return the keys of ``config.json`` that every Llama-like architecture shares, without sizes of layers.

    The rope settings are written for transformers 4 (``rope_theta``, ``rope_scaling``) and 5 (``rope_parameters``).
    """
    rope = dict(source.rope)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    kept = ("vocab_size", "hidden_size", "max_position_embeddings", "rms_norm_eps", "initializer_range")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        **{key: source.config[key] for key in (*kept, *tokens) if key in source.config},
        "dtype": str(source.dtype).removeprefix("torch."),
        "head_dim": source.head_dim,
        "hidden_act": source.config.get("hidden_act", "silu"),
        "num_hidden_layers": len(source.shapes),
        "tie_word_embeddings": source.ties_embeddings,
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
    }
