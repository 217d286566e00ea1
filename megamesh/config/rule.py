"""A rule across keys: what it reads, and how it reports.

    @rule("hidden_size", "num_attention_heads")
    def heads_divide_hidden_size(given): yield "num_attention_heads=… (a.yml:4) does not …; use …"

A rule names every key that it reads, so that it is left out where one of them is missing or wrong. It yields one message per
problem: the keys with their values and places, and the mend.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megamesh.config.sections import SECTIONS, RunConfig
from megamesh.config.yaml_files import yaml_text

Check = Callable[["Given"], Iterator[str]]


@dataclass(frozen=True)
class Given:
    """The configuration that a rule looks at, and where its keys were written."""

    run: RunConfig
    places: Mapping[str, str]

    def has(self, key: str) -> bool:
        """Whether a file or the command line gives the key a value."""
        return key in self.places and self.value(key) is not None

    def value(self, key: str) -> Any:
        for name, section in SECTIONS.items():
            if key in section.model_fields:
                return getattr(getattr(self.run, name), key)
        raise KeyError(key)

    def show(self, key: str) -> str:
        """`hidden_size=512 (a.yml:4)`, or `(default)` for the place."""
        return f"{key}={show_value(self.value(key))} ({self.places.get(key, 'default')})"


@dataclass(frozen=True)
class Rule:
    """A check and the keys that it reads; `for_training` rules ask for what only a training run needs."""

    check: Check
    keys: tuple[str, ...]
    for_training: bool = False


def rule(*keys: str, for_training: bool = False) -> Callable[[Check], Rule]:
    """Make a generator of messages a Rule."""
    return lambda check: Rule(check, keys, for_training)


def show_value(value: Any) -> str:
    """A value as YAML would show it, cut where it is long."""
    text = yaml_text(value)
    return text if len(text) <= 60 else text[:57] + "..."


def either(values: list[int]) -> str:
    """`1, 2 or 4`; of many values the ends."""
    shown = list(map(str, values if len(values) <= 8 else [*values[:4], "…", *values[-3:]]))
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def divisors(number: int, largest: int = 4096) -> list[int]:
    """The divisors of a number up to `largest`, which is more than any count of heads."""
    return [candidate for candidate in range(1, min(number, largest) + 1) if number % candidate == 0]
