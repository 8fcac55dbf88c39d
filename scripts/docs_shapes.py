"""Tables that follow from the shapes of models: sizes, what a ratio removes, KV groups, memory. Nothing is measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs_results import GIB, OF_DECODER, RATIOS, Row, caption, load, percent, translated
from docs_source import table
from shapes import DENSE_SHAPES, config_of

MODELS = tuple(DENSE_SHAPES)
DECODERS = (*MODELS, "SmolLM2-135M")
BYTES = 2  # bfloat16
CONTEXT = 8192
#: The two small models that quality is measured on, beside the three of the study.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "LlamaConfig",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-Coder-0.5B": (
        "Qwen2Config",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        },
    ),
}

#: Results with the KV groups that remain, in the order of SMALL.
KEPT = ("methods_smollm2", "methods_qwen2.5")


@dataclass(frozen=True)
class ShapeTable:
    """One table computed from shapes; ``results`` are files whose numbers it shows as well.

    ``counts`` is a sentence that says of what the fractions are.
    """

    head: Row
    rows: Callable[[], Iterable[Row]]
    results: Sequence[str] = ()
    counts: str = ""

    def text(self, page: Path) -> str:
        """Return the table as Markdown, in the language of the page."""
        head, *rows = translated([self.head, *self.rows()], page)
        return f"{table(head, rows)}\n\n{caption(self.counts, self.results, page)}".rstrip()


@functools.cache
def shape(name: str) -> tuple[Any, Any]:
    """Return config and geometry of a model, from a skeleton without data."""
    import torch
    import transformers

    from hgsp.models.geometry import geometry_of

    if name in DENSE_SHAPES:
        config = config_of(name)
    else:
        config_class, settings = SMALL[name]
        config = getattr(transformers, config_class)(**settings)
    with torch.device("meta"):
        return config, geometry_of(transformers.AutoModelForCausalLM.from_config(config))


def geometries(names: Iterable[str] = MODELS) -> list[Any]:
    return [shape(name)[1] for name in names]


def sizes() -> Iterable[Row]:
    """Yield sizes of the three models."""
    yield "hub id", "`meta-llama/Meta-Llama-3-8B`", "`mistralai/Mistral-7B-v0.3`", "`Qwen/Qwen2.5-7B`"
    shapes = [shape(name) for name in MODELS]
    yield (
        "query heads, KV heads",
        *(f"{c.num_attention_heads}, {g.shapes[0].num_kv_groups} ({g.queries_per_kv}:1)" for c, g in shapes),
    )
    yield "layers", *(f"{g.num_layers}" for _, g in shapes)
    yield "hidden size, MLP channels per layer", *(f"{g.hidden_size}, {g.shapes[0].mlp_width}" for _, g in shapes)
    yield "parameters", *(f"{g.total_params:,}" for _, g in shapes)
    yield "share in decoder layers", *(f"{g.decoder_params / g.total_params:.1%}" for _, g in shapes)
    yield (
        "KV groups, MLP channels",
        *(f"{g.num_layers * g.shapes[0].num_kv_groups}, {g.num_layers * g.shapes[0].mlp_width:,}" for _, g in shapes),
    )


def removed() -> Iterable[Row]:
    """Yield the parameters that remain and the fraction of the decoder that goes, by ratio of all parameters."""
    for ratio in (0.1, *RATIOS):
        yield (
            f"{ratio}",
            *(
                f"{(1 - ratio) * g.total_params / 1e9:.2f} B, {ratio * g.total_params / g.decoder_params:.1%}"
                for g in geometries()
            ),
        )


def ratios_of_all() -> Iterable[Row]:
    """Yield the ``--pruning_ratio`` that removes a fraction of the decoder."""
    for fraction in (0.2, 0.25, 0.3, 0.5):
        yield percent(fraction), *(f"{fraction * g.decoder_params / g.total_params:.4f}" for g in geometries(DECODERS))


def kv_groups() -> Iterable[Row]:
    """Yield the size and the effect of one KV group, by model."""
    llama, mistral, *others = geometries((*MODELS, *SMALL))
    assert llama.kv_group_params == mistral.kv_group_params, "one column shows both"
    found = [llama, *others]
    yield "GQA ratio", *(f"{g.queries_per_kv}:1" for g in found)
    yield "KV groups per layer", *(f"{g.shapes[0].num_kv_groups}" for g in found)
    yield "parameters of a KV group", *(f"{g.kv_group_params:,}" for g in found)
    yield "share of its layer", *(f"{g.kv_group_params / g.layer_params(g.shapes[0]):.2%}" for g in found)
    yield "equivalent MLP channels", *(f"{g.kv_group_params / g.mlp_channel_params:.0f}" for g in found)
    shares = [2 * g.head_dim * g.hidden_size / g.kv_group_params for g in found]
    yield "share of the group in `k_proj` and `v_proj`", *(f"{share:.1%}" for share in shares)
    yield "KV-cache bytes saved per token", *(f"{2 * g.head_dim * BYTES}" for g in found)


def kept_kv_groups() -> Iterable[Row]:
    """Yield how many KV groups remain, by model, method and fraction of the decoder removed."""
    for model, name in zip(SMALL, KEPT, strict=True):
        g = geometries([model])[0]
        for method in ("taylor", "fisher"):
            rows = [row for row in load(name)["rows"] if (row["method"], row["temperature"]) == (method, 0)]
            kept = {row["ratio"]: f"{row['kept_kv_groups']}" for row in rows}
            total = g.num_layers * g.shapes[0].num_kv_groups
            yield model, f"`{method}`", f"{total}", *(kept[ratio] for ratio in (0.1, *RATIOS))


def memory() -> Iterable[Row]:
    """Yield bytes of weights and KV cache, and the measured peak of pruning with ``--offload``."""
    found = geometries()
    weights = [BYTES * g.total_params / GIB for g in found]
    yield "weights", *(f"{size:.2f} GiB" for size in weights)
    for ratio in RATIOS:
        yield f"weights at {ratio}", *(f"{(1 - ratio) * size:.2f} GiB" for size in weights)
    cache = [g.kv_cache_bytes_per_token(g.shapes, BYTES) for g in found]
    yield "KV cache per token, dense", *(f"{size:,} B" for size in cache)
    yield f"KV cache of {CONTEXT} tokens, dense", *(f"{CONTEXT * size / GIB:.2f} GiB" for size in cache)
    peaks = [load(f"full_size_{name.lower()}")["pruning_peak_rss_bytes"] for name in MODELS]
    yield "peak of pruning with `--offload`, measured", *(f"{peak / GIB:.1f} GiB" for peak in peaks)


SHAPE_TABLES = {
    "sizes": ShapeTable(("", *MODELS), sizes),
    "removed": ShapeTable(("`--pruning_ratio`", *MODELS), removed),
    "of_all": ShapeTable(("fraction of the decoder", *DECODERS), ratios_of_all),
    "kv_groups": ShapeTable(("", "LLaMA-3-8B, Mistral-7B-v0.3", "Qwen2.5-7B", *SMALL), kv_groups),
    "kept_kv_groups": ShapeTable(
        ("KV groups kept", "method", "dense", *map(percent, (0.1, *RATIOS))), kept_kv_groups, KEPT, OF_DECODER
    ),
    "memory": ShapeTable(("", *MODELS), memory, tuple(f"full_size_{name.lower()}" for name in MODELS)),
}
