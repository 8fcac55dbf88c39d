"""Rows of the tables of recovery: quality and memory of training pruned models."""

from __future__ import annotations

import math
from collections.abc import Iterable

from docs_results import GIB, Result, Row, number, percent

#: Columns of tables of training on several texts.
MEASURED = ("WikiText-2 perplexity", "C4 perplexity", "Python help perplexity", "loss on held-out answers")


def recovered(found: Result) -> Iterable[Row]:
    """Yield quality before and after recovery, with the share of the lost log-perplexity that comes back."""
    dense, *others = found["rows"]
    pruned: Result = dense
    for row in [dense, *others]:
        pruned = row if row["way"] == "pruned" else pruned
        back = ""
        if "train_s" in row:
            low, start, end = (math.log(r["ppl_wikitext2"]) for r in (dense, pruned, row))
            back = f"{(start - end) / (start - low):.0%}"
        minutes = f"{row['train_s'] / 60:.0f} min" if "train_s" in row else ""
        removed = percent(row["ratio"]) if row["ratio"] else ""
        quality = [number(row["ppl_wikitext2"]), back, number(row["ppl_c4"]), f"{100 * row['acc_arc_easy']:.1f}"]
        yield removed, row["way"], *quality, f"{row['answer_loss']:.2f}", minutes


def trained(lstsq: Result, blocks: Result) -> Iterable[Row]:
    """Yield WikiText-2 and C4 perplexity of recipes before and after training, by fraction of the decoder."""
    first, second = (
        [f"{row['ppl_wikitext2']:.1f} / {row['ppl_c4']:.1f}" for row in found["rows"]] for found in (lstsq, blocks)
    )
    yield "`balanced`", first[0], *first[1::2]
    yield "`balanced`, trained", first[0], *first[2::2]
    yield "`balanced --reconstruct blocks`", second[0], "", "", second[1]
    yield "`balanced --reconstruct blocks`, trained", second[0], "", "", second[2]


def mixed(several: Result, single: Result) -> Iterable[Row]:
    """Yield quality after training on several texts and on one of them, from the same pruned model."""
    dense, pruned, trained, in_small_steps = several["rows"]
    narrow = single["rows"][-1]
    on = {"dense": dense, "pruned": pruned, _named_texts(single): narrow, _named_texts(several): trained}
    on["the same in 200 steps of one sequence"] = in_small_steps
    for label, row in on.items():
        yield label, *_measured(row)


def _measured(row: Result) -> list[str]:
    ppl = [number(row[f"ppl_{text}"]) for text in ("wikitext2", "c4", "builtin")]
    return [*ppl, f"{row['answer_loss']:.2f}"]


def _named_texts(found: Result) -> str:
    names = {"wikitext2": "WikiText-2", "c4": "C4"}
    return f"trained on {' + '.join(names.get(text, 'Alpaca') for text in found['data_path'])}"


def lora_memory(found: Result) -> Iterable[Row]:
    """Yield memory of LoRA training beside the weights, measured for few layers and extrapolated to all."""
    for row in [*found["rows"], found["whole_model"]]:
        extra = f"{row['extra_bytes'] / GIB:.2f} GiB"
        yield (
            f"{row['layers']}",
            f"{row['weight_bytes'] / GIB:.2f} GiB",
            extra,
            f"{row['extra_bytes'] / row['weight_bytes']:.1%}",
        )
