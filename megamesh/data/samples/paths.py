"""The datasets that a configuration names, by their whole prefixes (rule: store/names.py)."""

import logging
from collections.abc import Mapping
from typing import Any

from megamesh.config.keys import DataConfig
from megamesh.data.store.names import existing_prefix
from megamesh.errors import DataError

log = logging.getLogger(__name__)

LISTS = tuple(f"{split}{label}_data_paths" for split in ("train", "valid", "test") for label in ("", "_label"))


def whole_prefix(key: str, name: str) -> str:
    """The prefix that is there of one of a key's names. DataError, with the key, for a name that means no dataset or several."""
    return existing_prefix(name, f"{key}: {name}")


def as_found(value: Any) -> Any:
    """Names in whatever form a configuration has them, by their whole prefixes; what means no dataset here as it is."""
    if isinstance(value, list):
        return [as_found(name) for name in value]
    if not isinstance(value, str):
        return value
    try:
        return existing_prefix(value)
    except DataError:
        return value


def same_data(before: Mapping[str, Any], now: Mapping[str, Any], key: str) -> bool:
    """Whether a key of two configurations names the same datasets, however they are spelt."""
    return key in ("data_path", *LISTS) and as_found(before.get(key)) == as_found(now.get(key))


def say_whole_prefixes(data: DataConfig) -> None:
    """Log each name that stands for another."""
    for key in ("data_path", *LISTS):
        for name in _names(getattr(data, key)):
            if as_found(name) != name:
                log.info("%s: %s is %s", key, name, as_found(name))


def _names(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []
