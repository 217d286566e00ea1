"""Which documents belong to training, validation and test.

    shares 969:30:1, 1000 documents ─▶ [0, 969), [969, 999), [999, 1000)

NeoX's arithmetic on shares that sum to 1: each count is rounded half to even, and the rounding's surplus is taken from (or added to) every
boundary, so that the last one is the number of documents.
"""

SPLIT_NAMES = ("train", "valid", "test")


def split_documents(shares: tuple[float, float, float], num_documents: int) -> list[tuple[int, int]]:
    """The ranges [start, stop) of document numbers of the three splits."""
    ends: list[int] = []
    for share in shares:
        ends.append((ends[-1] if ends else 0) + round(share * float(num_documents)))
    surplus = ends[-1] - num_documents
    bounds = [0, *(max(0, end - surplus) for end in ends)]
    return [(bounds[i], bounds[i + 1]) for i in range(3)]
