"""Mutations that know the structure of a file: trees of JSON, arrays, headers with lengths, tables, and words."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
import yaml

Mutation = Callable[[Random, bytes], bytes]

#: Values at which parsers differ from what they expect.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.0, 1.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", "0", "-1", "x", "nan", "inf", "/", "../x", "a\x00b", "\ud83d"),
    *(
        "ü漢",
        "x" * 5000,
        "[/bold]",
        "{{ 1 }}",
        "~nobody/x",
        "C:\\x",
        [],
        {},
        [[]],
        [None],
        {"": 0},
        {"x": {}},
        [0] * 300,
    ),
)
KEYS = ("", "x", "0", "-1", "layer", "../x", "\ud83d", "__class__", "schema_version", "path", "x" * 300)
_INTEGERS = (0, 1, 2, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def mutated_bytes(random: Random, content: bytes) -> bytes:
    """Change, remove, repeat or insert some bytes."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        start = random.randrange(len(data) + 1)
        length = random.choice((1, 1, 2, 4, 8, 64))
        kind = random.randrange(6)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[start : start + length]
        elif kind == 2:
            data[start:start] = data[start : start + length]
        elif kind == 3:
            data[start:start] = random.choice((b"\x00", b"\xff", b"\xef\xbb\xbf", b'"', b"{", b"[", b"\n", b","))
        elif kind == 4:
            data[start : start + 8] = struct.pack("<Q", random.choice(_INTEGERS))
        elif random.random() < 0.3:
            del data[start:]
    return bytes(data)


def mutated_tree(random: Random, tree: Any) -> Any:
    """Change one to three places of a tree of dicts and lists."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        tree = _mutated_once(random, tree)
    return tree


def _mutated_once(random: Random, tree: Any) -> Any:
    places = _places(tree)
    if not places or random.random() < 0.02:
        return _value(random, tree)
    parent, key = random.choice(places)
    kind = random.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice((*KEYS, *map(str, parent)))] = parent.pop(key)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 3:
        other, other_key = random.choice(places)
        parent[key] = copy.deepcopy(other[other_key]) if other_key in _keys(other) else None
    elif kind == 4 and isinstance(parent, list):
        random.shuffle(parent)
    else:
        parent[key] = _value(random, parent[key])
    return tree


def _keys(parent: Any) -> Any:
    return parent if isinstance(parent, dict) else range(len(parent))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return all (parent, key) of a tree; of long lists some."""
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (dict, list)):
            keys = list(_keys(node))[:40]
            places += [(node, key) for key in keys]
            waiting += [node[key] for key in keys]
    return places


def _value(random: Random, old: Any) -> Any:
    kind = random.randrange(5)
    if kind == 0 and isinstance(old, (int, float)) and not isinstance(old, bool):
        return old * random.choice((-1, 2, 0.5, 10**6)) + random.choice((0, 1, -1))
    if kind == 1 and isinstance(old, str):
        return old[: random.randrange(len(old) + 1)] + random.choice(("", "x", "\x00", "/", " ", "0"))
    if kind == 2:
        return random.choice(([old], {"x": old}, [old] * 3, str(old)))
    return copy.deepcopy(random.choice(VALUES))


def json_text(tree: Any) -> bytes:
    """Return the JSON of a tree; NaN, infinity and half characters are written too."""
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def mutated_json(random: Random, content: bytes) -> bytes:
    """Change the tree of a JSON text, or its bytes."""
    tree = _parsed(content)
    if random.random() < 0.01:
        depth = random.choice((60, 3000, 100_000))
        return random.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth))
    if tree is None or random.random() < 0.15:
        return mutated_bytes(random, content)
    return json_text(mutated_tree(random, tree))


def mutated_state(marker: str, checksum: Callable[[Any], str]) -> Mutation:
    """Return a mutation of a state file that mostly has the right checksum."""

    def mutate(random: Random, content: bytes) -> bytes:
        tree = _parsed(content)
        if not isinstance(tree, dict) or "content" not in tree or random.random() < 0.2:
            return mutated_json(random, content)
        tree["content"] = mutated_tree(random, tree["content"])
        return json_text({marker: tree.get(marker), "sha256": checksum(tree["content"]), "content": tree["content"]})

    return mutate


def mutated_lines(random: Random, content: bytes) -> bytes:
    """Change a text of lines, each of which may be JSON."""
    lines = content.split(b"\n")
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(lines))
        kind = random.randrange(5)
        if kind == 0:
            lines.pop(place)
        elif kind == 1:
            lines.insert(place, random.choice((lines[place], b"", b"null", b"[]", b"{", b"\xff\xfe", b"\x1e")))
        elif kind == 2:
            lines[place] = mutated_bytes(random, lines[place])
        else:
            lines[place] = mutated_json(random, lines[place])
        lines = lines or [b""]
    return b"\n".join(lines)


def mutated_table(random: Random, content: bytes) -> bytes:
    """Change the cells of a table of comma-separated values."""
    if random.random() < 0.15:
        return mutated_bytes(random, content)
    rows = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(random.choice((1, 1, 2, 3))):
        row = random.choice(rows)
        kind = random.randrange(4)
        if kind == 0 and row:
            row.pop(random.randrange(len(row)))
        elif kind == 1:
            row.insert(random.randrange(len(row) + 1), random.choice((b"", b"x", b'"', b"1")))
        elif kind == 2:
            rows.insert(random.randrange(len(rows) + 1), list(row))
        elif row:
            new = str(random.choice(VALUES)).encode("utf-8", "surrogatepass")
            row[random.randrange(len(row))] = random.choice((new, b"nan", b"inf", b"-1", b"1e999", b'"'))
    return b"\n".join(b",".join(row) for row in rows)


