"""What a run may write, and where: the places of its outputs, checked before any work.

    --output-prefix data/corpus ─▶ data/corpus_<name>_document.bin, .idx, .token_range.json
                                   data/corpus.json, .skipped.jsonl, .unfinished/

Nothing of another kind is ever replaced, and no input. A folder that is missing is made, when the inputs have been found (folder.py).
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from megamesh.data.preprocessing.folder import PUBLISHING, WorkFolder
from megamesh.data.preprocessing.ranks import Ranks
from megamesh.data.sources.inputs import InputFile
from megamesh.data.store.format import bin_path, check_prefix, idx_path
from megamesh.data.store.manifest import is_manifest, manifest_path
from megamesh.data.store.own_files import is_report, report_path
from megamesh.data.store.token_range import ENDING as TOKEN_RANGE
from megamesh.errors import DataError


def output_prefix(prefix: str | Path, name: str) -> str:
    """`<prefix>_<name>_document`, as in Megatron and GPT-NeoX."""
    return f"{prefix}_{name}_document"


def check_names(prefix: str | Path, outputs: Iterable[str]) -> None:
    check_prefix(prefix)
    for name in outputs:
        if os.sep in name or "\0" in name:
            raise DataError(
                f"key {name!r}: cannot be part of a file's name, and the output would have it; rename the key"
            )


def check_outputs(prefix: str | Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise DataError where an output exists, unless it may be overwritten; what is no output of ours never may."""
    manifest, report = manifest_path(prefix), report_path(prefix)
    for path, is_ours, what in ((manifest, is_manifest, "manifest"), (report, is_report, "report of bad records")):
        if path.exists() and not is_ours(path):
            raise DataError(
                f"{path}: is needed for the {what}, but is a file of another kind; choose another --output-prefix"
            )
    if (WorkFolder(prefix).path / PUBLISHING).exists():
        return  # complete, and about to be given these names
    existing = [path for path in [*_pairs(prefix, names), manifest] if path.exists()]
    if existing and not overwrite:
        raise DataError(f"{existing[0]}: exists; choose another --output-prefix or add --overwrite")


def check_inputs(prefix: str | Path, names: Sequence[str], inputs: Sequence[InputFile]) -> None:
    """Raise DataError where an input is a file that the run writes, replaces or removes."""
    ranges = [Path(prefix).with_name(f"{name}{TOKEN_RANGE}") for name in names]
    written = [*_pairs(prefix, names), *ranges, manifest_path(prefix), report_path(prefix), WorkFolder(prefix).path]
    places = {path.resolve() for path in written}
    for file in inputs:
        place = file.path.resolve()
        if not places.isdisjoint((place, *place.parents)):
            raise DataError(
                f"{file.path}: is an input, and a run would replace or remove it; choose another --output-prefix"
            )


def _pairs(prefix: str | Path, names: Sequence[str]) -> list[Path]:
    parent = Path(prefix).parent
    return [path for name in names for path in (bin_path(parent / name), idx_path(parent / name))]


def check_shared(folder: WorkFolder, ranks: Ranks) -> None:
    places = ranks.gather((os.uname().nodename, folder.path.is_dir()))
    missing = [f"rank {rank} on {host}" for rank, (host, found) in enumerate(places) if not found]
    if missing:
        raise DataError(
            f"{folder.path}: not visible from {', '.join(missing[:5])}; --output-prefix must be on storage that all machines share"
        )
