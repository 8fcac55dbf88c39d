"""Rows of instructions, chats or plain text, rendered as text with marked answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsp.console.hub_access import ask_hub
from hgsp.data.chat_templates import ChatRefusedError, render_chat
from hgsp.data.fields import Row, flaw_of, names
from hgsp.data.files import kind_of
from hgsp.data.rows import is_plain, read_rows
from hgsp.errors import InputError

#: Headings of the parts of a row without a chat template.
HEADINGS = {"user": "### Instruction:\n", "input": "### Input:\n", "assistant": "### Response:\n"}
KNOWN_ROWS = "instruction and output (input, system, history), messages (system, tools), or text"
#: Values of fields that say nothing.
EMPTY: tuple[Any, ...] = (None, "", [], {})

#: Numbers of first turns (None = all), each with whether a prompt to answer follows them.
Prefixes = Sequence["tuple[int | None, bool]"]


@dataclass(frozen=True)
class Passage:
    """The text of one sample; ``answers`` are the character spans to learn, none if every answer is empty.

    ``unused``: fields of its row with a value that is not part of the text.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    has_special_tokens: bool = False  # written by a chat template
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Chat:
    """The turns of a chat, the function that renders it, and fields of its row that are not part of the text."""

    messages: Sequence[Mapping[str, Any]]
    render: Callable[[Prefixes], list[str]]
    unused: tuple[str, ...]


def passage_of(row: Row, tokenizer: Any) -> Passage:
    """Render one row; its fields decide between instruction, chat and plain text.

    Raises:
        InputError: unknown or missing fields, or what no text can be made of; names the row and the field.
    """
    if "messages" in row:
        passage = _from_chat(row, tokenizer)
    elif "instruction" in row:
        passage = _from_instruction(row)
    elif "text" in row:
        text = row.text("text")
        passage = Passage(text, _spans((0, text)), unused=_unused(row, "text"))
    else:
        raise InputError(expected=f"rows with {KNOWN_ROWS}", got=f"{names(row)} in {row.place}", remedy="rename them")
    if flaw := flaw_of(passage.text):  # in a role or a tool, say
        raise InputError(expected=f"text without {flaw}", got=f"some in {row.place}", remedy="correct the row")
    return passage


def load_rows(data_path: str) -> list[Row]:
    """Read the rows of a file, or of the train split of a dataset on the hub or in a folder.

    Raises:
        InputError: no such file or dataset, or no rows in it.
    """
    path, kind = Path(data_path), kind_of(data_path)
    if kind is None and not is_plain(path):  # the suffix of a file with rows: no need to ask the hub
        raise InputError(expected="a file of rows", got=f"no file {path}", remedy="check the path")
    if kind not in (None, "file", "a folder"):
        raise InputError(expected="a file of rows", got=f"{path}, {kind}", remedy="write the rows to a regular file")
    rows = read_rows(path) if kind == "file" else _rows_from_hub(data_path)
    if not rows:
        raise InputError(expected=f"rows with {KNOWN_ROWS}", got=f"none in {data_path}", remedy="use other data")
    return rows


def _rows_from_hub(name: str) -> list[Row]:
    remedy = "pass a json, jsonl, csv or parquet file, or go online with `pip install datasets`"
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError:
        reason = "the package `datasets` is not installed"
    else:
        if kind_of(name) is None:
            ask_hub()
        try:
            return [
                Row(row, f"{name}, row {number}") for number, row in enumerate(load_dataset(name, split="train"), 1)
            ]
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    raise InputError(expected="training data in a file or on the hub", got=f"'{name}' ({reason})", remedy=remedy)


def _unused(row: Row, *used: str) -> tuple[str, ...]:
    """Return the fields that have a value and are not ``used``."""
    return tuple(field for field, value in row.items() if field not in used and value not in EMPTY)


def _spans(*answers: tuple[int, str]) -> tuple[tuple[int, int], ...]:
    """Return the spans of answers that begin at the given characters, without empty ones."""
    return tuple((start, start + len(answer)) for start, answer in answers if answer.strip())


def _from_instruction(row: Row) -> Passage:
    """Render an instruction under headings, after ``system`` and the turns of ``history``, which are learned too."""
    given = [field for field in ("instruction", "input") if row.get(field)]
    headings = [HEADINGS["user"], HEADINGS["input"]]
    prompt = "".join(f"{heading}{row.text(field)}\n\n" for heading, field in zip(headings, given, strict=False))
    text = f"{row.text('system')}\n\n" if row.get("system") else ""
    answers = []
    for question, answer in _history(row):
        text += f"{HEADINGS['user']}{question}\n\n{HEADINGS['assistant']}"
        answers.append((len(text), answer))
        text += f"{answer}\n\n"
    text += prompt + HEADINGS["assistant"]
    output = row.text("output")
    spans = _spans(*answers, (len(text), output)) if output.strip() else ()
    return Passage(text + output, spans, unused=_unused(row, "instruction", "input", "output", "system", "history"))


def _history(row: Row) -> list[tuple[str, str]]:
    """Return earlier turns of an instruction, pairs of question and answer."""
    if not row.get("history"):
        return []
    turns = row.nested("history")
    pairs = [turns.texts(index) for index in turns]
    if any(len(pair) != 2 for pair in pairs):
        raise row.refusal("history", "pairs of question and answer")
    return [(question, answer) for question, answer in pairs]


