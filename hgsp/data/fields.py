"""One row: its fields by name, and its place in a file or data set for refusals."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hgsp.errors import InputError

_NAMED_FIELDS = 12
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, eq=False)
class Row(Mapping[str, Any]):
    """The fields of one row by name, and its place in words: file and line from 1, or data set and row from 1."""

    fields: Mapping[str, Any]
    place: str
    inside: str = ""  # the fields that hold a nested row, each with a dot

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def text(self, field: str) -> str:
        """Return a field that must be text.

        Raises:
            InputError: it is missing, no text, or has a character that no tokenizer takes.
        """
        value = self.get(field)
        if not isinstance(value, str):
            raise self.refusal(field, "text")
        if flaw := flaw_of(value):
            raise self.refusal(field, f"text without {flaw}")
        return value

    def texts(self, field: str) -> list[str]:
        """Return a field that must be a list of texts; see ``text``."""
        value = self.get(field)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise self.refusal(field, "a list of texts")
        parts = Row({f"{field}[{index}]": part for index, part in enumerate(value)}, self.place, self.inside)
        return [parts.text(name) for name in parts]

    def choice(self, field: str, choices: Collection[str]) -> str:
        """Return the text of a field that must be one of ``choices``, or the number of that name.

        Raises:
            InputError: another value.
        """
        value = self.get(field)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or str(value) not in choices:
            raise self.refusal(field, f"one of {', '.join(choices)}")
        return str(value)

    def nested(self, field: str) -> Row:
        """Return the row that a field holds; a list is a row whose fields are indices.

        Raises:
            InputError: neither an object nor a list.
        """
        value = self.get(field)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = {str(index): part for index, part in enumerate(value)}
        if not isinstance(value, Mapping):
            raise self.refusal(field, "an object or a list")
        return Row(value, self.place, f"{self.inside}{field}.")

    def refusal(self, field: str, expected: str, remedy: str = "correct or remove the row") -> InputError:
        """Return the refusal of the row for the value of one field."""
        there = f"{short(self[field])} there" if field in self else f"only {names(self)}"
        return InputError(
            expected=f"{expected} in '{name_of(self.inside + field)}' of every row",
            got=f"{there}, in {self.place}",
            remedy=remedy,
        )


def short(value: Any) -> str:
    """Return the repr of a value in one short line."""
    return _SHORT.repr(value)


def names(fields: Mapping[str, Any]) -> str:
    """Return the names of fields in one line."""
    listed = [name_of(field) for field in fields]
    more = ", ..." if len(listed) > _NAMED_FIELDS else ""
    return f"the fields {', '.join(listed[:_NAMED_FIELDS])}{more}" if listed else "no fields"


def name_of(field: Any) -> str:
    """Return a field's name as it can be printed: the names of users' fields may be any text."""
    text = str(field)
    return text[:60] if text.isprintable() and text else short(text)


def flaw_of(text: str) -> str | None:
    """Return the character of a text that tokenizers refuse, in words, None without one."""
    if "\0" in text:
        return "NUL characters"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"halves of surrogate pairs (\\u{ord(text[error.start]):x})"
    return None
