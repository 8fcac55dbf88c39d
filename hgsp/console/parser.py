"""The argument parser that is built from an options dataclass: groups, one-line errors, dashes or underscores."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from hgsp.console.nearest import did_you_mean

#: The first two groups of a help page, and the last.
REQUIRED, PRESET, GENERAL = "required", "presets", "general"
#: Metadata of a field that is not passed to ``add_argument``.
OWN_METADATA = ("positional", "group", "range", "recorded", "environment")
#: Width in characters of a line of flags.
USAGE_WIDTH = 72
#: Types in words.
DESCRIPTIONS: dict[Any, str] = {int: "a whole number", float: "a number"}
#: Rewrites of argparse's messages.
_MESSAGES = (
    (re.compile(r"argument (\S+): (to be .*)"), r"expected \1 \2"),
    (re.compile(r"argument (\S+): expected (?:one|at least one) argument"), r"expected a value after \1; got none"),
    (re.compile(r"argument (\S+): ignored explicit argument (.*)"), r"expected \1 without a value; got \2"),
    (re.compile(r"the following arguments are required: (.*)"), r"expected \1; got none"),
    (re.compile(r"unrecognized arguments: (.*)"), r"expected no further argument; got '\1'"),
)


class Parser(argparse.ArgumentParser):
    """A parser that accepts dashes for underscores in flags, and whose errors are one line with a proposal."""

    def __init__(self, *, prog: str | None, description: str, **settings: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, add_help=False, **settings)
        self.shown_flags: list[str] = []
        self.hidden_flags: list[str] = []

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        self.refuse_unknown(args)
        return super().parse_args(args, namespace)

    def parse_known_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        own = before_separator(args)
        known = {*self.shown_flags, *self.hidden_flags}
        canonical = [with_underscores(word) if flag_of(word) in known else word for word in own]
        return super().parse_known_args([*canonical, *args[len(own) :]], namespace)

    def refuse_unknown(self, args: Sequence[str], *others: Parser) -> None:
        """Exit with 2 if there is a flag that neither this parser nor one of the others has."""
        shown = [flag for parser in (self, *others) for flag in parser.shown_flags]
        known = {*shown, *(flag for parser in (self, *others) for flag in parser.hidden_flags)}
        for flag in map(flag_of, before_separator(args)):
            if flag is not None and flag not in known:
                hint = did_you_mean(flag[2:], [name[2:] for name in shown], f"see {self.prog} --help", prefix="--")
                self.exit(2, f"error: expected a flag of {self.prog}; got {flag}; {hint}\n")

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        for pattern, rewritten in _MESSAGES:
            line = pattern.sub(rewritten, line)
        self.exit(2, f"error: {line}\n" if line.endswith("?") else f"error: {line}; see {self.prog} --help\n")


def before_separator(arguments: Sequence[str]) -> list[str]:
    """Return the arguments before ``--``."""
    words = list(arguments)
    return words[: words.index("--")] if "--" in words else words


def with_underscores(word: str) -> str:
    """Return ``--a-b=value`` as ``--a_b=value``; other words, negative numbers among them, stay as they are."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def flag_of(word: str) -> str | None:
    """Return the flag in a word, with underscores and without its value; None for values and ``-h``."""
    return with_underscores(word).partition("=")[0] if word.startswith("--") else None


def parser_of(
    options: type,
    prog: str | None,
    description: str,
    *,
    positionals: Mapping[str, Any] | None = None,
    all_optional: bool = False,
    usage: str | None = None,
) -> Parser:
    """Build the parser of an options dataclass.

    Args:
        positionals: values of positional arguments that need not be on the command line.
        all_optional: nothing is required and nothing has a default: the namespace holds what was given.
        usage: replaces the line of required flags.
    """
    settings: dict[str, Any] = {"argument_default": argparse.SUPPRESS} if all_optional else {}
    parser = Parser(prog=prog, description=description, **settings)
    fields = dataclasses.fields(options)
    required = sorted((item for item in fields if group_of(item, options) == REQUIRED), key=_by_need)
    parser.usage = usage or _wrapped_usage(parser.prog, [*map(_in_usage, required), "[flags]"])
    groups = {name: parser.add_argument_group(name) for name in group_names(options)}
    for name, choices in presets_of(options).items():
        add_preset(groups[PRESET], name, choices)
        parser.shown_flags.append(f"--{name}")
    for item in sorted(fields, key=_by_need):
        _add(groups[group_of(item, options)], item, positionals or {}, all_optional)
        if not item.metadata.get("positional"):
            parser.shown_flags.append(f"--{item.name}")
        if item.default is False:
            hidden = f"--no_{item.name}"
            groups[GENERAL].add_argument(
                hidden, dest=item.name, action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )
            parser.hidden_flags.append(hidden)
    add_config(groups[GENERAL])
    add_help_and_version(groups[GENERAL])
    parser.shown_flags += ["--config", "--help", "--version"]
    return parser


def add_config(group: Any) -> None:
    """Add ``--config``."""
    group.add_argument(
        "--config",
        metavar="FILE",
        help="read flags from a YAML or JSON file whose keys are their names, such as the run.yaml beside a result; "
        "flags given here take precedence, and --no_SWITCH turns off a switch of the file",
    )


def add_preset(group: Any, name: str, choices: Mapping[str, Mapping[str, Any]]) -> None:
    """Add a flag that stands for several others."""
    group.add_argument(
        f"--{name}",
        type=_reader(str, choices),
        choices=choices,
        metavar=_listed(choices),
        help=preset_help(choices).replace("%", "%%"),
    )


