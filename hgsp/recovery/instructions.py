"""Rows of instructions, chats or plain text, rendered as text with marked answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsp.data.rows import is_plain, read_rows
from hgsp.errors import InputError

#: Headings of the parts of a row without a chat template.
HEADINGS = {"user": "### Instruction:\n", "input": "### Input:\n", "assistant": "### Response:\n"}
KNOWN_ROWS = "instruction and output (input), messages, or text"


@dataclass(frozen=True)
class Passage:
    """The text of one sample; ``answers`` are the character spans to learn, none if every answer is empty."""

    text: str
    answers: tuple[tuple[int, int], ...]
    has_special_tokens: bool = False  # written by a chat template


def passage_of(row: Mapping[str, Any], number: int, tokenizer: Any) -> Passage:
    """Render one row; its fields decide between instruction, chat and plain text.

    Raises:
        InputError: unknown or missing fields; names the row.
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
    """Read the rows of a file, or of the train split of a dataset on the hub.

    Raises:
        InputError: no such file or dataset, or no rows in it.
    """
    path = Path(data_path)
    if not path.exists() and not is_plain(path):  # the suffix of a file with rows: no need to ask the hub
        raise InputError(expected="a file of rows", got=f"no file {path}", remedy="check the path")
    rows = read_rows(path) if path.is_file() else _rows_from_hub(data_path)
    if not rows:
        raise InputError(expected=f"rows with {KNOWN_ROWS}", got=f"none in {data_path}", remedy="use other data")
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
    """Render a chat by the model's template, or by headings; every non-empty assistant turn is an answer."""
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
    if tokenizer.chat_template and messages[0]["role"] == "assistant":  # templates do not render an empty list
        raise InputError(
            expected="chats with a turn before the first assistant turn",
            got=f"row {number}, which begins with an assistant turn",
            remedy="put a user or system turn before it, or remove the row",
        )
    turns = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not turns:
        raise InputError(
            expected="an assistant turn in every row", got=f"none in row {number}", remedy="remove the row"
        )
    render = _by_template(tokenizer) if tokenizer.chat_template else _by_headings
    answers = []
    for index in turns:
        before, after = render(messages[:index], True), render(messages[: index + 1], False)
        if not after.startswith(before):
            raise InputError(
                expected="a chat template whose rendering of a turn does not depend on later turns",
                got=f"another rendering in row {number}, turn {index}",
                remedy="use rows with `text`",
            )
        if messages[index]["content"].strip():
            answers.append((len(before), len(after)))
    text = render(messages, False)
    if answers:
        text = text[: answers[-1][1]]  # turns after the last answer teach nothing
    return Passage(text, tuple(answers), has_special_tokens=bool(tokenizer.chat_template))


def _by_template(tokenizer: Any) -> Callable[[Sequence[Any], bool], str]:
    from jinja2 import TemplateError

    def render(turns: Sequence[Any], prompts: bool) -> str:
        try:
            return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompts))
        except TemplateError as error:
            raise InputError(
                expected="messages that the model's chat template accepts",
                got=f"'{error}' for the roles {', '.join(str(turn['role']) for turn in turns) or 'none'}",
                remedy="change the rows, or use rows with `text`",
            ) from error

    return render


def _by_headings(turns: Sequence[Any], prompts: bool) -> str:
    text = "".join(f"{HEADINGS.get(turn['role'], '')}{turn['content']}\n\n" for turn in turns)
    return text + HEADINGS["assistant"] if prompts else text.removesuffix("\n\n")