def mutated_yaml(random: Random, content: bytes) -> bytes:
    """Change a YAML mapping as a tree, or as text."""
    try:
        tree = None if b"*" in content else yaml.safe_load(content)  # an alias may give a tree without an end
    except (yaml.YAMLError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict) or random.random() < 0.4:
        extra = (b"<<: *x\n", b"a: &x [*x]\n", b"? [a]\n: b\n", b"- a\n", b"!!python/object:os.system x\n", b"x: " * 40)
        lines = content.split(b"\n")
        lines.insert(random.randrange(len(lines) + 1), random.choice((*extra, b"[" * random.choice((5, 5000)))))
        return mutated_bytes(random, b"\n".join(lines))
    try:
        return bytes(yaml.safe_dump(mutated_tree(random, tree), allow_unicode=True).encode("utf-8", "surrogatepass"))
    except yaml.YAMLError:
        return mutated_bytes(random, content)


def mutated_words(random: Random, content: bytes) -> bytes:
    """Change a command line, a JSON list of words."""
    words = _parsed(content)
    if not isinstance(words, list):
        words = []
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(words) + 1)
        kind = random.randrange(4)
        if kind == 0 and place < len(words):
            words.pop(place)
        elif kind == 1 and place < len(words):
            words.insert(place, words[random.randrange(len(words))])
        elif kind == 2 and place < len(words):
            words[place] = str(words[place])[: random.randrange(1 + len(str(words[place])))] + random.choice(
                ("", "=", "x")
            )
        else:
            words.insert(place, str(random.choice((*VALUES, "--", "-h", "--overwrite", "--config", "-", "=", "--x=1"))))
    return json_text(words)


def mutated_arrays(random: Random, content: bytes) -> bytes:
    """Change an archive of arrays: names, shapes, dtypes, values, the JSON text of the head, and the archive itself."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            arrays: dict[str, Any] = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return mutated_bytes(random, content)
    if not arrays or random.random() < 0.15:
        return mutated_bytes(random, content)
    name = random.choice(list(arrays))
    kind = random.randrange(9)
    array = arrays[name]
    if "head" in arrays and kind < 3:
        arrays["head"] = np.array(mutated_json(random, str(arrays["head"]).encode()).decode("utf-8", "replace"))
    elif kind == 3:
        del arrays[name]
    elif kind == 4:
        arrays[random.choice((*arrays, "x", "0.x", "../x"))] = array
    elif kind == 5:
        arrays[name] = random.choice((array.reshape(-1)[:-1], array[None], array.reshape(-1)[:0], np.zeros((0, 5))))
    elif kind == 6 and array.dtype.kind == "f":
        arrays[name] = array.astype(random.choice((object, "f4", "i8", "c16", "U5", ">f8", "f2")))
    elif array.dtype.kind == "f" and array.size:
        arrays[name] = array.copy()
        arrays[name].reshape(-1)[random.randrange(array.size)] = random.choice((np.nan, np.inf, -1.0, 1e308, 0.0))
    sink = io.BytesIO()
    save = np.savez_compressed if random.random() < 0.05 else np.savez
    save(sink, **arrays)
    return sink.getvalue()


def mutated_header(random: Random, content: bytes) -> bytes:
    """Change a file that begins with the length of its JSON header, as safetensors does."""
    if len(content) < 8 or random.random() < 0.3:
        return mutated_bytes(random, content)
    (length,) = struct.unpack("<Q", content[:8])
    header = _parsed(content[8 : 8 + length]) if length < len(content) else None
    if header is None:
        return mutated_bytes(random, content)
    text = json_text(mutated_tree(random, header))
    return struct.pack("<Q", len(text) + random.choice((0, 0, 0, 0, 1, -1, 2**40))) + text + content[8 + length :]


def mutated_pickle(random: Random, content: bytes) -> bytes:
    """Change the entries of a file that torch wrote, or its bytes."""
    try:
        tree = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # noqa: BLE001 - an earlier mutation may raise anything
        tree = None
    if not isinstance(tree, dict) or random.random() < 0.2:
        return mutated_bytes(random, content)
    texts = [key for key in ("config", "generation_config") if isinstance(tree.get(key), str)]
    if texts and random.random() < 0.5:
        key = random.choice(texts)
        tree[key] = mutated_json(random, tree[key].encode()).decode("utf-8", "replace")
    else:
        weights = tree.get("state_dict")
        if isinstance(weights, dict) and weights and random.random() < 0.3:
            name = random.choice(list(weights))
            old = weights[name]
            if isinstance(old, torch.Tensor):
                weights[name] = random.choice(
                    (
                        old.reshape(-1)[1:],
                        old[None],
                        old.int(),
                        old.to_sparse(),
                        old.to("meta"),
                        old.expand(3, *old.shape),
                    )
                )
        else:
            tree = _mutated_once(random, tree)
    sink = io.BytesIO()
    torch.save(tree, sink)
    return sink.getvalue()
