"""Text files → indexed datasets, in several processes.

    files ─▶ shards (byte ranges) ─▶ workers: records ─▶ ids ─▶ a token file per shard and key, lengths of its documents
          ─▶ joined in the order of the input ─▶ <prefix>_<key>_document.bin/.idx

Shards are joined in the order of the input by copying bytes, so the output is the same at any number of workers. Only lengths travel
between processes. Outputs appear under their final names when all of them are complete; after an error nothing is left behind, and what
a killed run left is named by the next one.
Every record is one document of one sequence. A record whose texts are all empty is left out (as GPT-NeoX does); with several keys, the
others keep the outputs aligned document by document.
"""

import importlib.util
import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Protocol

import numpy as np

from megamesh.data.format import bin_path, idx_path, token_dtype
from megamesh.data.text_input import Shard, cut_into_shards, read_shard
from megamesh.data.writer import IndexedWriter
from megamesh.errors import ConfigError, DataError

log = logging.getLogger(__name__)

SHARD_BYTES = 4 << 20
BATCH_CHARACTERS = 1 << 20


class Encoder(Protocol):
    """What preprocessing needs of a tokenizer."""

    vocab_size: int
    eod_id: int

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class Settings:
    """What is done to each record: keys that are read, whether documents end with eod_id, whether ftfy mends the text first."""

    keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    ftfy: bool = False


@dataclass(frozen=True)
class ShardResult:
    """Per key the token file and its documents' lengths; input bytes, documents, and records left out because they were empty."""

    files: dict[str, Path]
    lengths: dict[str, np.ndarray]
    num_bytes: int
    num_documents: int
    num_empty: int


@dataclass(frozen=True)
class Summary:
    """What was written."""

    prefixes: list[str]
    num_documents: int
    num_tokens: int
    num_empty: int


def output_prefix(prefix: str | Path, key: str) -> str:
    """`<prefix>_<key>_document`, as in Megatron and GPT-NeoX."""
    return f"{prefix}_{key}_document"


def preprocess(
    inputs: Sequence[Path],
    prefix: str | Path,
    make_encoder: Callable[[], Encoder],
    settings: Settings,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda num_bytes, num_documents: None,
) -> Summary:
    """Tokenize files into `<prefix>_<key>_document.bin/.idx`.

    `make_encoder` is called once in each worker and must be picklable. `progress` receives the bytes and documents of each finished
    shard.
    Raises DataError (file and line of bad input, existing or unwritable output) and ConfigError (ftfy asked for but not installed).
    """
    if settings.ftfy and importlib.util.find_spec("ftfy") is None:
        raise ConfigError(
            "--ftfy needs the ftfy package, which is not installed: pip install ftfy, or leave --ftfy out"
        )
    encoder = make_encoder()
    dtype = token_dtype(encoder.vocab_size)
    _check_outputs(prefix, settings.keys, overwrite)
    shards = cut_into_shards(inputs, SHARD_BYTES)
    with (
        _disk_errors_named(prefix),
        tempfile.TemporaryDirectory(dir=Path(prefix).parent, prefix=f".{Path(prefix).name}.shards-") as folder,
        ExitStack() as stack,
    ):
        writers: dict[str, IndexedWriter] = {}
        for key in settings.keys:
            writers[key] = IndexedWriter(output_prefix(prefix, key), dtype, overwrite=overwrite)
            stack.callback(writers[key].abort)
        work = partial(_encode_shard, folder=Path(folder), settings=settings, dtype=dtype)
        documents = empty = tokens = 0
        for result in _run(work, shards, make_encoder, workers):
            for key, writer in writers.items():
                writer.append_file(result.files[key], result.lengths[key])
                result.files[key].unlink()
                tokens += int(result.lengths[key].sum(dtype=np.int64))
            documents, empty = documents + result.num_documents, empty + result.num_empty
            progress(result.num_bytes, result.num_documents)
        if documents == 0:
            raise DataError(f"{', '.join(map(str, inputs))}: no text in any record; nothing was written")
        for writer in writers.values():
            writer.complete()
        for writer in writers.values():
            writer.publish()
    return Summary([writer.prefix for writer in writers.values()], documents, tokens, empty)


