"""The order in which documents become samples: NeoX's and Megatron's, exactly, in numpy.

    lengths ─▶ document order (epochs × documents, shuffled together)
            ─▶ sample index   (row j: where sample j begins)
            ─▶ shuffle        (the order in which samples are drawn)

The documents of all epochs stand in one shuffled row, and their tokens are cut every S tokens. Sample j is tokens j·S … j·S + S of that
row, S+1 of them: neighbours share one token. Row j of the sample index is (position in the document order, offset in that document) of
token j·S; row 0 is (0, 0) even where the first document is empty. Both shuffles come from one RandomState(seed), in this order, and
depend on nothing else.
"""

from dataclasses import dataclass

import numpy as np

INT32_MAX = int(np.iinfo(np.int32).max)
BLOCK_ROWS = 1 << 24


@dataclass(frozen=True)
class SampleOrder:
    """document_order [epochs·documents] int32, sample_index [n+1, 2] int32 or int64, shuffle [n] uint32 or int64."""

    document_order: np.ndarray
    sample_index: np.ndarray
    shuffle: np.ndarray

    @property
    def num_samples(self) -> int:
        return len(self.shuffle)


def num_epochs(num_tokens: int, sequence_length: int, num_samples: int) -> int:
    """The smallest e ≥ 1 with (e·num_tokens − 1) // sequence_length ≥ num_samples."""
    assert num_tokens > 0, "a dataset without tokens has no samples"
    return max(1, -(-(num_samples * sequence_length + 1) // num_tokens))


def build_sample_order(
    lengths: np.ndarray, first_document: int, epochs: int, sequence_length: int, seed: int
) -> SampleOrder:
    """The order of `epochs` passes over documents first_document, first_document + 1, … with these lengths in tokens."""
    random = np.random.RandomState(seed)
    documents = np.arange(first_document, first_document + len(lengths), dtype=np.int32)
    document_order = np.tile(documents, epochs)
    random.shuffle(document_order)
    sample_index = build_sample_index(lengths, document_order, first_document, sequence_length)
    num_samples = len(sample_index) - 1
    shuffle = np.arange(num_samples, dtype=np.uint32 if num_samples < np.iinfo(np.uint32).max - 1 else np.int64)
    random.shuffle(shuffle)
    return SampleOrder(document_order, sample_index, shuffle)


def build_sample_index(
    lengths: np.ndarray, document_order: np.ndarray, first_document: int, sequence_length: int
) -> np.ndarray:
    """Rows (position in document_order, offset in that document) of every S-th token; [n+1, 2]."""
    ends = np.cumsum(lengths[document_order - first_document], dtype=np.int64)
    num_samples = (int(ends[-1]) - 1) // sequence_length
    wide = 2 * (num_samples + 1) >= INT32_MAX or len(document_order) > INT32_MAX
    sample_index = np.zeros((num_samples + 1, 2), dtype=np.int64 if wide else np.int32)
    for start in range(1, num_samples + 1, BLOCK_ROWS):
        cuts = np.arange(start, min(start + BLOCK_ROWS, num_samples + 1), dtype=np.int64) * sequence_length
        positions = np.searchsorted(ends, cuts, side="right")
        begins = ends[positions] - lengths[document_order[positions] - first_document]
        sample_index[start : start + len(cuts), 0] = positions
        sample_index[start : start + len(cuts), 1] = cuts - begins
    return sample_index
