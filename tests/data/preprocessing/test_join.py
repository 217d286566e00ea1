"""Joined files hold every shard at its place, in whatever order shards become complete, and whichever rank copies them."""

import random
from pathlib import Path

import pytest

from megamesh.data.preprocessing.folder import WorkFolder
from megamesh.data.preprocessing.join import Joiner, make_targets
from megamesh.data.preprocessing.shard import Job, OutputFacts, ShardFacts
from megamesh.data.sources.inputs import InputFile
from megamesh.data.sources.shard import Shard

NAMES = ["a_document", "b_document"]
NUM_SHARDS = 12


def job(number: int) -> Job:
    return Job(Shard(InputFile(Path("a.jsonl"), "jsonl", "none", 0), 0, 0, 0), 0, (0, 0), f"shard{number}")


@pytest.fixture
def folder(tmp_path: Path) -> WorkFolder:
    folder = WorkFolder(tmp_path / "out")
    folder.path.mkdir()
    return folder


def write_shards(folder: WorkFolder) -> tuple[dict[int, ShardFacts], list[bytes]]:
    """Token files of random sizes, some of them empty; their facts, and what each joined file must hold."""
    draw, whole, facts = random.Random(3), [b""] * len(NAMES), {}
    for number in range(NUM_SHARDS):
        sizes = [draw.choice([0, 1, 700, 5000]) for _ in NAMES]
        for output, size in enumerate(sizes):
            content = draw.randbytes(size)
            folder.tokens(job(number).identity, output).write_bytes(content)
            whole[output] += content
        outputs = [OutputFacts(size, size, "", 0, 0) for size in sizes]
        facts[number] = ShardFacts(1, 1, 0, 1, {}, outputs, [])
    return facts, whole


@pytest.mark.parametrize(("num_ranks", "threads"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_joined_files_are_the_shards_in_order(folder: WorkFolder, num_ranks: int, threads: int) -> None:
    facts, whole = write_shards(folder)
    numbers = list(facts)
    make_targets(NAMES, folder)
    random.Random(num_ranks).shuffle(numbers)
    for rank in range(num_ranks):
        with Joiner([job(i) for i in range(NUM_SHARDS)], numbers[rank::num_ranks], NAMES, folder) as joiner:
            for number in numbers[rank::num_ranks]:
                joiner.add({number: facts[number]})
            joiner.add(facts, threads)
            joiner.finish()
    assert [(folder.joined / f"{name}.bin").read_bytes() for name in NAMES] == whole


def test_a_rank_copies_its_own_shards_only(folder: WorkFolder) -> None:
    """Between them it leaves holes for the others."""
    facts, whole = write_shards(folder)
    make_targets(NAMES, folder)
    with Joiner([job(i) for i in range(NUM_SHARDS)], range(0, NUM_SHARDS, 2), NAMES, folder) as joiner:
        joiner.add(facts)
        joiner.finish()
    for output, name in enumerate(NAMES):
        content, place = (folder.joined / f"{name}.bin").read_bytes().ljust(len(whole[output]), b"\0"), 0
        for number in range(NUM_SHARDS):
            size = facts[number].outputs[output].num_bytes
            expected = bytes(size) if number % 2 else whole[output][place : place + size]
            assert content[place : place + size] == expected
            place += size


def test_a_shard_is_copied_as_soon_as_all_before_it_are_complete(folder: WorkFolder) -> None:
    facts, whole = write_shards(folder)
    make_targets(NAMES, folder)
    with Joiner([job(i) for i in range(NUM_SHARDS)], range(NUM_SHARDS), NAMES, folder) as joiner:
        joiner.add({number: facts[number] for number in range(1, NUM_SHARDS)})
        assert [(folder.joined / f"{name}.bin").stat().st_size for name in NAMES] == [0, 0]
        with pytest.raises(AssertionError, match=f"{NUM_SHARDS} shards are not complete"):
            joiner.finish()
        joiner.add({0: facts[0]})
        assert [(folder.joined / f"{name}.bin").read_bytes() for name in NAMES] == whole


def test_what_an_earlier_run_joined_is_gone(folder: WorkFolder) -> None:
    folder.joined.mkdir()
    (folder.joined / "other_document.bin").write_bytes(b"old")
    (folder.joined / f"{NAMES[0]}.bin").write_bytes(b"old")
    make_targets(NAMES, folder)
    assert {path.name: path.stat().st_size for path in folder.joined.iterdir()} == {f"{name}.bin": 0 for name in NAMES}
