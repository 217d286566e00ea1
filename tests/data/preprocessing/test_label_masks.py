"""Labels against plain loops over documents."""

import numpy as np
import pytest

from megamesh.data.preprocessing.label_masks import IGNORED, join_segments, mask_before, parse_pattern
from megamesh.errors import ConfigError


def flat(documents: list[list[int]], dtype: type = np.uint32) -> tuple[np.ndarray, np.ndarray]:
    return np.array([i for d in documents for i in d], dtype=dtype), np.array(
        [len(d) for d in documents], dtype=np.int64
    )


def documents_of(values: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])] if len(lengths) else []


def masked_by_hand(document: list[int], pattern: list[int]) -> list[int]:
    for start in range(len(document) - len(pattern) + 1):
        if document[start : start + len(pattern)] == pattern:
            stop = start + len(pattern)
            return [IGNORED] * stop + document[stop:]
    return document


def random_documents(draw: np.random.Generator, count: int) -> list[list[int]]:
    return [draw.integers(0, 3, size=draw.integers(0, 9)).tolist() for _ in range(count)]


def test_everything_up_to_the_first_occurrence_is_masked_and_none_reaches_over_documents() -> None:
    draw = np.random.default_rng(0)
    for _ in range(500):
        documents = random_documents(draw, int(draw.integers(0, 8)))
        pattern = draw.integers(0, 3, size=draw.integers(1, 4)).tolist()
        ids, lengths = flat(documents)
        labels = mask_before(ids, lengths, np.array(pattern))
        assert labels.dtype == np.int32
        assert documents_of(labels, lengths) == [masked_by_hand(d, pattern) for d in documents]
    ids, lengths = flat([[7, 1], [2, 9]])
    assert mask_before(ids, lengths, np.array([1, 2])).tolist() == [7, 1, 2, 9], "the pattern lies across two documents"


def test_segments_join_record_by_record_with_masked_keys_ignored() -> None:
    draw = np.random.default_rng(1)
    for _ in range(200):
        records, keys = int(draw.integers(0, 6)), int(draw.integers(1, 4))
        columns = [random_documents(draw, records) for _ in range(keys)]
        masked = draw.integers(0, 2, size=keys).astype(bool).tolist()
        ids, lengths, labels = join_segments([flat(column) for column in columns], masked)
        assert documents_of(ids, lengths) == [[i for c in columns for i in c[r]] for r in range(records)]
        expected = [
            [IGNORED if m else i for c, m in zip(columns, masked, strict=True) for i in c[r]] for r in range(records)
        ]
        assert documents_of(labels, lengths) == expected


def test_the_pattern_on_the_command_line() -> None:
    assert parse_pattern("0, 1,1270", 2000).tolist() == [0, 1, 1270]
    for wrong in ("", "a", "1,,2", "-1", "2000"):
        with pytest.raises(ConfigError, match="--mask-before-token"):
            parse_pattern(wrong, 2000)
