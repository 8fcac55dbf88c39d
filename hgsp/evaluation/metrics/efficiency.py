"""Size, KV cache, multiply-accumulates, latency and memory of models, measured side by side.

B batch | P prompt tokens | D decoded tokens

Latencies are medians over rounds after a warm-up round. Every round times each model once, so that a machine that slows
down slows all of them. Prefill is one forward pass over [B, P] that returns the last position's logits and the KV
cache, decode is D passes over [B, 1] that extend it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from hgsp.console.progress import Progress, silent
from hgsp.models.experts import expert_macs_per_token

BATCH_SIZES = (1, 16)


@dataclass(frozen=True)
class Static:
    """Sizes and counts. Attention MACs per token are ``attention_macs_per_position`` times the context length."""

    parameters: int
    weight_bytes: int
    kv_cache_bytes_per_token: int
    linear_macs_per_token: int
    attention_macs_per_position: int


@dataclass(frozen=True)
class Timing:
    """Median latencies at one batch size, and peak bytes: weights plus the peak of tensors allocated on top.

    ``timing_spread``: median over fastest round, the larger of prefill and decode; near 1 on an idle machine.
    """

    prefill_ms: float
    decode_ms: float
    peak_bytes: int
    timing_spread: float = 1.0


@dataclass(frozen=True)
class Workload:
    """The amount of work that is timed: prompt and decoded tokens, rounds after warm-up."""

    prompt_len: int = 128
    decode_len: int = 16
    repeats: int = 5
    batch_sizes: tuple[int, ...] = BATCH_SIZES

    def within(self, positions: int | None) -> Workload:
        """Return the workload shortened to the positions of a model (None = any number)."""
        if positions is None:
            return self
        decode_len = min(self.decode_len, max(1, positions - 1))
        return replace(self, prompt_len=min(self.prompt_len, max(1, positions - decode_len)), decode_len=decode_len)


@torch.inference_mode()
def static_costs(model: Any) -> Static:
    """Count a causal LM's parameters (tied ones once), bytes, KV cache and multiply-accumulates per token.

    The KV cache is that of a real forward pass. Linear MACs include the head and the experts that a token uses, but not
    the embedding lookup.
    """
    parameters = list(model.parameters())
    num_tokens = 4
    output = model(input_ids=_prompt(model, 1, num_tokens), use_cache=True, logits_to_keep=1)
    kv_bytes = sum(tensor.nbytes for tensor in _cache_tensors(output.past_key_values))
    linear_macs = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    linear_macs += expert_macs_per_token(model)
    return Static(
        parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
        kv_cache_bytes_per_token=kv_bytes // num_tokens,
        linear_macs_per_token=linear_macs,
        attention_macs_per_position=2 * _query_width(model),
    )


def _cache_tensors(cache: Any) -> Iterator[Tensor]:
    """Yield keys and values; layers without attention have an empty entry in the cache, linear attention has none."""
    for layer in cache.layers:
        if getattr(layer, "keys", None) is not None:
            yield layer.keys
            yield layer.values


def _query_width(model: Any) -> int:
    """Sum query heads times head dimension over layers: the MACs of q K^T, and of P V, per context token."""
    return sum(module.in_features for name, module in model.named_modules() if name.endswith("self_attn.o_proj"))


@torch.inference_mode()
def measure_timings(
    models: Mapping[str, Any], workload: Workload, progress: Progress = silent
) -> dict[str, dict[int, Timing]]:
    """Return name -> batch size -> medians, models taking turns. All must be on the same device."""
    timings: dict[str, dict[int, Timing]] = {name: {} for name in models}
    for batch_size in workload.batch_sizes:
        rounds: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in models}
        for _ in progress(range(workload.repeats + 1), f"efficiency, batch {batch_size}", workload.repeats + 1):
            for name, model in models.items():
                rounds[name].append(_timed_round(model, batch_size, workload))
        for name, model in models.items():
            prefills = [prefill for prefill, _ in rounds[name][1:]]
            steps = [step for _, taken in rounds[name][1:] for step in taken]
            timings[name][batch_size] = Timing(
                prefill_ms=statistics.median(prefills),
                decode_ms=statistics.median(steps),
                peak_bytes=peak_bytes(model, batch_size, workload),
                timing_spread=max(statistics.median(times) / min(times) for times in (prefills, steps)),
            )
    return timings


def _timed_round(model: Any, batch_size: int, workload: Workload) -> tuple[float, list[float]]:
    """Return the latency of prefill and of every decode step in milliseconds."""
    clock = _Clock(model.device)
    output = model(input_ids=_prompt(model, batch_size, workload.prompt_len), use_cache=True, logits_to_keep=1)
    prefill, steps = clock.lap_ms(), []
    for _ in range(workload.decode_len):
        output = _decode_step(model, output)
        steps.append(clock.lap_ms())
    return prefill, steps


def _decode_step(model: Any, output: Any) -> Any:
    token = output.logits[:, -1:].argmax(-1)
    return model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)


def _prompt(model: Any, batch_size: int, num_tokens: int) -> Tensor:
    """Return the same random ids [B, P] for every model."""
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, num_tokens)
    return torch.randint(0, model.config.vocab_size, size, generator=generator).to(model.device)


class _Clock:
    """Wall time between laps, with the device synchronized."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    def lap_ms(self) -> float:
        """Return the milliseconds since the last lap."""
        now = self._now()
        lap, self._last = 1000 * (now - self._last), now
        return lap


@torch.inference_mode()
def peak_bytes(model: Any, batch_size: int, workload: Workload) -> int:
    """Return the bytes of weights plus the peak that prefill and decode allocate on top of them."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    with _allocations(model.device) as peak:
        output = model(input_ids=_prompt(model, batch_size, workload.prompt_len), use_cache=True, logits_to_keep=1)
        for _ in range(min(workload.decode_len, 4)):
            output = _decode_step(model, output)
    return weights + peak[0]


@contextmanager
def _allocations(device: torch.device) -> Iterator[list[int]]:
    """Yield a list that gets the peak of bytes allocated within the block on exit."""
    peak: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device) - before)
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # kineto logs start and stop to stderr otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield peak
    held = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    peak.append(most)
