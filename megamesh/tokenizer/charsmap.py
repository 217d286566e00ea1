"""What a sentencepiece normaliser replaces: the rules in `precompiled_charsmap`, and texts that show whether another program obeys them.

    bytes ─▶ size, double-array trie (darts-clone), replacements ─▶ {key: replacement} ─▶ probe texts

sentencepiece replaces, from left to right, the longest key that the rest of the text begins with. nmt_nfkc, the default of spm_train, has
some 225,000 keys; most are sequences that compose (`e` + U+0301, three Hangul letters).
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from megamesh.errors import DataError

LABEL = np.uint32(0xFF)
LEAF = 1 << 31
HAS_LEAF = 1 << 8
MARKS = ("\u0301", "\u0323", "\u3099", "\u200d", "\ufe0f")  # they join a character before them to one grapheme
KEYS_IN_A_TEXT = 50


def replacements(charsmap: bytes) -> dict[str, str]:
    """The rules: key → what stands for it. DataError where the bytes are not a trie of sentencepiece's."""
    try:
        size = int.from_bytes(charsmap[:4], "little")
        units = np.frombuffer(charsmap[4 : 4 + size], "<u4")
        replaced = charsmap[4 + size :]
        return {
            key.decode("utf-8"): replaced[start : replaced.index(b"\0", start)].decode("utf-8")
            for key, start in _entries(units)
        }
    except (ValueError, IndexError) as error:
        raise DataError(f"the model's precompiled_charsmap cannot be read ({error}); train the model again") from error


def _entries(units: np.ndarray) -> Iterator[tuple[bytes, int]]:
    """Keys of the trie and their values. A unit's label says by which byte it is reached: it lies at `parent's base ^ byte`."""
    labels = units & LABEL
    inner = np.flatnonzero((units < LEAF) & (labels > 0))
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for place, label in zip(inner.tolist(), labels[inner].tolist(), strict=True):
        children[place ^ label].append((place, label))
    table = units.tolist()
    waiting = [(0, b"")]
    while waiting:
        place, key = waiting.pop()
        unit = table[place]
        base = place ^ (unit >> 10 << ((unit & 0x200) >> 6))
        if unit & HAS_LEAF and key:
            yield key, table[base] & (LEAF - 1)
        waiting += [(child, key + bytes([label])) for child, label in children.get(base, ())]


def probe_texts(keys: Iterable[str]) -> Iterator[str]:
    """Texts that hold every key: single characters alone, and followed by marks; all of them between letters; then strings of keys.

    What differs first in practice (sequences, marks behind a replaced character) comes first, so that a refusal is quick.
    """
    ordered = sorted(keys)
    singles = [key for key in ordered if len(key) == 1]
    longer = [key for key in ordered if len(key) > 1]
    draw = random.Random(0)
    yield from _strung(draw.sample(longer, min(len(longer), 2000)), " ")
    yield from _strung([key + mark for key in singles for mark in MARKS], "a")
    yield from _strung(ordered, "a")
    yield from _strung(ordered, " ")
    yield from singles
    for _ in range(300):
        yield "".join(draw.choice(singles or ordered) + draw.choice(ordered) for _ in range(KEYS_IN_A_TEXT // 2))


def _strung(keys: list[str], between: str) -> Iterator[str]:
    for start in range(0, len(keys), KEYS_IN_A_TEXT):
        yield between.join(["", *keys[start : start + KEYS_IN_A_TEXT], ""])
