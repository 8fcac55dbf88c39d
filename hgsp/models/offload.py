"""A model whose layers stay in their safetensors files and are read one at a time (``--offload``)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hgsp.errors import InputError
from hgsp.models.buffers import make_buffers
from hgsp.models.configs import read_generation_config
from hgsp.models.decoder import Decoder
from hgsp.models.families import LAYER_PREFIX
from hgsp.models.loading import DTYPES, ModelSource, single_device
from hgsp.models.model_files import files_of
from hgsp.models.mxfp4 import forget_quantisation
from hgsp.models.safetensor_files import SafetensorFiles
from hgsp.models.stored_tensors import refuse_other_tensors
from hgsp.models.weight_checks import refuse_own_head
from hgsp.models.weight_files import weights_folder


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
    files = files_of(weights_folder(source.name), source.skeleton)
    model: Any = copy.deepcopy(source.skeleton).to(DTYPES[dtype])
    model.config.dtype = DTYPES[dtype]
    on = single_device(device)
    held = {
        name: files.read(name).to(on, DTYPES[dtype])
        for name in refuse_other_tensors(source.name, model, files.tensors)
        if not name.startswith(LAYER_PREFIX)
    }
    forget_quantisation(model.config)  # files give plain weights
    model.load_state_dict(held, strict=False, assign=True)
    if "lm_head.weight" in held:
        refuse_own_head(model)
    model.tie_weights()
    generation_config = read_generation_config(source.name)
    if generation_config is not None:  # else the skeleton's, made from the config
        model.generation_config = generation_config
    make_buffers(model, on)
    return Decoder(model.eval(), OffloadedLayers(model, files, DTYPES[dtype], on)), files
