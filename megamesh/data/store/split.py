"""One dataset as several: by shares, in parts of about equal size, or one range of its documents.

    number of documents ─▶ Share (documents of one output) ─ assemble.py ─▶ <output>_<name>.bin/.idx, each with its manifest

Documents stay whole and in order. Without shuffling the outputs one after the other are the original bytes. With it, every choice of
documents of the wanted numbers is equally likely, and depends on the seed alone.
"""

import bisect
import glob
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megamesh.data.store.assemble import Assembly, Span, assemble, check_outputs, known_output
from megamesh.data.store.format import bin_path, idx_path
from megamesh.data.store.manifest import Manifest, Output, find_manifest, versions
from megamesh.data.store.splits import SPLIT_NAMES, split_documents
from megamesh.data.store.stored import Sections, Stored, open_stored
from megamesh.errors import DataError

DRAW_AT_ONCE = 1 << 20
MOST_DRAWN = 10**9  # numpy's bound for drawing without replacement by counts


class Chosen(Protocol):
    """Ranges [first, last) of documents, in order; can be gone through again."""

    def __iter__(self) -> Iterator[tuple[int, int]]: ...


@dataclass(frozen=True)
class Share:
    """An output: the end of its name, its documents, and what its manifest says of the choice."""

    name: str
    documents: Chosen
    options: dict[str, Any]


def by_shares(stored: Stored, shares: tuple[float, float, float], seed: int | None = None) -> list[Share]:
    """train, valid and test, with the numbers of documents that training's `split` gives them; drawn at random where a seed is given.

    Raises DataError where a share above 0 rounds to no document.
    """
    ranges = split_documents(shares, stored.num_documents)
    sizes = [last - first for first, last in ranges]
    for name, share, size in zip(SPLIT_NAMES, shares, sizes, strict=True):
        if share > 0 and size == 0:
            raise DataError(
                f"{stored.prefix}: --split leaves no document for {name} out of {stored.num_documents}; give it a larger share, or 0 to do "
                "without"
            )
    if seed is not None and stored.num_documents >= MOST_DRAWN:
        raise DataError(
            f"{stored.prefix}: {stored.num_documents} documents; --shuffle draws from less than {MOST_DRAWN}: cut it with --parts first"
        )
    options = {"split": list(shares), "shuffle": seed is not None, "seed": seed}
    chosen: list[Chosen] = (
        [[one] for one in ranges] if seed is None else [Drawn(sizes, i, seed) for i in range(len(sizes))]
    )
    return [
        Share(name, documents, options)
        for name, documents, size in zip(SPLIT_NAMES, chosen, sizes, strict=True)
        if size > 0
    ]


def by_parts(stored: Stored, num_parts: int) -> list[Share]:
    """Consecutive parts of whole documents, cut where the document ends that is nearest to an equal number of tokens."""
    if num_parts > stored.num_documents:
        raise DataError(f"{stored.prefix}: --parts={num_parts}, but it has {stored.num_documents} documents; use fewer")
    sections = Sections(stored)
    begin, end = sections.byte_of(0), sections.byte_of(stored.num_documents)
    numbers = range(stored.num_documents + 1)
    cuts = [0]
    for part in range(1, num_parts):
        wanted = begin + (end - begin) * part // num_parts
        above = bisect.bisect_left(numbers, wanted, key=sections.byte_of)
        nearest = min((above, max(above - 1, 0)), key=lambda document: abs(sections.byte_of(document) - wanted))
        cuts.append(min(max(nearest, cuts[-1] + 1), stored.num_documents - (num_parts - part)))
    cuts.append(stored.num_documents)
    width = len(str(num_parts - 1))
    return [
        Share(f"part{i:0{width}}", [(first, last)], {"documents": [first, last]})
        for i, (first, last) in enumerate(itertools.pairwise(cuts))
    ]


