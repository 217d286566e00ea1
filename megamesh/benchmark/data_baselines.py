"""How others turn a .jsonl into an indexed dataset, for comparison: run as a process of its own, so that a whole command is timed.

    python -m megamesh.benchmark.data_baselines loop|pool|datatrove INPUT.jsonl TOKENIZER.json OUTPUT_PREFIX WORKERS

loop        json and `tokenizers`' encode of each document in one process, GPT-NeoX's way; written without any library's weight
pool        the same in a multiprocessing pool that sends lists of ids to the parent, and megatron-core's builder: Megatron's way
datatrove   its JsonlReader and DocumentTokenizer
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from megamesh.data.store.format import token_dtype
from megamesh.data.store.indexed import IndexedWriter

END_OF_TEXT = "<|endoftext|>"
POOL_CHUNK = 25  # documents sent at once, as in both scripts


class _Encode:
    """A line of the input to the ids of its document."""

    def __init__(self, path: str):
        self._path = path
        self._tokenizer: Tokenizer | None = None

    def __call__(self, line: str) -> list[int]:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(self._path)
        ids = self._tokenizer.encode(json.loads(line)["text"]).ids
        end = self._tokenizer.token_to_id(END_OF_TEXT)
        return [*ids, end] if ids and end is not None else ids


def loop(source: str, vocabulary: str, prefix: str, workers: int) -> None:
    dtype = token_dtype(Tokenizer.from_file(vocabulary).get_vocab_size())
    with open(source, encoding="utf-8") as lines, IndexedWriter(prefix, dtype) as writer:
        for ids in map(_Encode(vocabulary), lines):
            if ids:
                writer.add_document(np.array(ids, dtype=dtype))


def pool(source: str, vocabulary: str, prefix: str, workers: int) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # type: ignore[import-not-found,import-untyped,unused-ignore]

    dtype = token_dtype(Tokenizer.from_file(vocabulary).get_vocab_size())
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype.type)
    with open(source, encoding="utf-8") as lines, multiprocessing.get_context("spawn").Pool(workers) as processes:
        for ids in processes.imap(_Encode(vocabulary), lines, POOL_CHUNK):
            if ids:
                builder.add_item(torch.tensor(ids))
                builder.end_document()
    builder.finalize(f"{prefix}.idx")


def datatrove(source: str, vocabulary: str, prefix: str, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found,unused-ignore]
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found,unused-ignore]
    from datatrove.pipeline.tokens import DocumentTokenizer  # type: ignore[import-not-found,unused-ignore]

    folder = Path(f"{prefix}.datatrove")
    reader = JsonlReader(str(Path(source).parent), glob_pattern=Path(source).name)
    tokens = DocumentTokenizer(
        str(folder / "tokens"), local_working_dir=str(folder / "work"), tokenizer_name_or_path=vocabulary, eos_token=END_OF_TEXT,
        shuffle_documents=False, max_tokens_per_file=10**12,
    )  # fmt: skip
    LocalPipelineExecutor([reader, tokens], tasks=workers, workers=workers, logging_dir=str(folder / "logs")).run()


WAYS: dict[str, Callable[[str, str, str, int], None]] = {"loop": loop, "pool": pool, "datatrove": datatrove}


def main(arguments: Sequence[str]) -> None:
    way, source, vocabulary, prefix, workers = arguments
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    WAYS[way](source, vocabulary, prefix, int(workers))


if __name__ == "__main__":
    main(sys.argv[1:])
