"""A model whose layers stay in their safetensors files and are read one at a time (``--offload``)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hgsp.errors import InputError
from hgsp.families import LAYER_PREFIX
from hgsp.layerwise import Decoder
from hgsp.loading import DTYPES, ModelSource, refuse_own_head, single_device


class SafetensorFiles:
    """Tensors of a checkpoint folder by name, read when asked for. A file is mapped only while a tensor is read."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise InputError(
                expected=f"*.safetensors in {folder}",
                got="none",
                remedy="convert the checkpoint to safetensors, or leave --offload out",
            )
        self._file_of: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                self._file_of.update(dict.fromkeys(tensors.keys(), file))

    @property
    def names(self) -> list[str]:
        return sorted(self._file_of)

    def read(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def read_first_row(self, name: str) -> Tensor:
        """The first row of a matrix, [1, I], without reading the rest."""
        with safe_open(self._file_of[name], framework="pt") as tensors:
            return tensors.get_slice(name)[:1]


class OffloadedLayers:
    """Layers read from safetensors files when they are needed; one is held at a time.

    The model itself can be called too, as for evaluation: every layer then reads its weights before it runs and drops
    them after, so that each call reads the whole model once.
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


def open_offloaded(
    source: ModelSource, dtype: str, device: str | torch.device | None
) -> tuple[Decoder, SafetensorFiles]:
    """A decoder that holds embeddings, final norm and head, and reads one layer at a time from the files.

    Raises:
        InputError: no safetensors, or tensors are missing from them.
    """
    if source.is_gguf:
        raise InputError(
            expected="a safetensors folder or hub id with --offload", got=source.name, remedy="leave --offload out"
        )
    files = SafetensorFiles(_local_folder(source.name))
    model: Any = copy.deepcopy(source.skeleton).to(DTYPES[dtype])
    model.config.dtype = DTYPES[dtype]
    stored, tied = set(files.names), model.config.tie_word_embeddings
    wanted = [name for name in model.state_dict() if name in stored or not (tied and name == "lm_head.weight")]
    missing = sorted(set(wanted) - stored)
    if missing:
        raise InputError(
            expected=f"every weight of '{source.name}' in its safetensors files",
            got=f"{len(missing)} missing, such as {missing[0]}",
            remedy="check that the download is complete",
        )
    on = single_device(device)
    held = {name: files.read(name).to(on, DTYPES[dtype]) for name in wanted if not name.startswith(LAYER_PREFIX)}
    model.load_state_dict(held, strict=False, assign=True)
    if "lm_head.weight" in held:
        refuse_own_head(model)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(on)
    return Decoder(model.eval(), OffloadedLayers(model, files, DTYPES[dtype], on)), files


def _local_folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
