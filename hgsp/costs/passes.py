"""Timed passes of a model with random weights and a size per layer: seconds of every block and of the rest.

The blocks run inside the real forward of the family, so that masks, rotary tables, the KV cache and Python count as
they do in the pruned model.

L layers | B batch | T tokens | K kv groups | D head dim
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hgsp.costs.latency import Floats, Workload
from hgsp.costs.names import DECODE
from hgsp.models.families import family_of
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.models.layer_sizes import architecture_settings, sizes_per_layer
from hgsp.models.loading import DTYPES

#: Clock -> seconds on a CPU.
_CPU_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of one pass: of every block (attention, MLP), float64 [L, 2], and of everything outside the layers."""

    blocks: Floats
    rest: float

    @property
    def total(self) -> float:
        return self.rest + float(self.blocks.sum())


def random_model(config: Any, geometry: Geometry, shapes: Sequence[LayerShape], dtype: str, device: str) -> Any:
    """Build a model of the config's family with random weights and layers of these shapes, in eval mode.

    Layers without blocks are left out.
    """
    shapes = [shape for shape in shapes if shape != LayerShape(0, 0)]
    settings, family = architecture_settings(config), family_of(config)
    settings |= {
        "num_hidden_layers": len(shapes),
        "head_dim": geometry.head_dim,
        "per_layer_config": sizes_per_layer(shapes, geometry.queries_per_kv, family.width),
    }
    if settings.get("layer_types"):
        settings["layer_types"] = settings["layer_types"][:1] * len(shapes)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family.pruned_model_type, **settings), dtype=DTYPES[dtype]
        )
    return model.eval()  # frozen weights would take other kernels than those of a loaded model


class TimedPasses:
    """Passes of one workload through a model whose layers all have both blocks.

    Args:
        model: of ``random_model``.
        clock: a key of ``CLOCKS``; other devices than the CPU have their own.
    """

    def __init__(self, model: Any, workload: Workload, clock: str) -> None:
        self._model, self._clock = model, clock
        self._cache = None
        num_tokens = workload.context_length
        if workload.phase == DECODE:
            self._cache, num_tokens = _filled_cache(model, workload), 1
        size = (workload.batch_size, num_tokens)
        self._input_ids = torch.randint(model.config.vocab_size, size, device=model.device)

    @torch.inference_mode()
    def run(self) -> float:
        """Run one pass and return its seconds."""
        first, last = self._run()
        return _seconds_between([first, last])[0]

    @torch.inference_mode()
    def run_blocks(self) -> PassSeconds:
        """Run one pass and return the seconds of its parts."""
        with self._marks() as marks:
            first, last = self._run()
        steps = _seconds_between([first, *marks, last])
        return PassSeconds(np.array(steps[1:-1]).reshape(-1, 2), steps[0] + steps[-1])

    def _run(self) -> tuple[Any, Any]:
        device, cache = self._model.device, self._cache
        held = [] if cache is None else [(layer.keys, layer.values) for layer in cache.layers]
        first = _mark(device, self._clock)
        self._model(self._input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        last = _mark(device, self._clock)
        for layer, (keys, values) in zip(cache.layers if cache else (), held, strict=True):
            layer.keys, layer.values = keys, values
        return first, last

    @contextmanager
    def _marks(self) -> Iterator[list[Any]]:
        """Yield a list that gets a mark where each block starts and where the last one ends."""
        marks: list[Any] = []
        device, clock = self._model.device, self._clock
        family = family_of(self._model.config)
        entries = [
            layer.get_submodule(block.entry) for layer in self._model.model.layers for block in family.blocks.values()
        ]
        handles = [
            entry.register_forward_pre_hook(lambda *_: marks.append(_mark(device, clock)))
            for entry in (*entries, self._model.get_submodule(family.final_norm))
        ]
        try:
            yield marks
        finally:
            for handle in handles:
                handle.remove()


def _filled_cache(model: Any, workload: Workload) -> Any:
    """Return a KV cache [B, K, T, D] per layer with random content."""
    cache = DynamicCache()
    attentions = [layer.self_attn for layer in model.model.layers if layer.self_attn is not None]
    for index, attention in enumerate(attentions):
        num_groups = attention.k_proj.out_features // attention.head_dim
        size = (workload.batch_size, num_groups, workload.context_length, attention.head_dim)
        cache.update(*(torch.randn(size, dtype=model.dtype, device=model.device) for _ in range(2)), index)
    return cache


def _mark(device: torch.device, clock: str) -> Any:
    """Return the time on a CPU, else an event that the device reaches in its order of work."""
    if device.type == "cpu":
        return _CPU_CLOCKS[clock]()
    event = torch.Event(device, enable_timing=True)
    event.record()
    return event


def _seconds_between(marks: Sequence[Any]) -> list[float]:
    pairs = list(pairwise(marks))
    if isinstance(marks[0], float):
        return [end - start for start, end in pairs]
    marks[-1].synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairs]
