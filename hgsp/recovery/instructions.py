"""Rows of instructions, chats or plain text as text in which the answers are marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsp.data.rows import read_rows
from hgsp.errors import InputError

#: What stands before each part of an instruction where there is no chat template.
HEADINGS = {"user": "### Instruction:\n", "input": "### Input:\n", "assistant": "### Response:\n"}
KNOWN_ROWS = "instruction and output (input), messages, or text"


@dataclass(frozen=True)
class Passage:
    """Text of one sample; ``answers`` are the character spans that are learned, none where every answer is empty."""

    text: str
    answers: tuple[tuple[int, int], ...]
    has_special_tokens: bool = False  # a chat template has written them into the text


def passage_of(row: Mapping[str, Any], number: int, tokenizer: Any) -> Passage:
    """One row as text with its answers marked: instruction, chat or plain text, by its fields.

    Raises:
        InputError: unknown or missing fields, naming the row.
    """
    if "messages" in row:
        return _from_chat(row["messages"], number, tokenizer)
    if "instruction" in row:
        given = [field for field in ("instruction", "input") if row.get(field)]
        parts = [_text(row, field, number) for field in given]
        answer = _text(row, "output", number)
        headings = [HEADINGS["user"], HEADINGS["input"]]
        prompt = "".join(f"{heading}{part}\n\n" for heading, part in zip(headings, parts, strict=False))
        return _answered(prompt + HEADINGS["assistant"], answer)
    if "text" in row:
        text = _text(row, "text", number)
        return _answered("", text)
    raise InputError(
        expected=f"rows with {KNOWN_ROWS}", got=f"row {number} with {', '.join(row) or 'nothing'}", remedy="rename them"
    )


def load_rows(data_path: str) -> list[dict[str, Any]]:
    """Rows of a file, or of the train split of a data set on the hub.

    Raises:
        InputError: there are none.
    """
    rows = read_rows(Path(data_path)) if Path(data_path).is_file() else _rows_from_hub(data_path)
    if not rows:
        raise InputError(expected=f"rows with {KNOWN_ROWS}", got=f"none in {data_path}", remedy="pass other data")
    return rows


def _rows_from_hub(name: str) -> list[dict[str, Any]]:
    remedy = "pass a json, jsonl or parquet file, or go online with `pip install datasets`"
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError:
        reason = "the package `datasets` is not installed"
    else:
        try:
            return list(load_dataset(name, split="train"))
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    raise InputError(expected="training data in a file or on the hub", got=f"'{name}' ({reason})", remedy=remedy)


def _text(row: Mapping[str, Any], field: str, number: int) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(
            expected=f"text in '{field}' of every row",
            got=f"row {number} with {value!r:.60} there and the fields {', '.join(row)}",
            remedy=f"rows have {KNOWN_ROWS}",
        )
    return value


def _answered(prompt: str, answer: str) -> Passage:
    span = (len(prompt), len(prompt) + len(answer))
    return Passage(prompt + answer, (span,) if answer.strip() else ())


def _from_chat(messages: Any, number: int, tokenizer: Any) -> Passage:
    """Every assistant turn that says something is an answer; with a chat template, as the template writes it."""
    valid = (
        isinstance(messages, Sequence)
        and messages
        and all(
            isinstance(turn, Mapping) and isinstance(turn.get("content"), str) and "role" in turn for turn in messages
        )
    )
    if not valid:
        raise InputError(
            expected="messages as a list of role and content",
            got=f"row {number} with {messages!r:.80}",
            remedy="see docs/FINETUNING.md",
        )
    if tokenizer.chat_template and messages[0]["role"] == "assistant":  # no template can be asked to write no turns
        raise InputError(
            expected="chats in which something stands before the first assistant turn",
            got=f"row {number}, which begins with one",
            remedy="put a user or system turn before it, or leave such rows out",
        )
    turns = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not turns:
        raise InputError(
            expected="an assistant turn in every row", got=f"none in row {number}", remedy="leave such rows out"
        )
    write = _by_template(tokenizer) if tokenizer.chat_template else _by_headings
    answers = []
    for index in turns:
        before, after = write(messages[:index], True), write(messages[: index + 1], False)
        if not after.startswith(before):
            raise InputError(
                expected="a chat template that writes a turn the same way whatever follows",
                got=f"another text in row {number}, turn {index}",
                remedy="write the rows as text",
            )
        if messages[index]["content"].strip():
            answers.append((len(before), len(after)))
    text = write(messages, False)
    if answers:
        text = text[: answers[-1][1]]  # what the user says after the last answer teaches nothing
    return Passage(text, tuple(answers), has_special_tokens=bool(tokenizer.chat_template))


def _by_template(tokenizer: Any) -> Callable[[Sequence[Any], bool], str]:
    from jinja2 import TemplateError

    def write(turns: Sequence[Any], asks: bool) -> str:
        try:
            return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=asks))
        except TemplateError as error:
            raise InputError(
                expected="messages that the model's chat template takes",
                got=f"'{error}' for the roles {', '.join(str(turn['role']) for turn in turns) or 'none'}",
                remedy="change the rows, or write them as text",
            ) from error

    return write


def _by_headings(turns: Sequence[Any], asks: bool) -> str:
    text = "".join(f"{HEADINGS.get(turn['role'], '')}{turn['content']}\n\n" for turn in turns)
    return text + HEADINGS["assistant"] if asks else text.removesuffix("\n\n")
