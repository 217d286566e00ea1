"""YAML files → one flat {key: value}, with the place of every key and every problem found on the way.

    a.yml, site.yml ──compose──▶ node trees ──▶ FlatKeys(values, places, texts, problems)

Keys are flat, `-` counts as `_`, and a key may be given once over all files. `1e-5` is a number (YAML 1.1 reads it as text).
Nothing here knows which keys exist.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

COMMAND_LINE = "command line"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads every spelling of a floating-point number that Python reads."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:\d[\d_]*\.\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|\d[\d_]*e[-+]?\d+|\.inf)|\.nan", re.IGNORECASE
    ),
    list("-+0123456789."),
)


@dataclass
class FlatKeys:
    """What the files said, before anything is known about the keys."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """`file:line` of each key, or COMMAND_LINE."""
    texts: dict[str, str] = field(default_factory=dict)
    """File name → text."""
    problems: list[str] = field(default_factory=list)
    unread: bool = False
    """Whether a file could not be read: what seems to be missing may stand in it."""

    def add(self, key: str, value: Any, place: str) -> None:
        """Take one key; its second appearance is a problem that names both places."""
        key = normalise(key)
        if key in self.values:
            self.problems.append(f"{place}: {key} is given twice; the other is at {self.places[key]}: remove one")
        else:
            self.values[key], self.places[key] = value, place


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
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            flat.problems.append(f"{path}: cannot be read: {reason}")
            flat.unread = True
            continue
        flat.texts[_free_name(path, flat.texts)] = text
        _read_text(flat, text, str(path))
    return flat


def apply_overrides(flat: FlatKeys, overrides: Mapping[str, Any]) -> None:
    """Let `overrides` replace what the files say; null takes a key away, `optimizer.params.lr` reaches into a block."""
    for path, value in overrides.items():
        key, *inner = path.split(".")
        flat.values[key] = _replaced(flat.values.get(key), inner, value)
        flat.places[key] = COMMAND_LINE
    if overrides:
        flat.texts[_free_name(Path("overrides.yml"), flat.texts)] = yaml.safe_dump(dict(overrides), sort_keys=False)


def _replaced(block: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of `block` with the entry at `path` replaced."""
    if not path:
        return value
    block = block if isinstance(block, Mapping) else {}
    return {**block, path[0]: _replaced(block.get(path[0]), path[1:], value)}


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` as the command line gives it → (key, value as YAML would read it); ValueError where it is not one."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{text!r} is not key=value")
    try:
        return normalise(key), yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r}: the value is not YAML ({_reason(error)})") from error


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
        return bool(yaml.load(text, _Loader) == text)
    except yaml.YAMLError:
        return False


def _read_text(flat: FlatKeys, text: str, name: str) -> None:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return
        if not isinstance(root, MappingNode):
            flat.problems.append(f"{name}: holds no keys; write one `key: value` per line")
            flat.unread = True
            return
        flat.problems += [problem for node in root.value for problem in _duplicates(node[1], name)]
        for key_node, value_node in root.value:
            place = f"{name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, ScalarNode):
                flat.problems.append(f"{place}: a key must be plain text")
                continue
            flat.add(key_node.value, loader.construct_object(value_node, deep=True), place)
    except (yaml.YAMLError, RecursionError) as error:
        flat.problems.append(f"{name}{_line(error, text)}: is not valid YAML: {_reason(error)}")
        flat.unread = True


def _duplicates(node: Node, name: str) -> Iterator[str]:
    """Keys that a nested block gives twice, which YAML itself would let the last one win."""
    if isinstance(node, SequenceNode):
        for child in node.value:
            yield from _duplicates(child, name)
    if isinstance(node, MappingNode):
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first_lines and key != "<<":
                yield f"{name}:{line}: {key} is given twice; the other is at {name}:{first_lines[key]}: remove one"
            first_lines.setdefault(key, line)
            yield from _duplicates(value_node, name)


def _free_name(path: Path, taken: Mapping[str, str]) -> str:
    """The file's name, numbered where another folder's file has the same."""
    candidates = [path.name, *(f"{path.stem}-{number}{path.suffix}" for number in range(2, len(taken) + 3))]
    return next(name for name in candidates if name not in taken)


def _line(error: Exception, text: str) -> str:
    """`:3` where the error knows its place in the text."""
    if mark := getattr(error, "problem_mark", None):
        return f":{mark.line + 1}"
    return f":{text.count(chr(10), 0, error.position) + 1}" if isinstance(error, ReaderError) else ""


def _reason(error: Exception) -> str:
    if isinstance(error, ReaderError):
        return f"it holds the control character U+{error.character:04X}"
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or str(error)
