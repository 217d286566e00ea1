"""YAML files → one validated `RunConfig`, or one error that lists every problem.

    files ──yaml_files──▶ flat keys ──┬─ ours ──▶ sections (types, ranges) ──▶ checks.py (rules across sections) ──▶ RunConfig
                 overrides ──▶────────┼─ NeoX's: renamed, ignored (one notice) or refused (neox.py); fp16, bf16 (precision_blocks.py)
                                      └─ anything else: a problem that names the nearest known key

Problems never hide each other: a rule is left out only where a key that it reads is itself wrong. Nothing but the YAML files is
read, and no process group is needed.
"""

import difflib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from yaml.nodes import ScalarNode

from megamesh.config.checks import check_complete, check_rules
from megamesh.config.keys import Section
from megamesh.config.neox import IGNORED, REFUSED, RENAMED
from megamesh.config.other_spellings import meant
from megamesh.config.precision_blocks import PRECISION_BLOCKS, choose_precision, keys_without_effect
from megamesh.config.rule import Given, show_value
from megamesh.config.schemes import with_params
from megamesh.config.sections import SECTIONS, RunConfig
from megamesh.config.yaml_files import FlatKeys, apply_overrides, normalise, read_files, yaml_text
from megamesh.errors import ConfigError

log = logging.getLogger(__name__)

SECTION_OF: dict[str, str] = {key: name for name, section in SECTIONS.items() for key in section.model_fields}
"""Key → name of the section that it belongs to."""

_REASONS = {
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is not true or false",
    "string_type": "is not text",
    "list_type": "is not a list",
    "dict_type": "is not a block of keys",
    "finite_number": "is not a finite number",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
}


@dataclass(frozen=True)
class LoadedConfig:
    """A run's configuration, and where it came from."""

    run: RunConfig
    sources: dict[str, str]
    """File name → YAML text (and `overrides.yml`), stored with checkpoints."""
    ignored_keys: list[str]
    """GPT-NeoX keys that were given and have no meaning here."""
    places: dict[str, str]
    """Key → `file:line`, for every key that was given."""
    missing: list[str]
    """What a training run would need and is not said; empty where the configuration was loaded for training."""


def load_config(
    paths: Sequence[str | Path], overrides: Mapping[str, Any] | None = None, *, for_training: bool = True
) -> LoadedConfig:
    """Read, merge and validate YAML files; `overrides` replace single keys (the command line's `--set`).

    With `for_training` False a configuration without batch size, length or data is accepted too, enough to count a model;
    what is missing is listed.
    Raises ConfigError with all problems, each with its file and line.
    """
    flat = read_files(paths)
    _rename(flat)
    overrides = {RENAMED.get(normalise(key), normalise(key)): value for key, value in (overrides or {}).items()}
    apply_overrides(flat, overrides)
    choose_precision(flat, overrides.keys())
    values, ignored = _sort_keys(flat)
    ignored += keys_without_effect(flat)
    sections: dict[str, Any] = {}
    bad_keys: set[str] = set()
    for name, section in SECTIONS.items():
        sections[name] = _build_section(section, values[name], flat, bad_keys)
    run = RunConfig.model_construct(**sections)
    given = Given(run, {key: place for key, place in flat.places.items() if flat.values.get(key) is not None})
    missing = check_complete(given, bad_keys)
    flat.problems += check_rules(given, bad_keys) + (missing if for_training and not flat.unread else [])
    if flat.problems:
        raise ConfigError(flat.problems)
    run = run.model_copy(update={"recursion": with_params(run.recursion)})
    if ignored:
        log.info("GPT-NeoX keys without meaning here: %s", ", ".join(ignored))
    if run.model.gated and run.model.intermediate_size is None:
        log.info("intermediate_size is not given: the gated MLP is %d wide; GPT-NeoX builds half", run.model.mlp_width)
    return LoadedConfig(run, flat.texts, ignored, flat.places, missing)


def load_text(text: str, name: str, *, for_training: bool = True) -> LoadedConfig:
    """The same of one file's text, as if it were in a file of this name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        try:
            return load_config([path], for_training=for_training)
        except ConfigError as error:
            raise ConfigError([problem.replace(f"{folder}/", "") for problem in error.problems]) from error


def _rename(flat: FlatKeys) -> None:
    """Give NeoX's other spellings the name of the key that they mean."""
    for key in [key for key in flat.values if key in RENAMED]:
        flat.rename(key, RENAMED[key])


