"""A model whose layers stay in their safetensors files and are read one at a time (``--offload``)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hgsp.errors import InputError
from hgsp.models.buffers import make_buffers
from hgsp.models.decoder import Decoder
from hgsp.models.expert_files import ExpertFiles
from hgsp.models.families import LAYER_PREFIX, family_of
from hgsp.models.hub import with_revision
from hgsp.models.loading import DTYPES, ModelSource, single_device
from hgsp.models.safetensor_files import SafetensorFiles
from hgsp.models.weight_checks import refuse_own_head, refuse_unplaced_weights
from hgsp.models.weight_files import shards_of


class OffloadedLayers:
    """Layers that are read from safetensors files when they are needed; one is in memory at a time.

    The model itself can be called too, as for evaluation: every layer then reads its weights before its forward and
    frees them after it, so that each call reads the whole model once.
    """

    def __init__(self, model: Any, files: SafetensorFiles, dtype: torch.dtype, device: torch.device) -> None:
        self._layers = model.model.layers
        self._files, self._dtype, self._device = files, dtype, device
        self._in_use: int | None = None
        for index, module in enumerate(self._layers):
            module.register_forward_pre_hook(lambda _module, _args, index=index: self._enter_call(index))
            module.register_forward_hook(lambda _module, _args, _out, index=index: self._leave_call(index))

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        self._in_use = index
        self._read_layer(index)
        try:
            yield self._layers[index]
        finally:
            self._in_use = None
            self._layers[index].to("meta")

    def _enter_call(self, index: int) -> None:
        if index != self._in_use:
            self._read_layer(index)

    def _leave_call(self, index: int) -> None:
        if index != self._in_use:
            self._layers[index].to("meta")

    def _read_layer(self, index: int) -> None:
        module = self._layers[index]
        prefix = f"{LAYER_PREFIX}{index}."
        module.load_state_dict({name: self._read(prefix + name) for name in module.state_dict()}, assign=True)
        module.requires_grad_(False)

    def _read(self, name: str) -> Tensor:
        return self._files.read(name).to(self._device, self._dtype)


def load_offloaded(
    source: ModelSource, dtype: str, device: str | torch.device | None
) -> tuple[Decoder, SafetensorFiles]:
    """Load embeddings, final norm and head, and leave the layers in the files.

    Raises:
        InputError: a .gguf file, no safetensors, or tensors that are missing, of the wrong shape, or without a
            parameter in the model.
    """
    if source.is_gguf:
        raise InputError(
            expected="a safetensors folder or hub id with --offload", got=source.name, remedy="leave --offload out"
        )
    files = _files_of(source)
    model: Any = copy.deepcopy(source.skeleton).to(DTYPES[dtype])
    model.config.dtype = DTYPES[dtype]
    on = single_device(device)
    held = {
        name: files.read(name).to(on, DTYPES[dtype])
        for name in _stored_names(source.name, model, files)
        if not name.startswith(LAYER_PREFIX)
    }
    model.load_state_dict(held, strict=False, assign=True)
    if "lm_head.weight" in held:
        refuse_own_head(model)
    model.tie_weights()
    with suppress(OSError):  # without the file, the skeleton's is made from the config
        plain, revision = with_revision(source.name)
        model.generation_config = GenerationConfig.from_pretrained(plain, **revision)
    make_buffers(model, on)
    return Decoder(model.eval(), OffloadedLayers(model, files, DTYPES[dtype], on)), files


def _files_of(source: ModelSource) -> SafetensorFiles:
    """Return the tensors of a model folder by their names in the model."""
    folder, names = _local_folder(source.name), family_of(source.config).experts
    return SafetensorFiles(folder) if names is None else ExpertFiles(folder, names)


def _stored_names(source_name: str, model: Any, files: SafetensorFiles) -> list[str]:
    """Return the names of the model's tensors in the files; a tied head need not be there.

    Raises:
        InputError: tensors that are missing, of the wrong shape, or without a parameter in the model.
    """
    tied = model.config.tie_word_embeddings
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name in files.shapes or not (tied and name == "lm_head.weight")
    }
    missing = sorted(wanted.keys() - files.shapes.keys())
    wrong = [name for name, shape in wanted.items() if files.shapes.get(name, shape) != shape]
    if missing or wrong:
        raise InputError(
            expected=f"every weight of '{source_name}' in its safetensors files, of the shape that config.json says",
            got=f"{len(missing)} missing, such as {missing[0]}" if missing else f"another shape of {wrong[0]}",
            remedy="check that the download is complete; config.json and the weights belong together",
        )
    refuse_unplaced_weights(source_name, files.shapes.keys() - wanted.keys(), model.config)
    return list(wanted)


def _local_folder(name: str) -> Path:
    """Return the folder with the model's files; from the hub, only those that are read are downloaded."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    plain, revision = with_revision(name)
    patterns = [SAFE_WEIGHTS_INDEX_NAME]
    index = Path(snapshot_download(plain, allow_patterns=patterns, **revision)) / SAFE_WEIGHTS_INDEX_NAME
    shards = shards_of(index) if index.is_file() else []
    return Path(snapshot_download(plain, allow_patterns=[SAFE_WEIGHTS_NAME, *shards], **revision))
