"""The order in which documents become samples: NeoX's and Megatron's, exactly, in numpy.

    lengths ─▶ document order (epochs × documents, shuffled together)
            ─▶ sample index   (row j: where sample j begins)
            ─▶ shuffle        (the order in which samples are drawn)

The documents of all epochs stand in one shuffled row, and their tokens are cut every S tokens. Sample j is tokens j·S … j·S + S of that
row, S+1 of them: neighbours share one token. Row j of the sample index is (position in the document order, offset in that document) of
token j·S; row 0 is (0, 0) even where the first document is empty. Both shuffles come from one RandomState(seed), in this order, and
depend on nothing else.

So every token is read as an input exactly once per pass, all passes mixed; the row's last token and the fewer than S before it that fill no
sample are not.
"""

from dataclasses import dataclass

import numpy as np

INT32_MAX = int(np.iinfo(np.int32).max)
UINT32_MAX = int(np.iinfo(np.uint32).max)
BLOCK_DOCUMENTS = 1 << 20


@dataclass(frozen=True)
class SampleOrder:
    """document_order [epochs·documents] int32 or int64, sample_index [n+1, 2] int32 or int64, shuffle [n] uint32 or int64."""

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


def samples_in_epochs(num_tokens: int, sequence_length: int, epochs: int) -> int:
    """Samples in so many passes over the tokens."""
    return max(0, epochs * num_tokens - 1) // sequence_length


def build_sample_order(
    lengths: np.ndarray, first_document: int, epochs: int, sequence_length: int, seed: int
) -> SampleOrder:
    """The order of `epochs` passes over documents first_document, first_document + 1, … with these lengths in tokens."""
    random = np.random.RandomState(seed)
    document_order = shuffled_documents(random, first_document, len(lengths), epochs)
    sample_index = build_sample_index(lengths, document_order, first_document, sequence_length)
    return SampleOrder(document_order, sample_index, shuffled_samples(random, len(sample_index) - 1))


def shuffled_documents(random: np.random.RandomState, first: int, num_documents: int, epochs: int = 1) -> np.ndarray:
    """Documents first, first + 1, … `epochs` times, all shuffled together; int32 unless a number needs more."""
    order = np.tile(np.arange(first, first + num_documents), epochs)
    random.shuffle(order)  # in 8 bytes per number, which numpy does faster than in 4
    return order.astype(np.int32) if first + num_documents <= INT32_MAX else order


def shuffled_samples(random: np.random.RandomState, num_samples: int) -> np.ndarray:
    """0 … num_samples−1, shuffled; uint32 unless a number needs more."""
    order = np.arange(num_samples)
    random.shuffle(order)
    return order.astype(np.uint32) if num_samples < UINT32_MAX - 1 else order


def build_sample_index(
    lengths: np.ndarray, document_order: np.ndarray, first_document: int, sequence_length: int
) -> np.ndarray:
    """Rows (position in document_order, offset in that document) of every S-th token; [n+1, 2].

    document_order holds each of the documents equally often.
    """
    epochs, rest = divmod(len(document_order), len(lengths))
    assert rest == 0, f"{len(document_order)} entries for {len(lengths)} documents"
    num_samples = samples_in_epochs(int(lengths.sum(dtype=np.int64)), sequence_length, epochs)
    wide = 2 * (num_samples + 1) >= INT32_MAX or len(document_order) > INT32_MAX
    sample_index = np.zeros((num_samples + 1, 2), dtype=np.int64 if wide else np.int32)
    filled, end = 1, 0
    for start in range(0, len(document_order), BLOCK_DOCUMENTS):
        sizes = lengths[document_order[start : start + BLOCK_DOCUMENTS] - first_document]
        ends = end + np.cumsum(sizes, dtype=np.int64)
        end = int(ends[-1])
        stop = max(filled, min((end - 1) // sequence_length, num_samples) + 1)
        cuts = np.arange(filled, stop, dtype=np.int64) * sequence_length
        positions = np.searchsorted(ends, cuts, side="right")
        sample_index[filled:stop, 0] = start + positions
        sample_index[filled:stop, 1] = cuts - (ends[positions] - sizes[positions])
        filled = stop
    return sample_index
