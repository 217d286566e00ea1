"""Prompts and streams of text."""

import pytest

from megamesh.errors import DataError
from megamesh.generation.text import decode_continuation, decode_stream, encode_prompt


class Bytes:
    """A tokenizer whose tokens are bytes, so that one character may take several; it drops a space at the start of a text."""

    eod_id = 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids) -> str:
        return bytes(ids).decode(errors="replace").removeprefix(" ")


def test_an_empty_prompt_starts_a_document() -> None:
    assert encode_prompt(Bytes(), "") == [0]
    assert encode_prompt(Bytes(), "ab") == [97, 98]


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        encode_prompt(Bytes(), b"a\xff".decode(errors="surrogateescape"))


def test_the_first_space_of_a_continuation_is_kept() -> None:
    assert decode_continuation(Bytes(), [97], [32, 98]) == " b"


def test_a_stream_shows_whole_characters_and_all_of_the_text() -> None:
    text = " é, 字 and 🙂"
    pieces = list(decode_stream(Bytes(), [97], Bytes().encode(text)))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) and len(pieces) > 5
    cut = Bytes().encode("a字")[:-1]
    assert "".join(decode_stream(Bytes(), [97], cut)) == "a\ufffd"
