"""Which documents belong to training, validation and test.

    "969,30,1", 1000 documents ─▶ [0, 969), [969, 999), [999, 1000)

NeoX's arithmetic: shares are normalised, each count is rounded half to even, and the rounding's surplus is taken from (or added to) every
boundary, so that the last one is the number of documents.
"""

import math
import re

from megamesh.errors import ConfigError

SPLIT_NAMES = ("train", "valid", "test")


def parse_split(split: str) -> tuple[float, float, float]:
    """Three shares that sum to 1. Separators are "," or "/"; missing shares are 0. Raises ConfigError."""
    mend = f"split={split!r}: give up to three shares of the documents, for training, validation and test, such as 969,30,1"
    try:
        shares = [float(part) for part in re.split(r"[,/]", split)]
    except ValueError:
        raise ConfigError(mend) from None
    if len(shares) > 3 or any(not math.isfinite(s) or s < 0 for s in shares) or sum(shares) <= 0:
        raise ConfigError(mend)
    train, valid, test = (share / sum(shares) for share in shares + [0.0] * (3 - len(shares)))
    return train, valid, test


def split_documents(shares: tuple[float, float, float], num_documents: int) -> list[tuple[int, int]]:
    """The ranges [start, stop) of document numbers of the three splits."""
    ends: list[int] = []
    for share in shares:
        ends.append((ends[-1] if ends else 0) + round(share * float(num_documents)))
    surplus = ends[-1] - num_documents
    bounds = [0, *(max(0, end - surplus) for end in ends)]
    return [(bounds[i], bounds[i + 1]) for i in range(3)]
