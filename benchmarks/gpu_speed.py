#!/usr/bin/env python3
"""Speed of LLaMA-3-8B's shape, dense and pruned with widths in several multiples, on one GPU. Started by gpu_speed.sh.

Weights are random. All models are in memory and take turns; where that needs too much, all have fewer layers. Prompts
run eagerly, tokens are decoded with a static cache and ``torch.compile``, or eagerly where that does not work. The
least seconds of all rounds count, and a speed is the dense model's seconds over the model's. Results are written after
every batch size.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import provenance
from shapes import config_of
from transformers import AutoModelForCausalLM, StaticCache

from hgsp.console.exit_codes import quiet_libraries
from hgsp.costs.passes import random_model
from hgsp.models.geometry import Geometry, LayerShape, geometry_of

MULTIPLES = (1, 64, 128, 256)
RATIO = 0.2
#: Share of the free memory that all models together may take.
MEMORY = 0.7
#: Bytes of a parameter in bfloat16.
BYTES = 2
TINY = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt_len", type=int, default=512)
    parser.add_argument("--decode_len", type=int, default=32)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=8, help="fewer are run where --minutes are over")
    parser.add_argument("--minutes", type=float, default=9.0, help="after these, no round and no batch size begins")
    parser.add_argument("--no_compile", action="store_true", help="decode eagerly")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to check this script on a CPU")
    parser.add_argument("--output", type=Path, required=True, help="JSON; a table goes beside it as Markdown")
    options = parser.parse_args()
    started = time.monotonic()
    quiet_libraries()
    config = config_of("LLaMA-3-8B", **(TINY if options.tiny else {}))
    if options.device == "cpu" and not options.tiny:
        parser.error("no GPU was found: name one with --device, or check this script with --tiny")
    num_layers = fitting_layers(config, options.device)
    if not num_layers:
        parser.error("not even one layer of every model fits into the free memory of the GPU")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.touch()  # what cannot be written fails now
    result = provenance() | {"device": device_name(options.device), "num_layers": num_layers}
    say(started, f"{result['device']}: {num_layers} of {config.num_hidden_layers} layers fit")
    config.num_hidden_layers = num_layers
    result |= {"prompt_len": options.prompt_len, "compiled": not options.no_compile and compiles(options, started)}
    models = build(config, options.device, started)
    result |= {"params": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}}
    result["rows"] = rows = []
    for batch_size in options.batch_sizes:
        if rows and time.monotonic() - started > 30 * options.minutes:
            say(started, f"batch {batch_size} is left out: more than half of --minutes {options.minutes:g} are over")
            break
        try:
            rows += measure(models, batch_size, options, started, compiled=result["compiled"])
        except torch.OutOfMemoryError:
            say(started, f"batch {batch_size} is left out: it does not fit into the memory of the GPU")
            break
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(text(result), encoding="utf-8")
    if not rows:
        sys.exit("error: nothing was measured; try a smaller --prompt_len")
    print(text(result))


def say(started: float, line: str) -> None:
    print(f"{time.monotonic() - started:5.0f} s  {line}", file=sys.stderr, flush=True)


def fitting_layers(config: Any, device: str) -> int:
    """Return the most layers of which all models fit into the memory of the GPU; all of them on a CPU."""
    if not device.startswith("cuda"):
        return int(config.num_hidden_layers)
    free, _ = torch.cuda.mem_get_info(device)
    hidden = config.hidden_size
    layer = hidden * (2 * hidden + 2 * config.num_key_value_heads * config.head_dim + 3 * config.intermediate_size)
    embeddings = 2 * config.vocab_size * hidden
    fitting = (MEMORY * free / (1 + len(MULTIPLES)) / BYTES - embeddings) / layer
    return max(0, min(config.num_hidden_layers, int(fitting)))


def compiles(options: argparse.Namespace, started: float) -> bool:
    """Return whether a small model of the same classes can be compiled here; if not, say why."""
    config = config_of("LLaMA-3-8B", **TINY)
    try:
        (model,) = list(build(config, options.device, None, multiples=()).values())
        decode_of(model, torch.zeros(1, 4, dtype=torch.long, device=options.device), 2, compiled=True)()
    except (RuntimeError, ImportError, OSError) as error:  # no Triton, no compiler of C, or a graph that breaks
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        say(started, f"tokens are decoded eagerly, for torch.compile does not work here: {reason[:200]}")
        return False
    say(started, "torch.compile works")
    return True


def build(config: Any, device: str, started: float | None, multiples: Sequence[int] = MULTIPLES) -> dict[str, Any]:
    """Return the dense model and one pruned model for each multiple, with random weights."""
    with torch.device("meta"):
        geometry = geometry_of(AutoModelForCausalLM.from_config(config))
    plans = {"dense": geometry.shapes, **{f"multiples of {n}": pruned_shapes(geometry, n) for n in multiples}}
    models = {}
    for name, shapes in plans.items():
        models[name] = random_model(config, geometry, shapes, "bfloat16", device)
        if started is not None:
            say(started, f"built {name}")
    return models


def pruned_shapes(geometry: Geometry, multiple: int) -> tuple[LayerShape, ...]:
    """Return shapes with a width of its own per layer and the same parameters for every multiple, to one block."""
    generator = random.Random(0)
    dense = geometry.shapes[0]
    wanted = (1 - RATIO) * geometry.decoder_params
    shares = [generator.uniform(0.8, 1.2) for _ in geometry.shapes]
    num_kv = max(1, round(dense.num_kv_groups * (1 - RATIO)))

    def shapes(scale: float) -> tuple[LayerShape, ...]:
        widths = (
            min(dense.mlp_width, round(scale * share * dense.mlp_width / multiple) * multiple) for share in shares
        )
        return tuple(LayerShape(num_kv, max(width, multiple)) for width in widths)

    scales = (step / 2000 for step in range(600, 2400))
    return min(map(shapes, scales), key=lambda found: abs(sum(map(geometry.layer_params, found)) - wanted))


@torch.no_grad()
def measure(
    models: dict[str, Any], batch_size: int, options: argparse.Namespace, started: float, *, compiled: bool
) -> list[dict[str, Any]]:
    """Return the least seconds of prefill and of one decoded token, per model."""
    torch.compiler.reset()  # compiled code of other batch sizes counts towards a limit
    runs: dict[tuple[str, str], Callable[[], float]] = {}
    for name, model in models.items():
        ids = torch.randint(model.config.vocab_size, (batch_size, options.prompt_len), device=model.device)
        runs["prefill", name] = prefill_of(model, ids)
        runs["decode", name] = decode_of(model, ids, options.decode_len, compiled=compiled)
    for (phase, name), run in runs.items():
        run()  # the first one compiles
        say(started, f"batch {batch_size}: {phase} of {name} runs")
    least: dict[tuple[str, str], float] = {}
    for number in range(options.rounds):
        if number and time.monotonic() - started > 60 * options.minutes:
            say(started, f"batch {batch_size}: {number} of {options.rounds} rounds, for --minutes are over")
            break
        for key, run in runs.items():
            seconds = run()
            least[key] = min(seconds, least.get(key, seconds))
    say(started, f"batch {batch_size}: measured")
    return [
        {"phase": phase, "batch_size": batch_size, "model": name, "seconds": seconds}
        for (phase, name), seconds in least.items()
    ]


def prefill_of(model: Any, ids: torch.Tensor) -> Callable[[], float]:
    return lambda: seconds_of(lambda: model(ids, use_cache=True, logits_to_keep=1), model.device)


def decode_of(model: Any, ids: torch.Tensor, num_tokens: int, *, compiled: bool) -> Callable[[], float]:
    """Return a timed loop of single tokens after the prompt, with a static cache."""
    length = ids.shape[1]
    cache = StaticCache(config=model.config, max_cache_len=length + num_tokens)
    step = model.forward
    if compiled:
        step = torch.compile(step, fullgraph=True, mode="reduce-overhead" if ids.is_cuda else None)
    tokens = ids[:, -1:].clone()
    positions = torch.arange(length, length + num_tokens, device=ids.device).view(-1, 1, 1)

    def steps() -> None:
        for position in positions:
            step(tokens, past_key_values=cache, position_ids=position, logits_to_keep=1)

    def decode() -> float:
        cache.reset()
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return seconds_of(steps, model.device) / num_tokens

    return decode


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Return the wall seconds of a call, the work on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"


def text(result: dict[str, Any]) -> str:
    """Return a Markdown table of speeds, in multiples of the dense model's."""
    seconds = {((row["phase"], row["batch_size"]), row["model"]): row["seconds"] for row in result["rows"]}
    points = list(dict.fromkeys(point for point, _ in seconds))
    heads = [f"{phase}, batch {size}" for phase, size in points]
    lines = [f"| | parameters | {' | '.join(heads)} |", f"|---|{'---|' * (1 + len(points))}"]
    for name, params in result["params"].items():
        cells = [f"{seconds[point, 'dense'] / seconds[point, name]:.2f}" for point in points]
        lines.append(f"| {name} | {params / 1e6:,.1f} M | {' | '.join(cells)} |")
    origin = f"`{result['command']}`, commit {result['commit']}, {result['device']}, {result['num_layers']} layers"
    origin += ", decoded with torch.compile." if result["compiled"] else ", decoded without torch.compile."
    return "\n".join([*lines, "", origin]) + "\n"


if __name__ == "__main__":
    main()
