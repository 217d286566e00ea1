"""Which recursion schemes there are, and where each is described. Nothing else knows them by name.

    recursion_scheme: mesh                  ──BUILT_IN──▶ megamesh.model.recursion.schemes.mesh:Mesh ┐
    recursion_scheme: residual+anchor       ──BUILT_IN──▶ megamesh.model.recursion.schemes.sums:Sum  ├─importlib─▶ the class, checked
    recursion_scheme: my_package.my_module:Mine ────────▶ my_package.my_module:Mine                  ┘

A scheme is one class, which answers for all that it is: see megamesh/model/recursion/scheme.py. Those of a user come in by the same door as
ours. A class is imported when it is first asked, so that a plain model's configuration loads without one.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Protocol

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from megamesh.config.keys import RecursionConfig, Section
from megamesh.config.own_code import import_own
from megamesh.errors import ConfigError

_OURS = "megamesh.model.recursion.schemes"
_CLASS = re.compile(r"\w+(\.\w+)*:\w+")
_BASE = "megamesh.model.recursion.scheme"
PLAIN = "base"
"""Plain recursion, which other schemes are compared with and upcycled ones start near."""
SUM_TERMS = ("residual", "anchor", "anchor*")
"""Schemes that add a state to the core's output, and that may be added together."""
BUILT_IN: dict[str, str] = {
    **dict.fromkeys((PLAIN, *SUM_TERMS), f"{_OURS}.sums:Sum"),
    **dict.fromkeys(("static", "dynamic"), f"{_OURS}.mix:Mix"),
    "mesh": f"{_OURS}.mesh:Mesh",
}


class ConfiguredScheme(Protocol):
    """What the configuration asks of a scheme."""

    keys: ClassVar[tuple[str, ...]]
    start_keys: ClassVar[tuple[str, ...]]

    @property
    def divides_tokens(self) -> bool: ...

    def problems(self, show: Callable[[str], str]) -> Iterator[str]: ...


def names() -> tuple[str, ...]:
    """The built-in schemes; some of them may be added together (`SUM_TERMS`)."""
    return tuple(BUILT_IN)


def parse_scheme(text: str) -> tuple[str, ...]:
    """The terms of a scheme in a fixed order: `mesh` → ("mesh",), `anchor+residual` → ("residual", "anchor"); else ConfigError.

    The name of a user's class, `module:Class`, is a single term.
    """
    if is_own(text):
        if not _CLASS.fullmatch(text.strip()):
            raise ConfigError(
                f"recursion_scheme={text!r} is not module:Class; write it as my_package.my_module:MyScheme"
            )
        return (text.strip(),)
    terms = text.replace(" ", "").split("+")
    unknown = [term for term in terms if term not in BUILT_IN]
    if unknown:
        raise ConfigError(
            f"recursion_scheme={text!r}: {unknown[0]!r} is not a scheme; "
            f"write {', '.join(BUILT_IN)}, a sum of {', '.join(SUM_TERMS)} such as residual+anchor, or a class of your own as module:Class"
        )
    alone = [term for term in terms if term not in SUM_TERMS]
    if len(terms) > 1 and alone:
        raise ConfigError(
            f"recursion_scheme={text!r}: {alone[0]} cannot be part of a sum; only {', '.join(SUM_TERMS)} can"
        )
    if len(set(terms)) != len(terms):
        raise ConfigError(f"recursion_scheme={text!r} names a term twice; name each once")
    return tuple(term for term in BUILT_IN if term in terms)


def is_own(text: str) -> bool:
    """Whether a scheme is named by a class, and so not one of ours."""
    return ":" in text


def scheme_class(text: str) -> type[Any]:
    """The class that describes a scheme. ConfigError where there is none, or it answers too little."""
    (first, *_) = parse_scheme(text)
    return _load(BUILT_IN.get(first, first))


def describe(recursion: RecursionConfig) -> ConfiguredScheme:
    """The configured scheme, to be asked. ConfigError where there is none, or recursion_scheme_params are not its own."""
    described: ConfiguredScheme = scheme_class(recursion.recursion_scheme)(recursion)
    return described


def read_params(recursion: RecursionConfig, kind: type[Section]) -> Section:
    """`recursion_scheme_params` as what the scheme declares; ConfigError for what is unknown, missing or of another type."""
    try:
        return kind.model_validate(recursion.recursion_scheme_params or {})
    except ValidationError as invalid:
        known = ", ".join(kind.model_fields) or "none"
        raise ConfigError(
            [
                f"recursion_scheme_params: {'.'.join(map(str, error['loc']))} {_reason(error)}; "
                f"{recursion.recursion_scheme} has these: {known}"
                for error in invalid.errors(include_url=False)
            ]
        ) from invalid


def _reason(error: ErrorDetails) -> str:
    return "is not known" if error["type"] == "extra_forbidden" else f"is wrong: {error['msg']}"


def with_params(recursion: RecursionConfig) -> RecursionConfig:
    """The same with `recursion_scheme_params` whole, defaults included, as checkpoints record them. ConfigError as in `read_params`."""
    if recursion.recursion is None:
        return recursion
    kind = scheme_class(recursion.recursion_scheme).Params
    params = read_params(recursion, kind).model_dump(mode="json") if kind.model_fields else None
    return recursion.model_copy(update={"recursion_scheme_params": params})


def keys_of_start() -> set[str]:
    """Keys of the built-in schemes that trained weights do not depend on, or whose resolved value shows in the weights' shapes."""
    return {key for path in BUILT_IN.values() for key in _load(path).start_keys}


@cache
def _load(path: str) -> type[Any]:
    """The class at `module:Class`, complete."""
    shown = f"recursion_scheme={path}"
    module, found = import_own(path, shown)
    if found is None:
        raise ConfigError(f"{shown}: {module.__name__} has no {path.partition(':')[2]!r}; name a class that is there")
    base: type = import_module(_BASE).Scheme
    if not isinstance(found, type) or not issubclass(found, base):
        raise ConfigError(f"{shown} is not a scheme; derive the class from {_BASE}.Scheme")
    scheme: Any = found
    if lacking := sorted(scheme.__abstractmethods__):
        raise ConfigError(f"{shown} answers too little: it lacks {', '.join(lacking)} (see {_BASE}.Scheme)")
    if unknown := [key for key in (*scheme.keys, *scheme.start_keys) if key not in RecursionConfig.model_fields]:
        raise ConfigError(f"{shown} reads {unknown[0]}, which is no key; keys of its own belong into its Params")
    if not issubclass(scheme.Params, Section):
        raise ConfigError(
            f"{shown}: its Params must derive from megamesh.config.keys.Section, which refuses unknown keys"
        )
    return found
