"""Schemas of our own files: annotations of dataclasses and TypedDicts, against which parsed JSON is checked.

Every file that a command writes and reads again passes through here. The annotations are the schema, so that types,
ranges and documentation are written once. pydantic would do the same, but is no dependency of torch or transformers.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from reprlib import Repr
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from hgsp.console.nearest import did_you_mean

T = TypeVar("T")

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxlevel = 3


@dataclass(frozen=True)
class Between:
    """A range of numbers, its ends included."""

    low: float
    high: float = math.inf

    def __call__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f">= {self.low:g}" if math.isinf(self.high) else f"from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Above:
    """Numbers larger than a limit."""

    limit: float

    def __call__(self, value: float) -> bool:
        return value > self.limit

    def __str__(self) -> str:
        return f"> {self.limit:g}"


@dataclass(frozen=True)
class Matching:
    """Strings of a form, with its name for messages."""

    pattern: str
    name: str

    def __call__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"({self.name})"


@dataclass(frozen=True)
class OneOf:
    """Strings of a list."""

    names: tuple[str, ...]

    def __call__(self, value: str) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return f"among {', '.join(self.names)}"


@dataclass(frozen=True)
class Stored:
    """The schema of a value in a file where the annotation in memory is wider."""

    schema: Any


Count = Annotated[int, Between(0)]
Positive = Annotated[int, Between(1)]
NonNegative = Annotated[float, Between(0)]
Sha256 = Annotated[str, Matching("[0-9a-f]{64}", "64 hexadecimal digits")]


class SchemaError(ValueError):
    """A value that a schema does not allow: the dotted path of the field, the expected type, and the value."""

    def __init__(self, expected: str, got: object, field: str = "") -> None:
        self.expected, self.got, self.field = expected, got, field
        super().__init__(expected)

    def __str__(self) -> str:
        return f"{self.field or 'the content'} must be {self.expected}, not {shortened(self.got)}"

    def within(self, part: object) -> SchemaError:
        """Return the same error with the field's place inside an object or a list."""
        inner = f".{self.field}" if self.field and not self.field.startswith("[") else self.field
        return SchemaError(self.expected, self.got, f"{part}{inner}")


def shortened(value: object) -> str:
    """Return a value for a message: short, on one line, and printable."""
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode()


def checked(schema: type[T], value: Any) -> T:
    """Return parsed JSON as an object of a schema.

    Keys that a dataclass does not have are refused, those that a TypedDict does not have are kept.

    Raises:
        SchemaError: the value does not fit.
    """
    return cast(T, _checker(cast(Any, schema))(value))


@cache
def _checker(schema: Any) -> Callable[[Any], Any]:
    """Return the function that checks and converts values of one annotation."""
    origin, arguments = get_origin(schema), get_args(schema)
    if schema is Any:
        return lambda value: value
    if schema in _SCALARS:
        return _SCALARS[schema]
    if origin is Annotated and isinstance(arguments[1], Stored):
        return _checker(arguments[1].schema)
    if origin is Annotated:
        return _restricted(arguments[0], *arguments[1:])
    if origin is Literal:
        return _one_of(arguments)
    if origin in (Union, types.UnionType):
        return _any_of(arguments)
    if origin in (list, tuple):
        return _sequence(origin, arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*arguments)
    if is_typeddict(schema):
        return _typed_dict(schema)
    assert dataclasses.is_dataclass(schema), schema
    return _dataclass(schema)


def _kind_checked(kind: type | tuple[type, ...], expected: str, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SchemaError(expected, value)
    return value


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    bool: lambda value: _kind_checked(bool, "true or false", value),
    int: lambda value: _kind_checked(int, "an integer", value),
    float: lambda value: _kind_checked((int, float), "a number", value),
    str: lambda value: _kind_checked(str, "a string", value),
    type(None): lambda value: _kind_checked(type(None), "null", value),
}