def _sort_keys(flat: FlatKeys) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Values by section, and the ignored keys; keys that are unknown or refused become problems."""
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    ignored: list[str] = []
    for key, value in flat.values.items():
        if key in SECTION_OF:
            if value is not None:
                values[SECTION_OF[key]][key] = value
        elif key in IGNORED:
            ignored.append(key)
        elif key in REFUSED:
            if not REFUSED[key].accepts(value):
                flat.problems.append(f"{flat.places[key]}: {key}={show_value(value)}: {REFUSED[key].reason}")
        else:
            hint = meant(key, value, flat.places[key]) or _nearest(key)
            flat.problems.append(f"{flat.places[key]}: {key} is not a known key; {hint}")
    return values, ignored


def _nearest(key: str) -> str:
    """The nearest key of ours, by spelling or because it contains the word; else the nearest of the keys that NeoX knows."""
    other = [*RENAMED, *IGNORED, *REFUSED, *PRECISION_BLOCKS]
    nearest = (
        difflib.get_close_matches(key, SECTION_OF, n=1, cutoff=0.6)
        or [known for known in SECTION_OF if f"_{key}_" in f"_{known}_"]
        or difflib.get_close_matches(key, other, n=1, cutoff=0.7)
    )
    return f"did you mean {nearest[0]}?" if nearest else "examples/configs/REFERENCE.md lists all keys"


def _build_section(section: type[Section], values: dict[str, Any], flat: FlatKeys, bad_keys: set[str]) -> Section:
    """Validate one section; wrong keys are reported, added to `bad_keys` and left at their defaults."""
    values = {key: _as_text(section, key, _whole(section, key, value), flat) for key, value in values.items()}
    try:
        return section.model_validate(values, strict=True)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            key = str(error["loc"][0])
            if error["type"] != "missing" or not flat.unread:
                flat.problems.append(_problem(section, key, values.get(key), error, flat))
            bad_keys.add(key)
    return section.model_construct(**{key: value for key, value in values.items() if key not in bad_keys})


def _whole(section: type[Section], key: str, value: Any) -> Any:
    """`1e5` as the whole number that a count needs."""
    if isinstance(value, list):
        return [_whole(section, key, entry) for entry in value]
    annotation = section.model_fields[key].annotation
    counts = int in (annotation, *get_args(annotation)) and float not in (annotation, *get_args(annotation))
    return int(value) if counts and isinstance(value, float) and value.is_integer() else value


def _as_text(section: type[Section], key: str, value: Any, flat: FlatKeys) -> Any:
    """`save: 1.50` as the text that a key of text needs: what was written, not what YAML makes of it."""
    annotation, words = section.model_fields[key].annotation, flat.as_written(key)
    kinds = (annotation, *get_args(annotation))
    if str in kinds and isinstance(words, str):
        return words
    if list[str] in kinds and isinstance(value, list) and isinstance(words, list):
        return [entry if word is None else word for entry, word in zip(value, words, strict=True)]
    return value


def _problem(section: type[Section], key: str, value: Any, error: ErrorDetails, flat: FlatKeys) -> str:
    if error["type"] == "missing":
        description = section.model_fields[key].description
        return f"{key} is missing and has no default: {description}"
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        reason = f"is not one of {', '.join(map(str, _choices(section, key)))}"
    else:
        reason = _REASONS.get(error["type"], error["msg"]).format(**context)
    where = "".join(f"[{part}]" for part in error["loc"][1:])
    shown = error["input"] if where else value
    node = None if where else flat.nodes.get(key)
    quotes = _about_quotes(error["type"], shown, node.value if isinstance(node, ScalarNode) else yaml_text(shown))
    return (
        f"{flat.places[key]}: {key}{where}={show_value(shown)} {reason}{quotes or _about_lists(error['type'], shown)}"
    )


def _about_lists(kind: str, value: Any) -> str:
    """The mend where a single value stands for a list of one, or a list for the text that joins its values."""
    if kind == "list_type" and not isinstance(value, dict):
        return f"; write {yaml_text([value])}"
    if kind == "string_type" and isinstance(value, list) and all(type(part) in (str, int, float) for part in value):
        return f"; write {yaml_text(','.join(map(str, value)))}"
    return ""


def _about_quotes(kind: str, value: Any, written: str) -> str:
    """The mend where quotes too many, or too few, made a value something else than what is `written`."""
    if kind == "string_type" and isinstance(value, bool):
        return f' (YAML reads a switch; write it in quotes: "{written}")'
    numbers = ("int_type", "float_type", "bool_type")
    return " (write it without quotes)" if kind in numbers and _reads_otherwise(value) else ""


def _reads_otherwise(value: Any) -> bool:
    return isinstance(value, str) and yaml_text(value) != value


def _choices(section: type[Section], key: str) -> list[Any]:
    """The values of a Literal field."""
    annotation = section.model_fields[key].annotation
    nested = [get_args(part) or (part,) for part in get_args(annotation)]
    return [choice for group in nested for choice in group if choice is not type(None)]
