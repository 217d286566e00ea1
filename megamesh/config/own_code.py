"""Code of users that a key names as `module:name`: how it is imported, and how what it raises is told.

recursion_scheme: my_schemes:Mine ─┐
hooks: [my_hooks:Watch] ───────────┴─ import_own ──▶ the module, and what has that name in it
"""

import importlib
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from megamesh.errors import ConfigError


def import_own(entry: str, shown: str) -> tuple[ModuleType, Any]:
    """The module of `module:name` and what is there under the name, None for nothing.

    `shown` begins the message of the ConfigError, where the module cannot be imported.
    """
    module_name, _, name = entry.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        mend = "put its folder on PYTHONPATH, or correct the name" if missing else "mend the module"
        raise ConfigError(f"{shown} cannot be imported: {tell_error(error)}; {mend}") from error
    return module, getattr(module, name, None)


def tell_error(error: Exception, file: str | None = None) -> str:
    """The error in one line, with its place: the last line of `file` on the way to it, where there is one."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _imports(frame.filename)]
    if not frames:
        return text
    place = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return f"{text} ({Path(place.filename).name}:{place.lineno})"


def _imports(file: str) -> bool:
    """Whether it is code that imports, in which an error has no place that says anything."""
    return file.startswith("<frozen ") or file in (importlib.__file__, __file__)