def _check_outputs(prefix: str | Path, keys: Sequence[str], overwrite: bool) -> None:
    folder = Path(prefix).parent
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder of --output-prefix does not exist; create it")
    for key in keys:
        for path in (bin_path(output_prefix(prefix, key)), idx_path(output_prefix(prefix, key))):
            if path.exists() and not overwrite:
                raise DataError(f"{path}: exists; choose another --output-prefix or add --overwrite")
    prefix = Path(prefix)
    for path in [*folder.glob(f".{prefix.name}.shards-*"), *folder.glob(f"{prefix.name}_*_document.*.tmp-*")]:
        log.warning("%s: left by a run that was killed, unless one is under way; it can be removed", path)


@contextmanager
def _disk_errors_named(prefix: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or Path(prefix).parent}: {error.strerror or error}; nothing was written: free space there, or choose "
            "another --output-prefix"
        ) from error


def _run(
    work: Callable[[tuple[int, Shard]], ShardResult],
    shards: Sequence[Shard],
    make_encoder: Callable[[], Encoder],
    workers: int,
) -> Iterator[ShardResult]:
    """Results in the order of the shards, at most four shards per worker under way."""
    executor = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(make_encoder,)
    )
    waiting = iter(enumerate(shards))
    pending: deque[Future[ShardResult]] = deque(executor.submit(work, job) for job in islice(waiting, 4 * workers))
    try:
        while pending:
            result = pending.popleft().result()
            pending.extend(executor.submit(work, job) for job in islice(waiting, 1))
            yield result
    except BrokenProcessPool as error:
        raise DataError(f"a worker process died ({error}); if memory ran out, use fewer --workers") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """What a worker process keeps between shards."""

    encoder: Encoder | None = None


def _start_worker(make_encoder: Callable[[], Encoder]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per worker
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _Worker.encoder = make_encoder()


def _leave_with_parent() -> None:
    """End a worker whose parent was killed; it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)


def _encode_shard(job: tuple[int, Shard], *, folder: Path, settings: Settings, dtype: np.dtype) -> ShardResult:
    """In a worker: write the token file of a shard for every key."""
    number, shard = job
    encoder = _Worker.encoder
    assert encoder is not None, "the worker was not started"
    files = {key: folder / f"{number:08d}.{key.replace(os.sep, '_')}" for key in settings.keys}
    lengths: dict[str, list[int]] = {key: [] for key in settings.keys}
    num_documents = num_empty = 0
    with ExitStack() as stack:
        outputs = {key: stack.enter_context(path.open("wb")) for key, path in files.items()}
        for records in _batches(read_shard(shard, settings.keys)):
            kept = [record for record in records if any(record.values())]
            num_documents, num_empty = num_documents + len(kept), num_empty + len(records) - len(kept)
            for key in settings.keys:
                for ids in _encode(encoder, [record[key] for record in kept], settings):
                    outputs[key].write(_to_bytes(ids, dtype, shard))
                    lengths[key].append(len(ids))
    sizes = {key: np.array(values, dtype=np.int32) for key, values in lengths.items()}
    return ShardResult(files, sizes, shard.num_bytes, num_documents, num_empty)


def _encode(encoder: Encoder, texts: Sequence[str], settings: Settings) -> list[list[int]]:
    if settings.ftfy:
        from ftfy import fix_text  # type: ignore[import-not-found,import-untyped,unused-ignore]

        texts = [fix_text(text) for text in texts]
    documents = encoder.encode_batch(texts)
    return [[*ids, encoder.eod_id] for ids in documents] if settings.append_eod else documents


def _to_bytes(ids: Sequence[int], dtype: np.dtype, shard: Shard) -> bytes:
    if len(ids) > np.iinfo(np.int32).max:
        raise DataError(
            f"{shard.path}: a document of {len(ids)} tokens; the format holds at most {np.iinfo(np.int32).max}: divide it"
        )
    return np.array(ids, dtype=dtype).tobytes()  # numpy refuses an id that the dtype cannot hold


def _batches(records: Iterator[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Groups of records of about BATCH_CHARACTERS, so that a tokenizer sees many at once."""
    group: list[dict[str, str]] = []
    size = 0
    for record in records:
        group.append(record)
        size += sum(map(len, record.values()))
        if size >= BATCH_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
