"""Which tokens of a document are counted in the loss, as labels beside the ids.

    ids [tokens] end to end + lengths [documents] ─▶ labels [tokens] int32: the id itself, or -100: not counted

Labels stand at the places of their tokens; training shifts both by one (labels.py). Nothing here loops over tokens or documents in Python.
"""

from collections.abc import Sequence

import numpy as np

from megamesh.errors import ConfigError

IGNORED = -100


def parse_pattern(text: str, vocab_size: int) -> np.ndarray:
    """Token ids separated by commas, as in GPT-NeoX. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) < vocab_size for part in parts):
        raise ConfigError(
            f"--mask-before-token={text}: give the mark as token ids (0 … {vocab_size - 1}), separated by commas: --mask-before-token 27,91"
        )
    return np.array([int(part) for part in parts], dtype=np.int64)


def mask_before(ids: np.ndarray, lengths: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Labels [tokens] int32 that count what comes after the first occurrence of `pattern` in each document.

    The pattern itself is not counted; a document without it is counted whole (both as in GPT-NeoX).
    """
    labels = ids.astype(np.int32)
    starts = _occurrences(ids, pattern)
    ends = np.cumsum(lengths)
    documents = np.searchsorted(ends, starts, side="right")
    inside = starts + len(pattern) <= ends[documents]
    marked, first = np.unique(documents[inside], return_index=True)
    counted_from = ends - lengths
    counted_from[marked] = starts[inside][first] + len(pattern)
    labels[np.arange(len(ids)) < np.repeat(counted_from, lengths)] = IGNORED
    return labels


def _occurrences(ids: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Where the pattern begins, also across the ends of documents; int64, rising."""
    starts = np.flatnonzero(ids[: max(len(ids) - len(pattern) + 1, 0)] == pattern[0])
    for offset in range(1, len(pattern)):
        starts = starts[ids[starts + offset] == pattern[offset]]
    return starts


def join_segments(
    segments: Sequence[tuple[np.ndarray, np.ndarray]], masked: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents made of one part of every segment, in the order of the segments; parts of masked segments are not counted.

    Args: per segment its ids [tokens] end to end and their lengths [documents]. Returns ids, lengths [documents], labels int32.
    """
    per_document = np.stack([lengths for _, lengths in segments], axis=1)  # [documents, segments]
    ends = np.cumsum(per_document).reshape(per_document.shape)
    ids = np.empty(int(per_document.sum()), dtype=np.result_type(*(part for part, _ in segments)))
    labels = np.empty(len(ids), dtype=np.int32)
    for number, (part, lengths) in enumerate(segments):
        places = np.arange(len(part)) + np.repeat(ends[:, number] - np.cumsum(lengths), lengths)
        ids[places] = part
        labels[places] = IGNORED if masked[number] else part
    return ids, per_document.sum(axis=1), labels
