"""Which dataset a name means.

    data/corpus.bin, .idx ─▶ data/corpus            (a file of the pair stands for it)
    data/corpus           ─▶ data/corpus            where that pair is there
                          ─▶ data/corpus_text_document, where it is the only <name>_…_document: what preprocessing writes for
                             --output-prefix data/corpus

Nothing is guessed beyond that: where several match, or none, the error lists what is there.
"""

import difflib
import glob
from pathlib import Path

from megamesh.data.store.format import bin_path, idx_path
from megamesh.errors import DataError

ENDINGS = (".bin", ".idx")
MOST_NAMED = 8


def existing_prefix(name: str, shown: str | None = None) -> str:
    """The prefix of the dataset that `name` means; DataError, which shows it as `shown`, where that is none or not clear."""
    if _is_there(name):
        return name
    short = without_ending(name)
    if short != name and _is_there(short):
        return short
    matches = outputs_of(short)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise DataError(f"{shown or name}: may be any of {_listed(matches)}; name one of them")
    near = _near(short)
    there = f", such as {_listed(near)}" if near else ""
    raise DataError(f"{shown or name}: no dataset there; name the prefix of a .bin/.idx pair{there}")


def outputs_of(prefix: str) -> list[str]:
    """The datasets `<prefix>_…_document`."""
    return sorted(str(Path(path).with_suffix("")) for path in glob.glob(f"{glob.escape(prefix)}_*_document.idx"))


def without_ending(name: str) -> str:
    """The prefix that one of a pair's files belongs to; another name as it is."""
    return str(Path(name).with_suffix("")) if Path(name).suffix in ENDINGS else name


def _is_there(prefix: str) -> bool:
    return idx_path(prefix).is_file() or bin_path(prefix).is_file()


def _near(prefix: str) -> list[str]:
    """Datasets in the folder of a name, or in the one that it is; those of a like name, or all where none is."""
    folder = Path(prefix) if Path(prefix).is_dir() else Path(prefix).parent
    try:
        names = sorted(path.stem for path in folder.iterdir() if path.suffix == ".idx")
    except OSError:
        return []
    like = difflib.get_close_matches(Path(prefix).name, names, n=MOST_NAMED, cutoff=0.5)
    return [str(folder / name) for name in like or names]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
