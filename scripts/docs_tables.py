"""Tables of the documents by name: the results each one shows, its head and its rows."""

from __future__ import annotations

import docs_recovery as recovery
import docs_rows as rows
from docs_results import (
    C4,
    GIB,
    OF_ALL,
    OF_DECODER,
    RATIOS,
    TEXTS,
    UNSEEN_TEXTS,
    WIKITEXT,
    Comparison,
    Table,
    methods,
    number,
    percent,
    records,
)
from docs_rows import NORMALIZATIONS, WITH_TEN, code

from hgsp.scoring.names import IMPORTANCE_METHODS

PERCENT = tuple(map(percent, RATIOS))
FULL_SIZE = ("full_size_llama-3-8b", "full_size_mistral-7b-v0.3", "full_size_qwen2.5-7b")

TABLES: dict[str, Table | Comparison] = {
    "headline": Table(
        ("quality_smollm2_compared", "speed_headline_smollm2"),
        ("removed", *rows.HEADLINE.values(), *rows.PHASES.values()),
        rows.headline,
        "SmolLM2-135M-Instruct: the fraction of the decoder layers' parameters removed, WikiText-2 perplexity, and "
        "the speed of models of these sizes as a multiple of the dense model's.",
    ),
    "parts": Table(
        ("quality_smollm2", "methods_smollm2"),
        ("SmolLM2-135M-Instruct, WikiText-2", "dense", *PERCENT),
        rows.parts,
        OF_DECODER,
    ),
    "methods_smollm2": Table(
        ("methods_smollm2",),
        ("SmolLM2-135M-Instruct", "dense", *map(percent, WITH_TEN)),
        methods(code(*IMPORTANCE_METHODS), WITH_TEN),
        OF_DECODER,
    ),
    "methods_qwen": Table(
        ("methods_qwen2.5",),
        ("Qwen2.5-Coder-0.5B-Instruct", "dense", *map(percent, WITH_TEN)),
        methods(code("taylor", "fisher"), WITH_TEN),
        OF_DECODER,
    ),
    "prior": Table(
        ("methods_smollm2",),
        ("", *(f"{percent(ratio)}, T = {T}" for ratio in RATIOS for T in (0, 1))),
        rows.temperatures,
        OF_DECODER,
    ),
    "normalization": Table(
        ("methods_normalization",),
        ("", "`none` (as published)", *code(*NORMALIZATIONS[1:]).values()),
        rows.normalizations,
        "20% of the decoder layers' parameters removed.",
    ),
    "scoring": Table(
        ("scoring_llama-3-8b",),
        (
            "method",
            "compared with",
            "time, 2 layers",
            "time, 4 layers",
            "each further layer",
            "peak / weights, 32 layers",
            "peak, 32 layers",
        ),
        rows.scoring,
    ),
    "full_size": Table(
        FULL_SIZE,
        ("shape", "weights", "peak resident set", "scoring", "surgery and saving", "largest logit difference"),
        records(
            lambda r: r["model"],
            lambda r: f"{r['weight_bytes'] / GIB:.1f} GiB",
            lambda r: f"{r['pruning_peak_rss_bytes'] / GIB:.1f} GiB",
            lambda r: f"{r['timings_s']['score']:.0f} s",
            lambda r: f"{r['timings_s']['save']:.0f} s",
            lambda r: f"{r['max_logit_difference_in_std']:.2f} standard deviations",
            key=None,
        ),
        "20% of all parameters removed.",
    ),
    "mixture": Table(
        ("full_size_qwen3-30b-a3b_2", "full_size_qwen3-30b-a3b_4"),
        ("shape", "layers", "weights", "peak resident set"),
        records(
            lambda r: r["model"],
            lambda r: f"{r['layers']}",
            lambda r: f"{r['weight_bytes'] / GIB:.1f} GiB",
            lambda r: f"{r['pruning_peak_rss_bytes'] / GIB:.1f} GiB",
            key=None,
        ),
        "20% of all parameters removed.",
    ),
    "selection": Table(
        FULL_SIZE,
        ("shape", "groups", "ranking and selection", "writing the CSV file"),
        records(
            lambda r: r["model"],
            lambda r: f"{r['groups']:,}",
            lambda r: f"{r['cut_s']:.2f} s",
            lambda r: f"{r['csv_s']:.1f} s",
            key=None,
        ),
    ),
    "lora_memory": Table(
        ("recovery_memory_llama3",),
        ("layers", "weights", "peak above the weights", "relative to them"),
        recovery.lora_memory,
    ),
    "recovery": Table(
        ("recovery_smollm2",),
        (
            "removed",
            "SmolLM2-135M-Instruct",
            "WikiText-2 perplexity",
            "log-perplexity regained",
            "C4 perplexity",
            "ARC easy, %",
            "loss on held-out answers",
            "training",
        ),
        recovery.recovered,
        OF_ALL,
    ),
    "trained": Table(
        ("recovery_smollm2_wikitext2", "recovery_smollm2_wikitext2_blocks"),
        ("WikiText-2 / C4 perplexity", "dense", *PERCENT),
        recovery.trained,
        OF_DECODER,
    ),
    "mixed": Table(
        ("recovery_smollm2_mixed", "recovery_smollm2_single"),
        ("SmolLM2-135M-Instruct", *recovery.MEASURED),
        recovery.mixed,
        "30% of the decoder layers' parameters removed.",
    ),
    "compared_smollm2": Comparison("quality_smollm2_compared"),
    "unseen_smollm2": Table(
        ("quality_smollm2_compared",),
        (
            "KL(dense, pruned), SmolLM2-135M-Instruct",
            *(f"{name}, {percent(ratio)}" for name in UNSEEN_TEXTS.values() for ratio in RATIOS),
        ),
        rows.unseen,
        OF_DECODER,
    ),
    "compared_qwen": Comparison("quality_qwen2.5_compared"),
    "compared_gemma": Comparison("quality_gemma3"),
    "boolq_smollm2": Table(
        ("quality_smollm2_compared",),
        ("BoolQ accuracy, %, SmolLM2-135M-Instruct", "dense", *PERCENT),
        rows.boolq,
        OF_DECODER,
    ),
    "boolq_qwen": Table(
        ("quality_qwen2.5_compared",),
        ("BoolQ accuracy, %, Qwen2.5-Coder-0.5B-Instruct", "dense", *PERCENT),
        rows.boolq,
        OF_DECODER,
    ),
    "texts": Table(
        ("quality_smollm2", "quality_smollm2_compared"),
        (
            "`fisher`, `--reconstruct lstsq`, calibrated on",
            *(f"{TEXTS[text]}, {percent(ratio)}" for ratio in (0.2, 0.5) for text in (WIKITEXT, C4)),
        ),
        rows.texts,
        OF_DECODER,
    ),
    "calibrations": Table(
        ("calibration_smollm2", "quality_smollm2_before"),
        ("`balanced` at 30%, calibrated on", "WikiText-2", "C4", "mean accuracy, %"),
        rows.calibrations,
        "30% of the decoder layers' parameters removed.",
    ),
    "third_text": Table(
        ("quality_smollm2_three_texts", "quality_smollm2_compared"),
        ("removed", "`balanced`, calibrated on", *(f"{name}, KL" for name in (TEXTS | UNSEEN_TEXTS).values())),
        rows.third_text,
        "Fractions are of the decoder layers' parameters.",
    ),
    "sequences": Table(
        ("quality_smollm2_sequences",),
        ("sequences to score", "sequences to refit", "on", "WikiText-2", "C4"),
        records(
            lambda r: f"{r['nsamples']}",
            lambda r: f"{r['reconstruct_nsamples']}",
            lambda r: r["processor"],
            lambda r: number(r["ppl"][WIKITEXT]),
            lambda r: number(r["ppl"][C4]),
        ),
        "20% of the decoder layers' parameters removed.",
    ),
    "blocks": Table(
        ("quality_smollm2",),
        ("`best`", "text", "`--reconstruct lstsq`", "`--reconstruct blocks`", "perplexity", "KL"),
        rows.blocks,
        OF_DECODER,
    ),
    "minutes": Table(
        ("quality_smollm2_minutes",),
        ("30% of the decoder removed by", "minutes", "WikiText-2", "KL", "C4", "KL"),
        rows.minutes,
    ),
    "slopes": Table(
        ("quality_smollm2_slopes",),
        ("removed", "`--attention_slope`", "WikiText-2", "KL", "C4", "KL"),
        rows.slopes,
        "Fractions are of the decoder layers' parameters.",
    ),
    "refits": Table(
        ("quality_smollm2_refits",),
        ("removed", "refitted", "WikiText-2", "KL", "C4", "KL"),
        rows.refits,
        "Fractions are of the decoder layers' parameters.",
    ),
    "local_refits": Table(
        ("local_refits_smollm2",),
        ("SmolLM2-135M-Instruct", "refit", "error left", "loss left"),
        rows.local_refits,
    ),
    "learned_masks": Table(
        ("learned_masks_smollm2", "quality_smollm2_compared"),
        (
            *("steps", "groups moved", "KL before the refit", "WikiText-2", "KL", "C4", "KL"),
            *(f"{name}, KL" for name in UNSEEN_TEXTS.values()),
        ),
        rows.learned_masks,
        "50% of the decoder layers' parameters removed.",
    ),
    "changed_recipes": Table(
        ("quality_smollm2_before", "quality_smollm2_compared"),
        ("removed", "recipe", "WikiText-2", "KL", "C4", "KL"),
        rows.changed_recipes,
        "Fractions are of the decoder layers' parameters.",
    ),
    "recipes": Table(
        ("reconstruction_llama-3-8b_h100", "reconstruction_llama-3-8b"),
        ("seconds", "recipe", "scoring", "reconstruction", "total"),
        rows.recipes,
    ),
    "quantized": Table(
        ("quantized_smollm2",),
        ("SmolLM2-135M-Instruct", "type", "file", "WikiText-2 perplexity"),
        rows.quantized,
        "Fractions are of all parameters, embeddings included. Smallest file last.",
    ),
    "efficiency": Table(
        ("efficiency",),
        ("", "dense", "20%", "50%", "20% / dense", "50% / dense"),
        rows.efficiency,
        OF_ALL,
    ),
    "evaluation": Table(
        ("evaluation_smollm2",),
        ("task", "metric", "dense", "pruned", "difference", "protocol"),
        records(
            lambda r: r["task"],
            lambda r: f"`{r['metric']}`",
            rows.with_error("dense"),
            rows.with_error("pruned"),
            rows.evaluation,
            lambda r: r["protocol"],
        ),
        OF_ALL,
    ),
    "study": Table(
        ("study_smoke",),
        ("model", "GQA", "removed", "parameters", "KV cache, bytes per token", "perplexity", "seconds"),
        records(
            lambda r: r["model"],
            lambda r: r["gqa"],
            lambda r: percent(r["reached_ratio"]),
            lambda r: f"{r['params_after_millions']} M",
            lambda r: f"{r['kv_cache_bytes_per_token_after']:,}",
            lambda r: f"{r['ppl_before']:,.2f} → {r['ppl_after']:,.2f}",
            lambda r: f"{r['seconds']}",
        ),
        OF_ALL,
    ),
    "multiples": Table(
        ("methods_smollm2", "methods_qwen2.5"),
        ("perplexity, multiple of the dense model's", "method", *map(percent, WITH_TEN)),
        rows.multiples,
        OF_DECODER,
    ),
}