def _restricted(schema: Any, restriction: Callable[[Any], bool]) -> Callable[[Any], Any]:
    convert, name = _checker(schema), {int: "an integer", float: "a number", str: "a string"}[schema]

    def check(value: Any) -> Any:
        try:
            converted = convert(value)
        except SchemaError:
            raise SchemaError(f"{name} {restriction}", value) from None
        if not restriction(converted):
            raise SchemaError(f"{name} {restriction}", value)
        return converted

    return check


def _one_of(allowed: tuple[Any, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not any(type(value) is type(item) and value == item for item in allowed):
            raise SchemaError(" or ".join(map(repr, allowed)), value)
        return value

    return check


def _any_of(schemas: tuple[Any, ...]) -> Callable[[Any], Any]:
    converts = [_checker(schema) for schema in schemas]

    def check(value: Any) -> Any:
        errors = []
        for convert in converts:
            try:
                return convert(value)
            except SchemaError as error:
                errors.append(error)
        deepest = max(errors, key=lambda error: len(error.field))
        raise deepest if deepest.field else SchemaError(" or ".join(error.expected for error in errors), value)

    return check


def _sequence(kind: type, arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    length = len(arguments) if kind is tuple and arguments[-1] is not ... else None
    converts = [_checker(item) for item in arguments if item is not ...]

    def check(value: Any) -> Any:
        _kind_checked(list, "a list" if length is None else f"a list of {length}", value)
        if length not in (None, len(value)):
            raise SchemaError(f"a list of {length}", value)
        parts: list[Any] = []
        try:
            for index, item in enumerate(value):
                parts.append(converts[0 if length is None else index](item))
        except SchemaError as error:
            raise error.within(f"[{len(parts)}]") from None
        return kind(parts)

    return check


def _mapping(key_schema: Any, schema: Any) -> Callable[[Any], Any]:
    convert = _checker(schema)

    def check(value: Any) -> Any:
        content = {}
        for key, item in _kind_checked(dict, "an object", value).items():
            try:
                content[_whole_number(key) if key_schema is int else _checker(key_schema)(key)] = convert(item)
            except SchemaError as error:
                raise error.within(shown_key(key)) from None
        return content

    return check


def _whole_number(key: str) -> int:
    """Return a key that JSON wrote as a string; there is one spelling for each number."""
    if re.fullmatch("0|[1-9][0-9]{0,17}", key) is None:
        raise SchemaError("under a key that is an integer >= 0", key)
    return int(key)


def shown_key(key: str) -> str:
    """Return a key for the path of a field: as it is where it is a plain name."""
    return key if re.fullmatch(r"[\w.\-]{1,80}", key, re.ASCII) else shortened(key)


def _fields(content: Mapping[str, Any], hints: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    converted = {}
    for name, convert in hints.items():
        if name in content:
            try:
                converted[name] = convert(content[name])
            except SchemaError as error:
                raise error.within(name) from None
    return converted


def _typed_dict(schema: Any) -> Callable[[Any], Any]:
    hints = {name: _checker(hint) for name, hint in get_type_hints(schema, include_extras=True).items()}

    def check(value: Any) -> Any:
        _kind_checked(dict, "an object", value)
        for name in sorted(schema.__required_keys__ - value.keys()):
            raise SchemaError("there", "nothing", name)
        return {**value, **_fields(value, hints)}

    return check


def _dataclass(schema: Any) -> Callable[[Any], Any]:
    annotations = get_type_hints(schema, include_extras=True)
    stored = [item for item in dataclasses.fields(schema) if item.metadata.get("stored", True)]
    hints = {item.name: _checker(annotations[item.name]) for item in stored}
    required = [
        item.name
        for item in stored
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]

    def check(value: Any) -> Any:
        _kind_checked(dict, "an object", value)
        for name in required:
            if name not in value:
                raise SchemaError("there", "nothing", name)
        for name in value:
            if name not in hints:
                raise SchemaError(f"a known field ({did_you_mean(name, list(hints), 'it has no such one')})", name)
        return schema(**_fields(value, hints))

    return check