def _from_chat(row: Row, tokenizer: Any) -> Passage:
    """Render a chat by the model's template, or by headings; every non-empty assistant turn is an answer."""
    messages = _messages(row)
    if tokenizer.chat_template and messages[0]["role"] == "assistant":  # templates do not render an empty list
        raise InputError(
            expected="chats with a turn before the first assistant turn",
            got=f"{row.place}, which begins with an assistant turn",
            remedy="put a user or system turn before it, or remove the row",
        )
    if all(turn["role"] != "assistant" for turn in messages):
        raise InputError(expected="an assistant turn in every row", got=f"none in {row.place}", remedy="remove the row")
    chat = _by_template(row, messages, tokenizer) if tokenizer.chat_template else _by_headings(row, messages)
    turns = [index for index, turn in enumerate(chat.messages) if turn["role"] == "assistant"]
    parts = chat.render([(index + answered, not answered) for index in turns for answered in (0, 1)] + [(None, False)])
    answers = []
    for index, before, after in zip(turns, parts[::2], parts[1::2], strict=False):
        if not after.startswith(before):
            raise InputError(
                expected="a chat template whose rendering of a turn does not depend on later turns",
                got=f"another rendering in {row.place}, turn {index}",
                remedy="use rows with `text`",
            )
        if (chat.messages[index].get("content") or "").strip() or (
            tokenizer.chat_template and chat.messages[index].get("tool_calls")
        ):
            answers.append((len(before), len(after)))
    text = parts[-1][: answers[-1][1]] if answers else parts[-1]  # turns after the last answer teach nothing
    return Passage(text, tuple(answers), bool(tokenizer.chat_template), chat.unused)


def _messages(row: Row) -> list[Mapping[str, Any]]:
    """Return the turns of a chat, each with a role, and text unless it calls tools."""
    listed = row["messages"]
    if isinstance(listed, str) or not isinstance(listed, Sequence) or not listed:
        raise row.refusal("messages", "a list of role and content", "see docs/FINETUNING.md")
    turns = row.nested("messages")
    for index in turns:
        turn = turns.nested(index)
        turn.text("role")
        if turn.get("content") is not None or not turn.get("tool_calls"):
            turn.text("content")
    return list(listed)


def _by_template(row: Row, messages: list[Mapping[str, Any]], tokenizer: Any) -> _Chat:
    """Return a chat rendered by the template, with the fields beside it and in its turns that change the text."""

    def render(turns: Sequence[Mapping[str, Any]], prefixes: Prefixes = ((None, False),), **named: Any) -> list[str]:
        return render_chat(tokenizer, turns, prefixes, row.place, **named)

    def changes(turns: Sequence[Mapping[str, Any]], *, if_refused: bool, **named: Any) -> bool:
        try:
            return render(turns, **named) != plain
        except ChatRefusedError:
            return if_refused

    extra, tools, system = _keys(messages), _tools(row), _system(row, messages)
    plain = render(messages) if extra or tools or system else []
    unused = [
        f"messages.{key}"
        for key in extra
        if not changes([{k: v for k, v in turn.items() if k != key} for turn in messages], if_refused=True)
    ]
    used = ["messages"]
    named: dict[str, Any] = {}
    if tools and changes(messages, if_refused=False, tools=tools):
        named["tools"] = tools
        used.append("tools")
    if system and changes([*system, *messages], if_refused=False):
        messages = [*system, *messages]
        used.append("system")
    return _Chat(messages, lambda prefixes: render(messages, prefixes, **named), (*_unused(row, *used), *unused))


def _by_headings(row: Row, messages: list[Mapping[str, Any]]) -> _Chat:
    """Return a chat under headings, which show roles and content alone."""
    system = _system(row, messages)
    turns = [*system, *messages]

    def render(prefixes: Prefixes) -> list[str]:
        return [_under_headings(turns[:number], prompts) for number, prompts in prefixes]

    unused = [f"messages.{key}" for key in _keys(messages)]
    return _Chat(turns, render, (*_unused(row, "messages", *(["system"] if system else [])), *unused))


def _under_headings(turns: Sequence[Mapping[str, Any]], prompts: bool) -> str:
    text = "".join(f"{HEADINGS.get(turn['role'], '')}{turn.get('content') or ''}\n\n" for turn in turns)
    return text + HEADINGS["assistant"] if prompts else text.removesuffix("\n\n")


def _keys(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of turns beside role and content that have a value."""
    keys = dict.fromkeys(key for turn in messages for key, value in turn.items() if value not in EMPTY)
    return [key for key in keys if key not in ("role", "content")]


def _system(row: Row, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the turn that ``system`` beside a chat stands for, none if the chat has its own."""
    if not row.get("system") or messages[0]["role"] == "system":
        return []
    return [{"role": "system", "content": row.text("system")}]


def _tools(row: Row) -> list[Any]:
    """Return the tools beside a chat, which may be written as JSON text."""
    tools = row.get("tools")
    if not tools:
        return []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (RecursionError, ValueError) as error:
            raise row.refusal("tools", "a list of objects, or JSON text of one") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise row.refusal("tools", "a list of objects, or JSON text of one")
    return tools
