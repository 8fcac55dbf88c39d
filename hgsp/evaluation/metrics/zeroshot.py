"""The seven zero-shot tasks of the lm-eval harness; local files give the same rows as the datasets on the hub.

Published averages are over acc, or over acc_norm where a task has it: :func:`averages` returns both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgsp.data.fields import Row as SourceRow
from hgsp.data.rows import read_rows, text_rows
from hgsp.errors import InputError
from hgsp.evaluation.metrics.harness import HarnessSpec, LocalFile, Row

ACC = {"acc": ("acc", "", True)}
BOTH = {**ACC, "acc_norm": ("acc_norm", "", True)}


def read_boolq(path: Path) -> list[Row]:
    """Read the official ``dev.jsonl``; ``answer`` true/false becomes ``label`` 1/0."""
    return [{**_texts(row, "passage", "question"), "label": _truth(row, "answer")} for row in read_rows(path)]


def read_piqa(path: Path) -> list[Row]:
    """Read the official ``valid.jsonl`` and the ``valid-labels.lst`` beside it."""
    beside = path.with_name(path.name.replace(".jsonl", "-labels.lst"))
    labels = [line.strip() for line in text_rows(beside, newline=None) if line.strip()]
    rows = read_rows(path)
    if len(labels) != len(rows) or set(labels) - {"0", "1"}:
        raise InputError(
            expected=f"0 or 1 in {beside} for each of the {len(rows)} rows of {path}",
            got=f"{len(labels)} lines with {', '.join(sorted(set(labels))[:4])}",
            remedy="download both files again",
        )
    return [
        {**_texts(row, "goal", "sol1", "sol2"), "label": int(label)} for row, label in zip(rows, labels, strict=True)
    ]


def read_hellaswag(path: Path) -> list[Row]:
    """Read the official fields, which the harness turns into query and choices."""
    return [
        {
            **_texts(row, "ctx_a", "ctx_b", "activity_label"),
            "endings": row.texts("endings"),
            "label": row.choice("label", _indices(row, "endings")),
        }
        for row in read_rows(path)
    ]


def read_processed_hellaswag(path: Path) -> list[Row]:
    """Read query, choices and gold from a preprocessed file.

    The only difference found to the harness: it writes two full stops where a title ends in one, in 1 of 84 endings.
    """
    return [
        {
            **_texts(row, "query"),
            "choices": row.texts("choices"),
            "label": row.choice("gold", _indices(row, "choices")),
        }
        for row in read_rows(path)
    ]


def read_winogrande(path: Path) -> list[Row]:
    """Read the official ``dev.jsonl``."""
    return [
        {**_texts(row, "sentence", "option1", "option2"), "answer": row.choice("answer", ("1", "2"))}
        for row in read_rows(path)
    ]


def read_arc(path: Path) -> list[Row]:
    """Read the official AI2 layout; the list of choices becomes parallel lists."""
    rows = []
    for row in read_rows(path):
        question = row.nested("question")
        choices = question.nested("choices")
        listed = [_texts(choices.nested(index), "text", "label") for index in choices]
        columns = {key: [choice[key] for choice in listed] for key in ("text", "label")}
        rows.append(
            {
                "question": question.text("stem"),
                "choices": columns,
                "answerKey": row.choice("answerKey", columns["label"]),
            }
        )
    return rows


def read_openbookqa(path: Path) -> list[Row]:
    """Read the official layout, which is that of AI2."""
    return [{"question_stem": row.pop("question"), **row} for row in read_arc(path)]


def _texts(row: SourceRow, *fields: str) -> Row:
    return {field: row.text(field) for field in fields}


def _truth(row: SourceRow, field: str) -> int:
    if row.get(field) not in (True, False):
        raise row.refusal(field, "true or false")
    return int(row[field])


def _indices(row: SourceRow, field: str) -> list[str]:
    return [str(index) for index in range(len(row.texts(field)))]


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
    """Average over zero-shot tasks; ``scores`` maps task -> metric -> value. None without a task.

    ``acc`` averages acc. ``acc_norm`` averages acc_norm, and acc for tasks without it (boolq, winogrande), as most
    pruning papers do.
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
