"""Lines of JSON → texts.

    [line, …] ─▶ all at once where every line is an object with text ─▶ Found
              └▶ line by line otherwise, each a record or a bad one

orjson parses where it is installed. What it refuses is given to the standard library, so that both accept the same lines (NaN, integers of
any size, half a surrogate pair in a key that is not read). Blank lines are not records. A line ends with \\n or \\r\\n.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from megamesh.data.sources.found import Found, ReadOptions

_MOST_KEYS_NAMED = 20


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # more digits than Python converts
        return float(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def _standard_loads(line: bytes) -> Any:
    return _DECODER.decode(line.decode())  # json.loads would guess the encoding, and take half a surrogate pair


try:
    import orjson

    _fast_loads: Callable[[bytes], Any] = orjson.loads
except ImportError:
    _fast_loads = _standard_loads


class BadValueError(Exception):
    """(reason, message) of a record that gives no text."""


def add_lines(found: Found, lines: Sequence[bytes | None]) -> None:
    """Add one record for every line that is not blank; None is a line that is too long."""
    found.size += sum(len(line) for line in lines if line is not None)
    if not _add_at_once(found, lines):
        for line in lines:
            _add_line(found, line)


def _add_at_once(found: Found, lines: Sequence[bytes | None]) -> bool:
    """The usual case: every line is an object with text under every key. Changes nothing where one is not."""
    if None in lines:
        return False
    try:
        records = [_fast_loads(line) for line in lines]  # type: ignore[arg-type]  # no line is None
        columns = [[record[key] for record in records] for key in found.options.keys]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    if any(set(map(type, texts)) != {str} for texts in columns):
        return False
    if _fast_loads is _standard_loads and not all(map(_is_sound, columns)):
        return False
    for values, texts in zip(found.values, columns, strict=True):
        values.extend(texts)
    found.line += len(lines)
    return True


def _is_sound(texts: Sequence[str]) -> bool:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _add_line(found: Found, line: bytes | None) -> None:
    if line is None:
        found.add_bad("too-long", found.too_long)
    elif not line.strip():
        found.line += 1
    else:
        try:
            record = parse_values(_parse(line), found.options)
        except BadValueError as error:
            found.add_bad(*error.args)
        else:
            found.add_values(record)


def _parse(line: bytes) -> Any:
    try:
        return _fast_loads(line)
    except (ValueError, RecursionError):
        pass
    try:
        return _standard_loads(line)
    except UnicodeDecodeError as error:
        raise BadValueError("bad-utf-8", f"not UTF-8 ({error.reason} at byte {error.start} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise BadValueError("bad-json", f"not JSON ({error})") from error


def parse_values(record: Any, options: ReadOptions) -> list[Any]:
    """The value under every key, checked. Raises BadValueError."""
    if not isinstance(record, dict):
        raise BadValueError(
            "not-an-object", f"{_named(record)} instead of a JSON object with {', '.join(options.keys)}"
        )
    values = []
    for key in options.keys:
        if key not in record:
            names = list(map(repr, record))
            more = ", …" if len(names) > _MOST_KEYS_NAMED else ""
            found = ", ".join(names[:_MOST_KEYS_NAMED]) or "none"
            raise BadValueError("missing-key", f"no key {key!r}; found {found}{more}; {options.mend}")
        values.append(checked_value(record[key], key, options))
    return values


def checked_value(value: Any, key: str, options: ReadOptions) -> Any:
    """The text, or where the options say so the conversation, that stands under a key. Raises BadValueError."""
    if options.join_paragraphs and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n\n".join(value)
    if isinstance(value, str) and not options.messages:
        _check_surrogates(value, key)
    elif options.messages and isinstance(value, list) and all(isinstance(part, dict) for part in value):
        _check_surrogates(json.dumps(value, ensure_ascii=False, default=str), key)
        for number, message in enumerate(value, start=1):
            _check_message(message, number, key)
    elif value is None:
        raise BadValueError("null", f"{key!r} is null instead of text")
    else:
        wanted = "a list of messages, objects with role and content" if options.messages else "text"
        raise BadValueError("not-a-string", f"{key!r} is {_named(value)} instead of {wanted}")
    return value


def _check_message(message: dict[str, Any], number: int, key: str) -> None:
    """Raise BadValueError unless a message has a role and text; one that calls tools needs no text."""
    for part in ("role", "content"):
        calls = part == "content" and message.get("tool_calls") and message.get(part) is None
        if not calls and not isinstance(message.get(part), str):
            found = f"its {part} is {_named(message[part])} instead of text" if part in message else f"it has no {part}"
            raise BadValueError("bad-message", f"{key!r}, message {number}: {found}")


def _check_surrogates(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValueError(
            "surrogate", f"{key!r} holds half of a surrogate pair at character {error.start}"
        ) from error


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null", str: "a string"}
    return names.get(type(value), "a number")
