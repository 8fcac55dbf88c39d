"""The zero-shot set, by the lm-eval harness. Local files give the same rows as the hub's data sets.

Published averages differ in what they average: :func:`averages` gives both usual ones and names the tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgsp.data.rows import read_rows
from hgsp.evaluation.metrics.harness import HarnessSpec, LocalFile, Row

ACC = {"acc": ("acc", "", True)}
BOTH = {**ACC, "acc_norm": ("acc_norm", "", True)}


def read_boolq(path: Path) -> list[Row]:
    """The official ``dev.jsonl``: ``answer`` true/false becomes ``label`` 1/0."""
    return [{"passage": r["passage"], "question": r["question"], "label": int(r["answer"])} for r in read_rows(path)]


def read_piqa(path: Path) -> list[Row]:
    """The official ``valid.jsonl``, with ``valid-labels.lst`` beside it."""
    labels = path.with_name(path.name.replace(".jsonl", "-labels.lst")).read_text(encoding="utf-8-sig").split()
    return [{**row, "label": int(label)} for row, label in zip(read_rows(path), labels, strict=True)]


def read_hellaswag(path: Path) -> list[Row]:
    """The official fields; the harness itself turns them into query and choices."""
    columns = ("ctx_a", "ctx_b", "activity_label", "endings", "label")
    return [{column: row[column] for column in columns} for row in read_rows(path)]


def read_processed_hellaswag(path: Path) -> list[Row]:
    """Query, choices and gold, prepared. The harness would write two full stops where a title ends in one; on the items
    checked that is all that differs, in 1 of 84 endings.
    """
    return [{"query": r["query"], "choices": r["choices"], "label": str(r["gold"])} for r in read_rows(path)]


def read_winogrande(path: Path) -> list[Row]:
    """The official ``dev.jsonl``."""
    return [{column: row[column] for column in ("sentence", "option1", "option2", "answer")} for row in read_rows(path)]


def read_arc(path: Path) -> list[Row]:
    """The official AI2 layout: a list of choices becomes parallel lists."""
    return [
        {"question": r["question"]["stem"], "choices": _columns(r["question"]["choices"]), "answerKey": r["answerKey"]}
        for r in read_rows(path)
    ]


def read_openbookqa(path: Path) -> list[Row]:
    """The official layout, which is AI2's."""
    return [{"question_stem": row.pop("question"), **row} for row in read_arc(path)]


def _columns(choices: list[Mapping[str, str]]) -> dict[str, list[str]]:
    return {key: [choice[key] for choice in choices] for key in ("text", "label")}


_PROCESSED = {"process_docs": None}

ZERO_SHOT = {
    "boolq": HarnessSpec(
        "boolq", "super_glue/boolq", "validation", (LocalFile("tasks/boolq_dev.jsonl", read_boolq),), ACC
    ),
    "piqa": HarnessSpec("piqa", "piqa", "validation", (LocalFile("tasks/piqa_valid.jsonl", read_piqa),), BOTH),
    "hellaswag": HarnessSpec(
        "hellaswag",
        "hellaswag",
        "validation",
        (
            LocalFile("tasks/hellaswag_val.jsonl", read_hellaswag),
            LocalFile(
                "tasks/hellaswag_val_random1000_processed.jsonl",
                read_processed_hellaswag,
                "random 1000 of 10042, .. made .",
                _PROCESSED,
            ),
        ),
        BOTH,
    ),
    "winogrande": HarnessSpec(
        "winogrande", "winogrande", "validation", (LocalFile("tasks/winogrande_dev.jsonl", read_winogrande),), ACC
    ),
    "arc_easy": HarnessSpec("arc_easy", "arc", "test", (LocalFile("tasks/arc_easy_test.jsonl", read_arc),), BOTH),
    "arc_challenge": HarnessSpec(
        "arc_challenge", "arc", "test", (LocalFile("tasks/arc_challenge_test.jsonl", read_arc),), BOTH
    ),
    "openbookqa": HarnessSpec(
        "openbookqa", "openbookqa", "test", (LocalFile("tasks/openbookqa_test.jsonl", read_openbookqa),), BOTH
    ),
}


def averages(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """Means over zero-shot tasks: task -> our metric name -> value.

    ``acc``: of acc everywhere. ``acc_norm``: of acc_norm where the task has one, else of acc (boolq, winogrande), which
    is what most pruning papers average. None without a task.
    """
    tasks = [task for task in ZERO_SHOT if task in scores]
    if not tasks:
        return None
    normed = [scores[task].get("acc_norm", scores[task]["acc"]) for task in tasks]
    return {
        "tasks": tasks,
        "acc": sum(scores[task]["acc"] for task in tasks) / len(tasks),
        "acc_norm": sum(normed) / len(tasks),
        "acc_norm_is_acc_for": [task for task in tasks if "acc_norm" not in scores[task]],
    }
