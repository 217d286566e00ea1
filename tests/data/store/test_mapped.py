"""Thousands of files at once: small ones hold no descriptor, large ones as many as the system gives, and then one error says what to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megamesh.data.store.mapped import SMALL_BYTES, map_file
from tests.data import corpora

BUILD = """
import resource, sys
soft, hard, folder, count = *map(int, sys.argv[1:3]), sys.argv[3], int(sys.argv[4])
from megamesh.config.keys import DataConfig
from megamesh.data.samples.build import build_datasets
from megamesh.errors import DataError
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
data = DataConfig(train_data_paths=[f"{folder}/d{i % 2}" for i in range(count)], data_cache_path=f"{folder}/cache")
try:
    found = build_datasets(data, sequence_length=8, seed=1, num_samples=(2 * count, 0, 0), vocab_size=70_000)
    print(len(found.train), int(found.train[2 * count - 1].tokens.sum()) > 0)
except DataError as error:
    print(error)
"""


def build(soft: int, hard: int, folder: Path, count: int) -> str:
    """What a process with these limits on open files says after it has built a blend of `count` datasets."""
    command = [sys.executable, "-c", BUILD, *map(str, (soft, hard, folder, count))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two datasets whose .bin is too large to be read."""
    for number in range(2):
        corpora.write(tmp_path / f"d{number}", [SMALL_BYTES], first=1, dtype=np.int32)
    return tmp_path


def test_small_datasets_need_no_descriptor(tmp_path: Path) -> None:
    for number in range(2):
        corpora.write(tmp_path / f"d{number}", [30, 20], first=1, dtype=np.uint16)
    assert build(40, 40, tmp_path, 300) == "600 True"


def test_the_limit_is_raised_as_far_as_it_may_be(large: Path) -> None:
    assert build(40, 500, large, 100) == "200 True"


def test_too_many_files_are_one_error_with_a_mend(large: Path) -> None:
    said = build(40, 40, large, 100)
    assert "cannot be opened beside so many others (Too many open files); raise the limits (ulimit -n, here 40" in said


@pytest.mark.parametrize("size", [0, 5, SMALL_BYTES, SMALL_BYTES + 1])
def test_bytes_are_the_files_and_read_only(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    (tmp_path / "a").write_bytes(content)
    found = map_file(tmp_path / "a")
    assert found.tobytes() == content
    assert not found.flags.writeable
