"""Infinite settings of a config, which JSON has no numbers for, in the form that transformers gives them in files."""

from __future__ import annotations

import math
from typing import Any

_KEY = "__float__"
_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}


def with_named_infinities(value: Any) -> Any:
    """Return a value of a config, or settings nested in it, with objects such as ``{"__float__": "Infinity"}``."""
    if isinstance(value, float) and value in _NAMES:
        return {_KEY: _NAMES[value]}
    return _mapped(with_named_infinities, value)


def with_infinities(value: Any) -> Any:
    """Return a value of ``config.json``, or settings nested in it, with numbers; the inverse."""
    if isinstance(value, dict) and [*value] == [_KEY] and value[_KEY] in _NAMES.values():
        return float(value[_KEY])
    return _mapped(with_infinities, value)


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    return [function(item) for item in value] if isinstance(value, list | tuple) else value
