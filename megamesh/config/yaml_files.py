"""YAML files → one flat {key: value}, with the place of every key and every problem found on the way.

    a.yml, site.yml ──compose──▶ node trees ──▶ FlatKeys(values, places, texts, problems)

Keys are flat, `-` counts as `_`, and a key may be given once over all files. What a word of YAML means is said in yaml_values.py;
how it was spelled is kept, for keys of text. Nothing here knows which keys exist.
"""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.error import YAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from megamesh.config.yaml_values import UNREADABLE, Loader, as_written, make_node, read_value, write_nodes

COMMAND_LINE = "command line"


@dataclass
class FlatKeys:
    """What the files said, before anything is known about the keys."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """`file:line` of each key, or COMMAND_LINE."""
    nodes: dict[str, Node | None] = field(default_factory=dict)
    """Key → how its value was written, where that is known."""
    texts: dict[str, str] = field(default_factory=dict)
    """File name → text."""
    problems: list[str] = field(default_factory=list)
    unread: bool = False
    """Whether a file could not be read: what seems to be missing may stand in it."""

    def add(self, key: str, value: Any, place: str, node: Node | None = None) -> None:
        """Take one key; its second appearance is a problem that names both places."""
        key = normalise(key)
        if key in self.values:
            self.problems.append(f"{place}: {key} is given twice; the other is at {self.places[key]}: remove one")
        else:
            self.values[key], self.places[key], self.nodes[key] = value, place, node

    def rename(self, key: str, new: str) -> None:
        """Take a key as if it had been given under another name."""
        self.add(new, self.values.pop(key), self.places.pop(key), self.nodes.pop(key, None))

    def as_written(self, key: str) -> Any:
        """The words of a number, or of a list's numbers (None for its other entries), as they are spelled; else None."""
        return as_written(self.nodes.get(key))


@dataclass(frozen=True)
class Override:
    """A value from the command line, and how it was written."""

    value: Any
    node: Node | None


def normalise(key: str) -> str:
    """The spelling under which a key is known: `train-iters` is `train_iters`."""
    return key.strip().replace("-", "_")


def read_files(paths: Sequence[str | Path]) -> FlatKeys:
    """Read all files; what cannot be read is listed in `problems`."""
    flat = FlatKeys()
    seen: set[Path] = set()
    for path in map(Path, paths):
        if path.resolve() in seen:
            flat.problems.append(f"{path}: the file is given twice")
            continue
        seen.add(path.resolve())
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            flat.problems.append(_unreadable(path, error))
            flat.unread = True
            continue
        flat.texts[_free_name(path, flat.texts)] = text
        _read_text(flat, text, str(path))
    return flat


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return f"{path}: cannot be read: {error.strerror}"
    line = error.object[: error.start].count(b"\n") + 1
    return f"{path}:{line}: cannot be read: it is not UTF-8 text (byte 0x{error.object[error.start]:02x}); save it as UTF-8"


def apply_overrides(flat: FlatKeys, overrides: Mapping[str, Any]) -> None:
    """Let `overrides`, plain values or `Override`s, replace what the files say.

    null takes a key away, `optimizer.params.lr` reaches into a block.
    """
    nodes: dict[str, Node] = {}
    for path, given in overrides.items():
        key, *inner = path.split(".")
        value, node = (given.value, given.node) if isinstance(given, Override) else (given, None)
        flat.values[key] = _replaced(flat.values.get(key), inner, value)
        flat.places[key], flat.nodes[key] = COMMAND_LINE, None if inner else node
        nodes[path] = node or make_node(value)
    if overrides:
        flat.texts[_free_name(Path("overrides.yml"), flat.texts)] = write_nodes(nodes)


def _replaced(block: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of `block` with the entry at `path` replaced."""
    if not path:
        return value
    block = block if isinstance(block, Mapping) else {}
    return {**block, path[0]: _replaced(block.get(path[0]), path[1:], value)}


def parse_override(text: str) -> tuple[str, Override]:
    """`key=value` as the command line gives it → (key, value as YAML would read it); ValueError where it is not one."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{text!r} is not key=value")
    try:
        return normalise(key), Override(*read_value(value))
    except UNREADABLE as error:
        quoted = yaml.safe_dump(value.strip("\"'"), default_style='"', allow_unicode=True, width=math.inf).strip()
        raise ValueError(
            f"{key}: {value!r} is not valid YAML ({_reason(error)}); write text in YAML's quotes: {key}={shlex.quote(quoted)}"
        ) from error


def yaml_text(value: Any) -> str:
    """A value as YAML writes it on one line; text that YAML would read as something else is quoted."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and not _is_plain(value) else str(value)


def _is_plain(text: str) -> bool:
    try:
        return bool(read_value(text)[0] == text)
    except UNREADABLE:
        return False


def _read_text(flat: FlatKeys, text: str, name: str) -> None:
    loader = None
    try:
        loader = Loader(text)
        root = loader.get_single_node()
    except UNREADABLE as error:
        flat.problems.append(f"{name}{_line(error, text, loader)}: is not valid YAML: {_reason(error)}")
        flat.unread = True
        return
    if root is None:
        return
    if not isinstance(root, MappingNode):
        flat.problems.append(f"{name}: holds no keys; write one `key: value` per line")
        flat.unread = True
        return
    flat.problems += [problem for node in root.value for problem in _duplicates(node[1], name, set())]
    for key_node, value_node in root.value:
        place = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, ScalarNode):
            flat.problems.append(f"{place}: a key must be plain text")
            continue
        try:
            flat.add(key_node.value, loader.construct_object(value_node, deep=True), place, value_node)
        except UNREADABLE as error:
            where = f"{name}{_line(error, text) or f':{value_node.start_mark.line + 1}'}"
            flat.problems.append(f"{where}: {key_node.value} is not valid YAML: {_reason(error)}")
            flat.unread = True


def _duplicates(node: Node, name: str, seen: set[int]) -> Iterator[str]:
    """Keys that a nested block gives twice, which YAML itself would let the last one win; `seen`: nodes that an alias may repeat."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for child in node.value:
            yield from _duplicates(child, name, seen)
    if isinstance(node, MappingNode):
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first_lines and key != "<<":
                yield f"{name}:{line}: {key} is given twice; the other is at {name}:{first_lines[key]}: remove one"
            first_lines.setdefault(key, line)
            yield from _duplicates(value_node, name, seen)


def _free_name(path: Path, taken: Mapping[str, str]) -> str:
    """The file's name, numbered where another folder's file has the same."""
    candidates = [path.name, *(f"{path.stem}-{number}{path.suffix}" for number in range(2, len(taken) + 3))]
    return next(name for name in candidates if name not in taken)


def _line(error: Exception, text: str, loader: Loader | None = None) -> str:
    """`:3` where the error knows its place in the text, or the loader how far it has come."""
    if mark := getattr(error, "problem_mark", None):
        return f":{mark.line + 1}"
    if isinstance(error, ReaderError):
        return f":{text.count(chr(10), 0, error.position) + 1}"
    return f":{loader.line + 1}" if loader is not None and not isinstance(error, RecursionError) else ""


def _reason(error: Exception) -> str:
    if isinstance(error, ReaderError):
        return f"it holds the control character U+{error.character:04X}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, YAMLError):
        return f"it writes a character by a number that none has ({error})"
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or str(error)