def by_range(stored: Stored, first: int, last: int | None) -> list[Share]:
    """One output: documents [first, last), to the end where `last` is None; named as the others' prefix alone."""
    last = stored.num_documents if last is None else last
    if not first < last <= stored.num_documents:
        raise DataError(
            f"{stored.prefix}: --documents={first}:{last} are not in it; it has {stored.num_documents} documents, counted from 0, and the "
            "second number is the one behind the last"
        )
    return [Share("", [(first, last)], {"documents": [first, last]})]


@dataclass(frozen=True)
class Drawn:
    """The ranges of documents that fall to output `which`, when `sizes` documents fall to the outputs at random.

    Labels of DRAW_AT_ONCE documents are in memory at a time: how many of them go to each output follows the multivariate hypergeometric
    distribution, and which ones is a permutation.
    """

    sizes: Sequence[int]
    which: int
    seed: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng(self.seed)
        left, total = np.array(self.sizes, np.int64), sum(self.sizes)
        for start in range(0, total, DRAW_AT_ONCE):
            size = min(DRAW_AT_ONCE, total - start)
            counts = generator.multivariate_hypergeometric(left, size, method="marginals")
            labels = generator.permutation(np.repeat(np.arange(len(left), dtype=np.int8), counts))
            left -= counts
            mine = np.concatenate(([False], labels == self.which, [False]))
            edges = np.flatnonzero(mine[1:] != mine[:-1]) + start
            yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


@dataclass(frozen=True)
class _Spans:
    stored: Stored
    documents: Chosen

    def __iter__(self) -> Iterator[Span]:
        return (Span(self.stored, first, last) for first, last in self.documents)


def split(
    prefix: str,
    output: str,
    cut: Callable[[Stored], list[Share]],
    *,
    overwrite: bool = False,
    sequences_are_documents: bool = False,
    on_bytes: Callable[[int, int], Any] = lambda done, total: None,
) -> dict[str, Output]:
    """Write the outputs that `cut` chooses; what was written, by prefix. Raises DataError as merge.py does."""
    stored = open_stored(prefix, sequences_are_documents=sequences_are_documents)
    shares = cut(stored)
    known = known_output(stored)
    tokenizer = None if known is None else known[0].tokenizer
    labels = known is not None and known[1].labels
    names = [f"{output}_{share.name}" if share.name else output for share in shares]
    check_outputs(names, [stored], overwrite)
    _check_no_others(prefix, output, names)

    def assembly(name: str, share: Share) -> Assembly:
        def describe(written: Output) -> Manifest:
            return Manifest(
                outputs={bin_path(name).stem: written},
                tokenizer=tokenizer,
                made_from=[str(Path(prefix).absolute())],
                options=share.options | {"sequences_are_documents": sequences_are_documents},
                versions=versions(),
            )

        return Assembly(name, stored.dtype, _Spans(stored, share.documents), describe, labels)

    assemblies = [assembly(name, share) for name, share in zip(names, shares, strict=True)]
    total = 2 * _bytes_of(stored, shares)  # copied, then read for their digests
    assemble(assemblies, lambda done: on_bytes(done, total))
    return {one.prefix: one.output for one in assemblies if one.output is not None}


def _check_no_others(prefix: str, output: str, names: Sequence[str]) -> None:
    """Raise DataError where an earlier split of the data left outputs that this one does not replace: together they would hold it twice."""
    if output in names:
        return
    written = {idx_path(name).name for name in names}
    for path in sorted(Path(output).parent.glob(f"{glob.escape(Path(output).name)}_*.idx")):
        end = path.stem.removeprefix(f"{Path(output).name}_")
        if path.name in written or not (end in SPLIT_NAMES or re.fullmatch(r"part\d+", end)):
            continue
        found = find_manifest(path.with_suffix(""))
        if found is not None and [idx_path(one).resolve() for one in found[1].made_from] == [
            idx_path(prefix).resolve()
        ]:
            raise DataError(
                f"{path}: is of an earlier split of {prefix}, and these outputs beside it would hold its documents twice; "
                "remove it, or choose another --output-prefix"
            )


def _bytes_of(stored: Stored, shares: Sequence[Share]) -> int:
    sections = Sections(stored)
    return sum(
        size for share in shares for first, last in share.documents for _, size in sections.byte_runs(first, last)
    )
