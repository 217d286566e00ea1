"""The configuration reference, generated from the sections: `python -m megamesh.config.reference examples/configs/REFERENCE.md`.

A test compares the file with what this module writes, so that it is never out of date.
"""

import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from megamesh.config.neox import IGNORED_BY_REASON, REFUSED, RENAMED
from megamesh.config.precision_blocks import LOSS_SCALE_KEYS, PRECISION_BLOCKS
from megamesh.config.sections import SECTIONS
from megamesh.config.yaml_files import yaml_text

_HEADER = """\
# Configuration reference

Written by `python -m megamesh.config.reference examples/configs/REFERENCE.md`; do not edit.

A run is one or more YAML files with flat keys: `tools/train.py model.yml site.yml`. Names, types and defaults are GPT-NeoX's
where it has the key. `-` and `_` are equal in keys, `1e-5` is a number, `null` means not given, and a key that stands twice,
in one file or in two, is an error. `--set key=value` replaces a single key. `tools/train.py --dry-run model.yml site.yml` shows
what a run would be. — in the default column: none, the key may be left out; *required*: it may not.
"""


def reference() -> str:
    """The whole reference as Markdown."""
    return "\n".join([_HEADER, *_sections(), *_neox()]) + "\n"


def _sections() -> Iterator[str]:
    for name, section in SECTIONS.items():
        yield f"## {name}\n\n{cleandoc(section.__doc__ or '')}\n\n| key | type | default | meaning |\n|---|---|---|---|"
        for key, field in section.model_fields.items():
            meaning = _cell(field.description or "").replace("*", "\\*")
            yield f"| `{key}` | {_cell(type_name(field.annotation))} | {_cell(_default(field))} | {meaning} |"
        yield ""


def _neox() -> Iterator[str]:
    yield "## GPT-NeoX keys with another name here\n\n| GPT-NeoX | here |\n|---|---|"
    yield from (f"| `{key}` | `{ours}` |" for key, ours in sorted(RENAMED.items()))
    blocks, inside = (", ".join(f"`{key}`" for key in keys) for keys in (PRECISION_BLOCKS, LOSS_SCALE_KEYS))
    yield f"| {blocks} blocks | `precision`; of an fp16 block also {inside} |\n"
    yield "## GPT-NeoX keys without meaning here\n\nAccepted at any value; one notice at start lists those given.\n"
    yield "| why | keys |\n|---|---|"
    for reason, keys in IGNORED_BY_REASON.items():
        yield f"| {reason} | {', '.join(f'`{key}`' for key in keys.split())} |"
    yield "\n## GPT-NeoX keys that are refused\n"
    yield "Accepted only where they ask for nothing: null, `{enabled: false}`, or the values listed.\n"
    yield "| key | accepted | otherwise |\n|---|---|---|"
    for key, refusal in REFUSED.items():
        yield f"| `{key}` | {', '.join(f'`{yaml_text(value)}`' for value in refusal.accepted)} | {_cell(refusal.reason)} |"


def type_name(annotation: Any) -> str:
    """A type as a reader of YAML would say it."""
    plain = {int: "whole number", float: "number", bool: "true/false", str: "text", Any: "any"}
    arguments = [part for part in get_args(annotation) if part is not type(None)]
    if annotation in plain:
        return plain[annotation]
    if get_origin(annotation) is list:
        return f"list of {type_name(arguments[0])}s" if arguments[0] is not Any else "list"
    if get_origin(annotation) is dict:
        return "block"
    if not any(isinstance(part, str) for part in arguments):
        return " or ".join(type_name(part) for part in arguments)
    return ", ".join(map(str, arguments))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True)
    return "—" if value is None else f"`{yaml_text(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
