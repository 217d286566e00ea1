"""One small corpus in every format, its documents, and the pair of files that megatron-core's own builder writes for them."""

import gzip
import json
import lzma
import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from megamesh.tokenizer import train

WORDS = [
    "alpha",
    "beta\n",
    "\tgamma",
    "é",
    "字",
    "🙂",
    "  ",
    "'\"\\",
    "\u2028",
    "\r\n",
    "\0",
    "\ufeff",
    "<|endoftext|>",
    "don't",
    "1234 ",
]


def make_texts(seed: int = 2, count: int = 400) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(WORDS, k=draw.choice([0, 1, 5, 300]))) for _ in range(count)]


def lines(texts: list[str]) -> bytes:
    """As .jsonl: a byte order mark, blank lines, no final newline, text escaped in every other line."""
    records = [
        json.dumps({"text": text, "title": text[:5], "n": i}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)
    ]
    return ("\ufeff" + "\n".join([*records[:50], "", "   ", *records[50:]])).encode()


def write_formats(folder: Path, texts: list[str]) -> dict[str, list[Path]]:
    """The inputs of each format; two files each where that says more."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    half = len(texts) // 2
    parts = [lines(texts[:half]), lines(texts[half:])]
    pack = {
        "jsonl": lambda content: content,
        "jsonl.gz": gzip.compress,
        "jsonl.zst": zstandard.ZstdCompressor().compress,
        "json.xz": lzma.compress,
    }
    found = {}
    for ending, compress in pack.items():
        found[ending] = [folder / f"part{i}.{ending}" for i in range(2)]
        for path, part in zip(found[ending], parts, strict=True):
            path.write_bytes(compress(part))
    found["parquet"] = [folder / "part0.parquet"]
    pq.write_table(pa.table({"n": list(range(len(texts))), "text": texts}), found["parquet"][0], row_group_size=37)
    return found


def train_vocabulary(folder: Path, texts: list[str]) -> Path:
    train.train_byte_level_bpe(texts, folder / "tokenizer.json", vocab_size=320)
    return folder / "tokenizer.json"


def write_with_megatron(texts: list[str], vocabulary: Path, prefix: Path) -> None:
    """What Megatron's and GPT-NeoX's scripts write: each text that is not empty, ended by the end-of-document token."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    tokenizer = Tokenizer.from_file(str(vocabulary))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    end = tokenizer.token_to_id("<|endoftext|>")
    for text in texts:
        if text:
            builder.add_item(torch.tensor([*tokenizer.encode(text).ids, end]))
            builder.end_document()
    builder.finalize(f"{prefix}.idx")


def arguments(folder: Path, pattern: str, prefix: Path, *more: str) -> list[str]:
    return [
        "--input", str(folder / pattern), "--tokenizer-type", "HFTokenizer", "--vocab", str(folder / "tokenizer.json"),
        "--append-eod", "--dataset-impl", "mmap", "--output-prefix", str(prefix), *more,
    ]  # fmt: skip
