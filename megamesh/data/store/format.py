"""The bytes of a Megatron indexed dataset: `<prefix>.bin` (tokens) and `<prefix>.idx` (where each sequence lies).

.idx, little-endian
0   9   MMIDIDX\\0\\0
9   8   u64 version = 1
17  1   dtype of the tokens
18  8   u64 n: sequences
26  8   u64 d: length of the document index
34      n × i32 lengths in tokens, n × i64 byte offsets into .bin, d × i64 document index (cumulative sequence counts, 0 … n)
"""

import os
import struct
from pathlib import Path

import numpy as np

from megamesh.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TOKEN_DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
DTYPE_CODES = {dtype: code for code, dtype in TOKEN_DTYPES.items()}
FLOAT_CODES = (6, 7)
UINT16_VOCABULARY = 65_500


def bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


def check_prefix(prefix: str | Path) -> None:
    """Raise DataError where an output's prefix has no name in it, or one that configurations and manifests could not hold."""
    if str(prefix).endswith(os.sep) or Path(prefix).name in ("", ".."):
        example = Path(prefix) / "corpus"
        raise DataError(f"--output-prefix={prefix}: is a folder; add the start of a name, as in {example}")

    try:
        str(prefix).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"--output-prefix={str(prefix)!r}: is not UTF-8, as a configuration must be; choose another name"
        ) from error


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where the unpadded vocabulary is below 65,500 (Megatron's and NeoX's rule), else int32."""
    return np.dtype("<u2") if vocab_size < UINT16_VOCABULARY else np.dtype("<i4")
