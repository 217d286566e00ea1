"""What a plain word of YAML is: a number, a switch, or text.

    1e-5, 1_000.5, .inf ─▶ number      0x1F, 010, 12:30:00 ─▶ whole number, as in YAML 1.1      yes, off, true ─▶ switch
    0.95,0.05,0   10.0.0.1   1.4b-mesh   2024-01-05   1e3/data   =   << ─▶ text

Contract: PyYAML's answer, except that a number may have an exponent without a dot, and that a date is text, which no key here takes
for anything else. Whatever a constructor cannot do is a YAMLError that knows its line.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import Node, ScalarNode, SequenceNode

TAG = "tag:yaml.org,2002:"
WRITTEN_OTHERWISE = (f"{TAG}int", f"{TAG}float")
"""Tags of plain words that are not text, but that a key of text takes as they are spelled."""
_REPLACED = (f"{TAG}float", f"{TAG}timestamp")
UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, OverflowError)
"""What reading YAML may raise; the last two come of numbered characters that do not exist, such as "\\UFFFFFFFF"."""
# PyYAML looks for a match at the start of a word only: the end must be in the pattern.
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:e[-+]?[0-9]+)?|\.[0-9][0-9_]*(?:e[-+]?[0-9]+)?|[0-9][0-9_]*e[-+]?[0-9]+|\.inf)|\.nan)\Z",
    re.IGNORECASE,
)


class Loader(yaml.SafeLoader):
    """SafeLoader that reads every spelling of a floating-point number that Python reads, and dates as text."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            if isinstance(node, ScalarNode) and self.resolve(ScalarNode, node.value, (True, False)) == node.tag:
                return node.value  # such as 0x_ or a million digits: a word that only looks like a number
            kind = str(node.tag).removeprefix(TAG)
            problem = f"{_shown(node)} cannot be read as {kind}; write text in quotes"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def _as_text(loader: Loader, node: ScalarNode) -> str:
    return str(loader.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Writes without quotes what `Loader` reads as the same."""


_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {first: list(resolvers) for first, resolvers in _RESOLVERS.items()}
    _kind.add_implicit_resolver(f"{TAG}float", _FLOAT, list("-+0123456789."))
# `=` and `<<` mean something as keys; as values they are text.
Loader.add_constructor(f"{TAG}value", _as_text)
Loader.add_constructor(f"{TAG}merge", _as_text)


def read_value(text: str) -> tuple[Any, Node | None]:
    """A value, and its node (None where the text holds nothing). Raises one of UNREADABLE."""
    loader = Loader(text)
    node = loader.get_single_node()
    return (None if node is None else loader.construct_object(node, deep=True)), node


def as_written(node: Node | None) -> Any:
    """The words of a number, or of a list: what a key of text makes of them. None for what is neither, and for words that are text."""
    if isinstance(node, SequenceNode):
        return [as_written(child) for child in node.value]
    plain = isinstance(node, ScalarNode) and node.style is None and node.tag in WRITTEN_OTHERWISE
    return node.value if plain and node is not None else None


def write_nodes(entries: Mapping[str, Node]) -> str:
    """A YAML file of keys and nodes, each word spelled as it was."""
    pairs = [(ScalarNode(f"{TAG}str", key), node) for key, node in entries.items()]
    return str(yaml.serialize(yaml.MappingNode(f"{TAG}map", pairs, flow_style=False), Dumper=_Dumper))


def make_node(value: Any) -> Node:
    """The node of a plain Python value."""
    return _Nodes().represent_data(value)


class _Nodes(yaml.representer.SafeRepresenter):
    """Values to nodes, without a stream to write them to."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _shown(node: Node) -> str:
    text = str(node.value) if isinstance(node, ScalarNode) else "this block"
    return repr(text if len(text) <= 60 else text[:57] + "...")
