"""Text in, text out: prompts as strings, and a stream of tokens as pieces of text."""

from collections.abc import Iterable, Iterator

from megamesh.errors import DataError
from megamesh.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"  # what a decoder writes for the first bytes of a character whose rest is still to come


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a prompt; an empty one becomes the end-of-document token, after which a new document begins.

    Raises DataError for bytes from the terminal or the command line that were not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the prompt {text!r} is not UTF-8 text; write it in UTF-8") from error
    return tokenizer.encode(text) or [tokenizer.eod_id]


def decode_continuation(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> str:
    """The text that `tokens` add to the prompt. Decoded with the prompt: a tokenizer may drop a space at the start of a text."""
    before = tokenizer.decode(prompt)
    text = tokenizer.decode([*prompt, *tokens])
    return text[len(before) :] if text.startswith(before) else tokenizer.decode(tokens)


def decode_stream(tokenizer: Tokenizer, prompt: list[int], tokens: Iterable[int]) -> Iterator[str]:
    """Pieces of text as tokens arrive; together they are what `decode_continuation` gives. Half a character is held back."""
    seen: list[int] = []
    shown = ""
    for token in tokens:
        seen.append(token)
        text = decode_continuation(tokenizer, prompt, seen)
        if text.startswith(shown) and not text.endswith(INCOMPLETE) and text != shown:
            yield text[len(shown) :]
            shown = text
    rest = decode_continuation(tokenizer, prompt, seen)
    if rest.startswith(shown) and rest != shown:
        yield rest[len(shown) :]
