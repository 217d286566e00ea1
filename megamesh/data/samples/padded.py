"""Samples of whole documents: unpacked and pack_until_overflow.

    lengths ─▶ documents that can be used, shuffled ─▶ cut into samples (row j: the documents of sample j)
            ─▶ shuffle: the samples of each epoch in an order of their own, one epoch after the other

unpacked: a sample is one document. pack_until_overflow: documents are laid into a sample until the next one does not fit into its S+1
tokens, which begins the next sample. What a sample has too little is padding, which the loss does not count; what a document has beyond
S+1 tokens is cut off (`allow_chopped: false` leaves such a document out). Left out are documents from which nothing can be learned.

The cut is made once, so every epoch holds the same samples, each exactly once; the order of n samples is the beginning of the order of
more. GPT-NeoX cuts and shuffles otherwise, and reads one token of the document that follows a sample: its orders are not reproduced.
"""

from array import array
from dataclasses import dataclass

import numpy as np

from megamesh.data.samples.sample_index import shuffled_documents, shuffled_samples


@dataclass(frozen=True)
class PaddedOrder:
    """document_order [documents]; starts [n+1]: sample j holds documents starts[j] … starts[j+1]−1 of it; shuffle [epochs·n]."""

    document_order: np.ndarray
    starts: np.ndarray
    shuffle: np.ndarray

    @property
    def num_samples(self) -> int:
        return len(self.shuffle)


def cut_documents(
    lengths: np.ndarray, usable: np.ndarray, first_document: int, room: int, seed: int, *, one_each: bool
) -> dict[str, np.ndarray]:
    """document_order and starts. `room`: S+1 tokens; `usable`: which documents are taken; `one_each`: one document per sample."""
    order = shuffled_documents(np.random.RandomState(seed), first_document, len(lengths))
    order = order[usable[order - first_document]]
    if one_each:
        return {"document_order": order, "starts": np.arange(len(order) + 1, dtype=np.int64)}
    return {"document_order": order, "starts": fill_samples(np.minimum(lengths[order - first_document], room), room)}


def fill_samples(lengths: np.ndarray, room: int) -> np.ndarray:
    """Where each sample begins when documents of at most `room` tokens fill it until the next does not fit; int64, end included."""
    ends = np.cumsum(lengths, dtype=np.int64)
    following = memoryview(np.searchsorted(ends, ends - lengths + room, side="right"))
    starts, position = array("q"), 0
    while position < len(lengths):
        starts.append(position)
        position = following[position]
    starts.append(len(lengths))
    return np.frombuffer(starts, dtype=np.int64)


def shuffle_epochs(num_samples: int, epochs: int, seed: int) -> np.ndarray:
    """The samples of each epoch, shuffled; [epochs·num_samples]."""
    random = np.random.RandomState([seed, 1])
    return np.concatenate([shuffled_samples(random, num_samples) for _ in range(epochs)])
