"""The checkpoint format: a Hugging Face folder, and the same model in one ``pruned_model.bin``.

The folder holds safetensors with stock tensor names, ``config.json`` (``per_layer_config`` where layers differ, and
then the files of its classes beside it), generation config and tokenizer files. The .bin holds tensors and plain
values.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from transformers.utils import CHAT_TEMPLATE_DIR, SAFE_WEIGHTS_INDEX_NAME

from hgsp.models.buffers import make_buffers
from hgsp.models.carried_files import load_tokenizer_in_bin, write_generation_config, write_tokenizer
from hgsp.models.configs import ModelDescription, describe, read_generation_config
from hgsp.models.expert_files import PartReader
from hgsp.models.expert_parts import StoredPart, stored_parts
from hgsp.models.families import experts_of, family_of, is_pruned_type
from hgsp.models.family_classes import auto_map, travelling_files
from hgsp.models.gguf_files import load_gguf
from hgsp.models.infinite_settings import with_named_infinities
from hgsp.models.loading import load_complete
from hgsp.models.places import is_bin, is_gguf
from hgsp.models.pruned_bin import BIN_FORMAT, BIN_NAME, read_bin
from hgsp.models.stored_tensors import StoredTensor, refuse_other_tensors, stored_dtype
from hgsp.models.tokenizers import load_tokenizer
from hgsp.models.weight_checks import refuse_adapter, refuse_not_finite

DEFAULT_SHARD_BYTES = 5 * 10**9


def save_pruned(model: Any, tokenizer: Any, folder: Path, *, with_bin: bool = True) -> None:
    """Write model, config, generation config and tokenizer into an existing folder."""
    state = model.state_dict()
    save_streamed(model, state.__getitem__, tokenizer, folder, model.generation_config)
    if with_bin:
        torch.save(_bin_content(folder, _stored_tensors(model)), folder / BIN_NAME)


def save_streamed(
    skeleton: Any,
    read: Callable[[str], Tensor],
    tokenizer: Any,
    folder: Path,
    generation_config: Any,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a model that is not in memory, one file of weights at a time.

    Args:
        skeleton: the model's names, shapes and config; its tensors may be on the meta device.
        read: returns a tensor by name, in the dtype it is stored in.
        max_shard_bytes: size limit of a file; a larger tensor gets a file of its own.
    """
    tensors, names = _stored_tensors(skeleton), experts_of(skeleton.config)
    parts = {name: StoredPart(name) for name in tensors} if names is None else stored_parts(tensors, names)
    read = PartReader(parts, read)
    split = split_state_dict_into_shards_factory(
        {name: part.of(tensors[part.parameter]) for name, part in parts.items()},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    (folder / "config.json").write_text(
        json.dumps(config_as_dict(skeleton.config), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    for file, stored in split.filename_to_tensors.items():
        save_file({name: read(name).contiguous() for name in stored}, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # safetensors ignores the umask
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")
    if is_pruned_type(skeleton.config.model_type):
        for file in travelling_files(family_of(skeleton.config)):
            shutil.copyfile(file, folder / file.name)
    if generation_config is not None:
        write_generation_config(generation_config, tokenizer, folder)
    write_tokenizer(tokenizer, folder)


def config_as_dict(config: Any) -> dict[str, Any]:
    """Return ``config.json``: with ``auto_map`` if the class is ours, else with rope settings for transformers 4 too.

    Our own class reads ``rope_parameters`` in every version. Beside it the old keys would be fatal: ``AutoTokenizer``
    of transformers 5 without ``hgsp`` reads a llama3 ``rope_scaling`` into a bare config, which fails.
    """
    content: dict[str, Any] = with_named_infinities(config.to_diff_dict())
    rope = content.get("rope_parameters")
    if is_pruned_type(config.model_type):
        content["auto_map"] = auto_map(family_of(config))
    elif rope and "rope_theta" in rope:  # else by layer type, which transformers 4 has other keys for
        content["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        content["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else scaling
    return content


def save_bin_streamed(skeleton: Any, read: Callable[[str], Tensor], folder: Path) -> None:
    """Write ``pruned_model.bin`` one tensor at a time: first its structure with space for the data, then the data.

    Args:
        skeleton, read: as for ``save_streamed``.
        folder: a folder that ``save_streamed`` has written.
    """
    stored, path = _stored_tensors(skeleton), folder / BIN_NAME
    with FakeTensorMode():
        room = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in stored.items()}
    content = _bin_content(folder, room)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(content, path)
    reader: Any = torch._C.PyTorchFileReader(str(path))
    with path.open("r+b") as sink:
        for number, (name, place) in enumerate([*content["tokenizer_files"].items(), *room.items()]):
            tensor = read(name) if name in room else place
            assert (tensor.shape, tensor.dtype) == (place.shape, place.dtype)
            sink.seek(reader.get_record_offset(f"data/{number}"))  # records are numbered as tensors were pickled
            sink.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def _bin_content(folder: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the content of ``pruned_model.bin``: config, generation config, tokenizer files and tensors."""
    tokenizer_files = [
        path
        for path in sorted([*folder.iterdir(), *(folder / CHAT_TEMPLATE_DIR).glob("*")])
        if path.is_file() and path.suffix not in (".safetensors", ".bin", ".py") and path.name not in _MODEL_FILES
    ]
    generation_config = folder / "generation_config.json"
    return {
        "format": BIN_FORMAT,
        "config": (folder / "config.json").read_text(encoding="utf-8"),
        "generation_config": generation_config.read_text(encoding="utf-8") if generation_config.exists() else None,
        "tokenizer_files": {
            path.relative_to(folder).as_posix(): torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            for path in tokenizer_files
        },
        "state_dict": dict(state),
    }


_MODEL_FILES = {"config.json", "generation_config.json", SAFE_WEIGHTS_INDEX_NAME}


def load_pruned(path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Any:
    """Load a model from ``pruned_model.bin``, its folder, a .gguf file, or any Hugging Face folder or hub id.

    Args:
        dtype: None keeps the stored one.

    Returns:
        The model in eval mode.

    Raises:
        InputError: no model, weights that are missing or not finite, or a .bin that holds more than tensors and plain
            values.
    """
    refuse_adapter(path, ask_hub=True)
    found = describe(path)
    if is_bin(path):
        return _load_bin(Path(path), found, dtype).to(device).eval()
    dtype = dtype or stored_dtype(path, found.config.dtype)
    if is_gguf(path):
        return load_gguf(Path(path), dtype).to(device)
    return load_complete(path, found.config, found.skeleton, dtype=dtype).to(device).eval()


def _load_bin(path: Path, found: ModelDescription, dtype: torch.dtype | None) -> Any:
    config, state = found.config, read_bin(path)["state_dict"]
    stored = {name: StoredTensor(path, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    refuse_other_tensors(path, found.skeleton, stored)
    refuse_not_finite(f"'{path}'", state.items())
    if dtype is not None:
        config.dtype = dtype
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.load_state_dict(state, assign=True, strict=False)
    model.tie_weights()
    make_buffers(model, "cpu")
    generation_config = read_generation_config(path)
    if generation_config is not None:
        model.generation_config = generation_config
    return model


def config_of(path: str | Path) -> Any:
    """Return the config of the model that ``load_pruned`` would load, without its weights.

    Raises:
        InputError: no model, an adapter, or a config that cannot become a model.
    """
    return describe(path).config


def load_tokenizer_of(path: str | Path) -> Any:
    """Load the tokenizer saved with a model; ``path`` is as for ``load_pruned``.

    Raises:
        InputError: there is none.
    """
    return load_tokenizer_in_bin(Path(path)) if is_bin(path) else load_tokenizer(str(path))


def _stored_tensors(model: Any) -> dict[str, Tensor]:
    """Return all tensors in order by name, without a head that is tied to the embedding."""
    tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}
