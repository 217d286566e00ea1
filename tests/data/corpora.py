"""Small corpora whose token ids say where they come from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megamesh.data.store.indexed import IndexedWriter


def write(prefix: Path, lengths: Sequence[int], *, first: int = 0, dtype: type = np.int32) -> list[list[int]]:
    """Documents of these lengths with the ids first, first + 1, … through the whole file; returns the documents."""
    documents = []
    with IndexedWriter(prefix, dtype, overwrite=True) as writer:
        for length in lengths:
            documents.append(list(range(first, first + length)))
            first += length
            writer.add_document(documents[-1])
    return documents
