"""Several datasets as one, in the order given.

    prefixes ─ opened, compared ─▶ one Span per dataset ─ assemble.py ─▶ <output>.bin/.idx and its manifest

Merging the shards of a corpus gives the bytes that a single pass over it writes. Documents keep their sequences. The manifest's parts are
those of the inputs' manifests, so that damage which an input had is found by them in the merge too; inputs without a manifest are read.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megamesh.data.store.assemble import Assembly, Span, assemble, check_outputs, known_output
from megamesh.data.store.format import DTYPE_CODES, bin_path
from megamesh.data.store.manifest import Counts, Manifest, Output, Tokenizer, sum_counts, versions
from megamesh.data.store.stored import Stored, open_stored
from megamesh.errors import DataError

log = logging.getLogger(__name__)


def merge(
    prefixes: Sequence[str],
    output: str,
    *,
    overwrite: bool = False,
    widen: bool = False,
    allow_different_tokenizers: bool = False,
    sequences_are_documents: bool = False,
    on_bytes: Callable[[int, int], Any] = lambda done, total: None,
) -> Output:
    """Write `<output>.bin/.idx/.json`. `on_bytes` hears of bytes done and how many there are in all.

    widen: give all the number format that holds every dataset's ids, where they differ. Raises DataError: damaged or different datasets,
    existing or unwritable outputs.
    """
    stored = [open_stored(prefix, sequences_are_documents=sequences_are_documents) for prefix in prefixes]
    check_outputs([output], stored, overwrite)
    found = [known_output(one) for one in stored]
    labels = _are_labels(prefixes, found)
    dtype = _common_dtype(stored, widen)
    manifests = [None if one is None else one[0] for one in found]
    tokenizer = _common_tokenizer(prefixes, manifests, allow_different_tokenizers)
    spans = [
        Span(one, 0, one.num_documents, None if entry is None else _usable(one, entry[1]))
        for one, entry in zip(stored, found, strict=True)
    ]
    options = {"widen": widen, "sequences_are_documents": sequences_are_documents}

    def describe(written: Output) -> Manifest:
        name = bin_path(output).stem
        return Manifest(
            outputs={name: written},
            tokenizer=tokenizer,
            made_from=[str(Path(prefix).absolute()) for prefix in prefixes],
            options=options,
            counts=_summed(manifests),
            versions=versions(),
        )

    total = sum(_work(span, dtype) for span in spans)
    assembly = Assembly(output, dtype, spans, describe, labels)
    assemble([assembly], lambda done: on_bytes(done, total))
    assert assembly.output is not None, "assemble describes what it wrote"
    return assembly.output


def _are_labels(prefixes: Sequence[str], found: Sequence[tuple[Manifest, Output] | None]) -> bool:
    """Whether the datasets are labels, by those manifests that there are. Raises DataError where only some are."""
    kinds = {one[1].labels: prefix for prefix, one in zip(prefixes, found, strict=True) if one is not None}
    if len(kinds) > 1:
        raise DataError(
            f"{kinds[True]} holds labels, but {kinds[False]} tokens; merge them apart: one command with '*_text_document', and one with "
            "'*_label_document' and an --output-prefix of its own"
        )
    return True in kinds


def _common_dtype(stored: Sequence[Stored], widen: bool) -> np.dtype:
    dtypes = {one.dtype: one.prefix for one in reversed(stored)}
    if len(dtypes) > 1 and not widen:
        named = "; ".join(f"{prefix} has {dtype.name}" for dtype, prefix in reversed(dtypes.items()))
        raise DataError(f"the number formats of the ids differ: {named}; add --widen to write the one that holds all")
    dtype = np.result_type(*dtypes).newbyteorder("<")
    assert dtype in DTYPE_CODES, f"no number format of the .idx holds {', '.join(map(str, dtypes))}"
    return dtype


def _common_tokenizer(
    prefixes: Sequence[str], manifests: Sequence[Manifest | None], allow_different: bool
) -> Tokenizer | None:
    """The tokenizer that all manifests name; None, with a warning, where that is not known of all."""
    known = {
        prefix: manifest.tokenizer
        for prefix, manifest in zip(prefixes, manifests, strict=True)
        if manifest is not None and manifest.tokenizer is not None
    }
    by_digest = {tokenizer.digest: prefix for prefix, tokenizer in reversed(known.items())}
    if len(by_digest) > 1:
        text = " and ".join(
            f"{prefix} with {known[prefix].type} {digest[:12]}" for digest, prefix in reversed(by_digest.items())
        )
        if not allow_different:
            raise DataError(
                f"tokenized differently: {text}; the same ids mean other text there: preprocess one of them again, or add "
                "--allow-different-tokenizers"
            )
        log.warning("tokenized differently: %s; the manifest of the merge names no tokenizer", text)
        return None
    unknown = [prefix for prefix in prefixes if prefix not in known]
    if known and unknown:
        log.warning(
            "%s%s: no manifest says with which tokenizer it was written; nor will that of the merge",
            unknown[0], f" and {len(unknown) - 1} more" if len(unknown) > 1 else "",
        )  # fmt: skip
        return None
    return next(iter(known.values()), None)


def _usable(stored: Stored, output: Output) -> Output | None:
    """The manifest's facts, unless its parts are not exactly the bytes that will be copied."""
    same = output.bin_bytes == stored.num_bytes == sum(part.num_bytes for part in output.parts)
    return output if same and output.dtype == stored.dtype.name else None


def _work(span: Span, dtype: np.dtype) -> int:
    """Bytes to be copied, and to be read for their digests where no manifest has them."""
    num_bytes = span.stored.num_tokens * dtype.itemsize
    return num_bytes if span.known is not None and span.stored.dtype == dtype else 2 * num_bytes


def _summed(manifests: Sequence[Manifest | None]) -> Counts | None:
    """What became of all inputs' records; None unless every manifest says so of its own."""
    counts = [manifest.counts for manifest in manifests if manifest is not None and manifest.counts is not None]
    if len(counts) < len(manifests):
        return None
    return sum_counts(counts)
