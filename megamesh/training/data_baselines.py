"""How others turn a .jsonl into an indexed dataset, for comparison: run as a process of its own, so that a whole command is timed.

    python -m megamesh.training.data_baselines loop|pool|datatrove INPUT.jsonl TOKENIZER.json OUTPUT_PREFIX WORKERS

loop        json, `tokenizers`' encode of each document, megatron-core's builder: one process, GPT-NeoX's way
pool        the same in a multiprocessing pool that sends lists of ids to the parent: GPT-NeoX's and Megatron's way with several workers
datatrove   its JsonlReader and DocumentTokenizer
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from megamesh.data.format import token_dtype

END_OF_TEXT = "<|endoftext|>"
POOL_CHUNK = 25  # documents sent at once, as in both scripts


def _builder(prefix: str, tokenizer: Tokenizer) -> Any:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return IndexedDatasetBuilder(f"{prefix}.bin", dtype=token_dtype(tokenizer.get_vocab_size()).type)


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
    import torch

    tokenizer = Tokenizer.from_file(vocabulary)
    builder, encode = _builder(prefix, tokenizer), _Encode(vocabulary)
    with open(source, encoding="utf-8") as lines:
        documents = map(encode, lines) if workers == 1 else _pooled(encode, lines, workers)
        for ids in documents:
            if ids:
                builder.add_item(torch.tensor(ids, dtype=torch.int64) if workers == 1 else np.array(ids))
                builder.end_document()
    builder.finalize(f"{prefix}.idx")


def _pooled(encode: _Encode, lines: Any, workers: int) -> Any:
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(encode, lines, POOL_CHUNK)


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


WAYS: dict[str, Callable[[str, str, str, int], None]] = {"loop": loop, "pool": loop, "datatrove": datatrove}


def main(arguments: Sequence[str]) -> None:
    way, source, vocabulary, prefix, workers = arguments
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    WAYS[way](source, vocabulary, prefix, int(workers))


if __name__ == "__main__":
    main(sys.argv[1:])