def add_help_and_version(group: Any) -> None:
    """Add ``--help`` and ``--version``."""
    import hgsp

    group.add_argument("-h", "--help", action="help", help="show this page")
    group.add_argument("--version", action="version", version=hgsp.__version__, help="show the version of hgsp")


def presets_of(options: type) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Return the flags that stand for several others: name -> choice -> settings."""
    return getattr(options, "PRESETS", {})


def group_names(options: type) -> list[str]:
    """Return the titles of the groups in the order of the help page."""
    first = (REQUIRED, *[PRESET] * bool(presets_of(options)), *getattr(options, "GROUP_ORDER", ()))
    named = {group_of(item, options) for item in dataclasses.fields(options)} | {*first[:2]}
    in_order = dict.fromkeys((*first, *(group_of(item, options) for item in dataclasses.fields(options))))
    return [*(name for name in in_order if name in named and name != GENERAL), GENERAL]


def group_of(item: Any, options: type) -> str:
    """Return the title of a field's group: its own, else the GROUP of the class that declares it."""
    if is_required(item):
        return REQUIRED
    if named := item.metadata.get("group"):
        return str(named)
    declaring = next(base for base in options.__mro__ if item.name in inspect.get_annotations(base))
    return str(declaring.__dict__.get("GROUP", GENERAL))


def is_required(item: Any) -> bool:
    """Return whether a field has no default."""
    return bool(item.default is dataclasses.MISSING)


def _by_need(item: Any) -> bool:
    """Sort what is required before what may be required by what is not given."""
    return not is_required(item)


def help_of(item: Any) -> str:
    """Return the help text of a field with its range and its default, where they say something."""
    text, accepted = str(item.metadata["help"]), item.metadata.get("range", "")
    facts = [accepted] if accepted and accepted not in text else []
    if (choices := item.metadata.get("choices")) and _metavar(item) != _listed(choices):
        facts.append(f"one of {', '.join(choices)}")
    if item.default not in (dataclasses.MISSING, None, False):
        facts.append(
            f"default: {' '.join(map(str, item.default)) if isinstance(item.default, tuple) else item.default}"
        )
    return f"{text} ({'; '.join(facts)})".replace("%%", "%").replace("%", "%%") if facts else text


def preset_help(presets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the flags that each preset stands for; a switch has no value."""
    settings = {
        name: " ".join(f"--{flag}" if value is True else f"--{flag} {value}" for flag, value in preset.items())
        for name, preset in presets.items()
    }
    return "; ".join(f"{name} = {flags}" for name, flags in settings.items()) + "; explicit flags take precedence"


def _add(group: Any, item: Any, positionals: Mapping[str, Any], all_optional: bool) -> None:
    argument = {name: value for name, value in item.metadata.items() if name not in OWN_METADATA}
    argument["help"] = help_of(item)
    if item.default is False:
        group.add_argument(f"--{item.name}", action="store_true", **argument)
        return
    choices = argument.get("choices")
    argument["type"] = _reader(argument.get("type", str), choices)
    argument.setdefault("metavar", _metavar(item))
    if item.metadata.get("positional"):
        if item.name in positionals:
            optional = {"nargs": "*" if argument.get("nargs") else "?", "default": positionals[item.name]}
            argument |= optional
        group.add_argument(item.name, **argument)
        return
    if not all_optional:
        argument |= {"required": True} if is_required(item) else {"default": item.default}
    group.add_argument(f"--{item.name}", **argument)


def _reader(convert: Callable[[str], Any], choices: Iterable[Any] | None) -> Callable[[str], Any]:
    """Return a converter of words whose refusals name type or choices, and the nearest choice."""

    def read(text: str) -> Any:
        try:
            value = convert(text)
        except (TypeError, ValueError) as error:
            described = DESCRIPTIONS.get(convert) or f"a {getattr(convert, '__name__', '').replace('_', ' ')}"
            raise argparse.ArgumentTypeError(f"to be {described}; got {text!r}") from error
        if choices is not None and value not in choices:
            names = list(map(str, choices))
            hint = did_you_mean(text, names, "check the spelling")
            raise argparse.ArgumentTypeError(f"to be one of {', '.join(names)}; got {text!r}; {hint}")
        return value

    return read


def _listed(choices: Iterable[Any]) -> str:
    return "{" + ",".join(map(str, choices)) + "}"


def _metavar(item: Any) -> str:
    """Return the given name of a value, its choices if the line is short enough for them, or a name by type or flag."""
    if given := item.metadata.get("metavar"):
        return str(given)
    choices = item.metadata.get("choices")
    if choices and len(item.name) + len(_listed(choices)) < USAGE_WIDTH:
        return _listed(choices)
    by_type = {int: "N", float: "X"}.get(item.metadata.get("type"))
    return by_type or str(item.name).rpartition("_")[2].upper()


def _in_usage(item: Any) -> str:
    return _metavar(item) if item.metadata.get("positional") else f"--{item.name} {_metavar(item)}"


def _wrapped_usage(prog: str, parts: Iterable[str]) -> str:
    """Return a usage line, broken between flags where it would be too long."""
    lines = [prog]
    for part in parts:
        if len(lines[-1]) + len(part) < USAGE_WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(" " * len("usage: ") + f"  {part}")
    return "\n".join(lines).replace("%", "%%")
