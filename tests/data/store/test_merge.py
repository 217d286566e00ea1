"""Merging: the bytes of a single pass and of megatron-core's own merge; what must not be merged is refused and nothing is written."""

import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronDataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder as MegatronBuilder

from megamesh.data.store import assemble, stored
from megamesh.data.store.indexed import IndexedDataset, IndexedWriter
from megamesh.data.store.manifest import (
    Counts,
    Manifest,
    holds_labels,
    manifest_path,
    read_manifest,
    tokenizer_facts,
    write_manifest,
)
from megamesh.data.store.merge import merge as merge_datasets
from megamesh.data.store.split import by_parts, split
from megamesh.data.store.stored import find_prefixes
from megamesh.data.store.verification import verify
from megamesh.errors import DataError

Documents = list[list[list[int]]]


def random_documents(seed: int, number: int) -> Documents:
    """Documents of several sequences; empty sequences and documents without any among them."""
    draw = random.Random(seed)
    return [
        [[draw.randrange(200) for _ in range(draw.choice([0, 1, 7, 90]))] for _ in range(draw.choice([0, 1, 1, 3]))]
        for _ in range(number)
    ]


def write(prefix: Path, documents: Documents, dtype: type = np.uint16) -> None:
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            for sequence in document:
                writer.add_sequence(sequence)
            writer.end_document()


def describe(prefix: Path, **facts: object) -> None:
    """Give a dataset a manifest, as the preprocessor would, by merging it alone."""
    merge_datasets([str(prefix)], f"{prefix}.copy")
    copy = manifest_path(f"{prefix}.copy")
    output = read_manifest(copy).outputs[f"{prefix.name}.copy"]
    write_manifest(manifest_path(prefix), Manifest(outputs={prefix.name: output}, **facts))  # type: ignore[arg-type]


def mark_as_labels(prefix: Path) -> None:
    manifest = read_manifest(manifest_path(prefix))
    marked = {prefix.name: manifest.outputs[prefix.name].model_copy(update={"labels": True})}
    write_manifest(manifest_path(prefix), manifest.model_copy(update={"outputs": marked}))


def pair(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop over pieces goes round many times."""
    monkeypatch.setattr(stored, "PIECE", 5)
    monkeypatch.setattr(assemble, "COPY_BYTES", 64)
    monkeypatch.setattr(assemble, "READ_BYTES", 32)
    monkeypatch.setattr(assemble, "PART_BYTES", 96)


@pytest.mark.usefixtures("small_pieces")
def test_a_merge_is_the_single_pass_byte_for_byte_and_megatrons(tmp_path: Path) -> None:
    shards = [random_documents(1, 30), [], random_documents(2, 1), random_documents(3, 40)]
    prefixes = [tmp_path / f"shard{i}" for i in range(len(shards))]
    for prefix, shard in zip(prefixes, shards, strict=True):
        write(prefix, shard)
    write(tmp_path / "whole", [document for shard in shards for document in shard])
    written = merge_datasets(list(map(str, prefixes)), str(tmp_path / "merged"))
    assert pair(tmp_path / "merged") == pair(tmp_path / "whole")
    assert written.documents == 71
    builder = MegatronBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for i in (0, 2, 3):  # megatron-core cannot open an empty .bin
        builder.add_index(str(prefixes[i]))
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert pair(tmp_path / "merged") == pair(tmp_path / "theirs")
    theirs = MegatronDataset(str(tmp_path / "merged"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == [s for shard in shards for d in shard for s in d]


@pytest.mark.usefixtures("small_pieces")
def test_the_manifest_of_a_merge_joins_those_of_its_inputs(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab"
    vocabulary.write_text("x")
    facts = tokenizer_facts("HFTokenizer", 200, [vocabulary], {})
    for i in range(3):
        write(tmp_path / f"in{i}", random_documents(i, 30))
        if i != 1:
            counts = Counts(records=40, documents=30, empty=8, skipped={"null": 2})
            describe(tmp_path / f"in{i}", tokenizer=facts, counts=counts)
    prefixes = [str(tmp_path / f"in{i}") for i in range(3)]
    merge_datasets([prefixes[0], prefixes[2]], str(tmp_path / "known"))
    manifest = read_manifest(tmp_path / "known.json")
    output = manifest.outputs["known"]
    assert output.parts == [
        part for i in (0, 2) for part in read_manifest(tmp_path / f"in{i}.json").outputs[f"in{i}"].parts
    ]
    assert manifest.tokenizer == facts
    assert manifest.made_from == [prefixes[0], prefixes[2]]
    assert manifest.counts == Counts(records=80, documents=60, empty=16, skipped={"null": 4})
    merge_datasets(prefixes, str(tmp_path / "mixed"))
    mixed = read_manifest(tmp_path / "mixed.json")
    assert mixed.tokenizer is None
    assert mixed.counts is None
    tokens = np.fromfile(tmp_path / "mixed.bin", np.uint16)
    found = mixed.outputs["mixed"]
    assert (found.smallest_id, found.largest_id, found.tokens) == (tokens.min(), tokens.max(), len(tokens))
    assert verify(str(tmp_path / "known")) == []
    assert verify(str(tmp_path / "mixed")) == []


@pytest.mark.usefixtures("small_pieces")
def test_different_number_formats_are_refused_or_widened(tmp_path: Path) -> None:
    shards = [random_documents(1, 20), random_documents(2, 20)]
    write(tmp_path / "a", shards[0], np.uint16)
    write(tmp_path / "b", shards[1], np.int32)
    prefixes = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(DataError, match=r"a has uint16; .*b has int32; add --widen"):
        merge_datasets(prefixes, str(tmp_path / "merged"))
    assert not list(tmp_path.glob("merged*"))
    merge_datasets(prefixes, str(tmp_path / "merged"), widen=True)
    write(tmp_path / "whole", shards[0] + shards[1], np.int32)
    assert pair(tmp_path / "merged") == pair(tmp_path / "whole")
    assert verify(str(tmp_path / "merged")) == []


@pytest.mark.usefixtures("small_pieces")
def test_bytes_between_sequences_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "gaps", [[[1, 2, 3]], [[4, 5]], [[]], [[6]]])
    index = bytearray(Path(tmp_path / "gaps.idx").read_bytes())
    index[34 + 16 : 34 + 16 + 32] = np.array([2, 12, 16, 20], "<i8").tobytes()
    (tmp_path / "gaps.idx").write_bytes(index)
    (tmp_path / "gaps.bin").write_bytes(np.array([9, 1, 2, 3, 9, 9, 4, 5, 9, 9, 6, 9], "<u2").tobytes())
    merge_datasets([str(tmp_path / "gaps")], str(tmp_path / "merged"))
    write(tmp_path / "whole", [[[1, 2, 3]], [[4, 5]], [[]], [[6]]])
    assert pair(tmp_path / "merged") == pair(tmp_path / "whole")


def test_a_lost_document_index_is_refused_or_replaced(tmp_path: Path) -> None:
    write(tmp_path / "whole", [[[1, 2]], [[3]], [[4]]])
    content = (tmp_path / "whole.idx").read_bytes()
    lost = {
        "none": content[:26] + (0).to_bytes(8, "little") + content[34 : 34 + 36],
        "short": content[:26] + (3).to_bytes(8, "little") + content[34 : 34 + 36 + 24],
        "falling": content[: 34 + 36] + np.array([0, 2, 1, 3], "<i8").tobytes(),
    }
    for name, index in lost.items():
        (tmp_path / f"{name}.idx").write_bytes(index)
        (tmp_path / f"{name}.bin").write_bytes((tmp_path / "whole.bin").read_bytes())
        with pytest.raises(
            DataError, match=rf"{name}.idx: its document index is not whole .*--sequences-are-documents"
        ):
            merge_datasets([str(tmp_path / name)], str(tmp_path / "merged"))
        merge_datasets([str(tmp_path / name)], str(tmp_path / "merged"), sequences_are_documents=True, overwrite=True)
        assert pair(tmp_path / "merged") == pair(tmp_path / "whole")


def test_different_tokenizers_are_refused_unless_allowed(tmp_path: Path) -> None:
    for i, kind in enumerate(["HFTokenizer", "TiktokenTokenizer"]):
        write(tmp_path / f"in{i}", random_documents(i, 3))
        describe(tmp_path / f"in{i}", tokenizer=tokenizer_facts(kind, 200, [], {}))
    prefixes = [str(tmp_path / f"in{i}") for i in range(2)]
    with pytest.raises(
        DataError, match=r"in0 with HFTokenizer .* and .*in1 with Tiktoken.*--allow-different-tokenizers"
    ):
        merge_datasets(prefixes, str(tmp_path / "merged"))
    merge_datasets(prefixes, str(tmp_path / "merged"), allow_different_tokenizers=True)
    assert read_manifest(tmp_path / "merged.json").tokenizer is None


def test_labels_and_tokens_are_merged_apart(tmp_path: Path) -> None:
    """Refused where manifests tell them apart, whatever their number formats; a merge and a split of labels are labels."""
    for name, dtype in (("a_text_document", np.uint16), ("b_text_document", np.int32), ("unknown", np.int32)):
        write(tmp_path / name, [[[1, 2]], [[3]]], dtype)
    for name in ("a_text_document", "b_text_document"):
        describe(tmp_path / name)
    prefixes = [str(tmp_path / f"{name}_label_document") for name in "ab"]
    for prefix in map(Path, prefixes):
        write(prefix, [[[-100, 2]], [[3]]], np.int32)
        describe(prefix)
        mark_as_labels(prefix)
    for name in ("a_text_document", "b_text_document"):
        with pytest.raises(DataError, match=rf"a_label_document holds labels, but .*{name} tokens; merge them apart"):
            merge_datasets([prefixes[0], str(tmp_path / name)], str(tmp_path / "merged"))
    assert not list(tmp_path.glob("merged*"))
    merge_datasets(prefixes, str(tmp_path / "merged"))
    split(str(tmp_path / "merged"), str(tmp_path / "merged"), lambda one: by_parts(one, 2))
    assert all(holds_labels(tmp_path / name) for name in ("merged", "merged_part0", "merged_part1"))
    merge_datasets(
        [str(tmp_path / f"{name}_document") for name in ("a_text", "b_text")], str(tmp_path / "text"), widen=True
    )
    merge_datasets([str(tmp_path / "b_text_document"), str(tmp_path / "unknown")], str(tmp_path / "more"))
    assert not holds_labels(tmp_path / "text") and not holds_labels(tmp_path / "more")


def test_outputs_that_must_not_be_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a", [[[1]]])
    write(tmp_path / "b", [[[2]]])
    before = pair(tmp_path / "a")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(DataError, match=r"b.bin: exists; .*--overwrite"):
        merge_datasets([a], b)
    (tmp_path / "link.bin").symlink_to(tmp_path / "a.bin")
    for output in (a, str(tmp_path / "link")):
        with pytest.raises(DataError, match="is an input"):
            merge_datasets([a, b], output, overwrite=True)
    (tmp_path / "run.json").write_text(json.dumps({"train": 1}))
    with pytest.raises(DataError, match=r"run.json: is needed for the manifest"):
        merge_datasets([a, b], str(tmp_path / "run"), overwrite=True)
    with pytest.raises(DataError, match=r"run.json: .* choose another --output-prefix"):
        merge_datasets([a, b], str(tmp_path / "run.json" / "x"))
    merge_datasets([a], str(tmp_path / "new" / "folder" / "x"))
    assert pair(tmp_path / "new" / "folder" / "x") == before
    merge_datasets([b], str(tmp_path / "out"))
    merge_datasets([a], str(tmp_path / "out"), overwrite=True)
    assert pair(tmp_path / "out") == pair(tmp_path / "a") == before
    IndexedDataset(tmp_path / "out").check_token_ids(2)  # 1: what is kept of the ids is of the new file


@pytest.mark.parametrize("failing", ["copy_range", "write_index", "write_manifest"])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    write(tmp_path / "a", [[[1, 2]]])
    write(tmp_path / "out", [[[3]]])
    before = pair(tmp_path / "out")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.bin")

    monkeypatch.setattr(assemble, failing, full)
    with pytest.raises(DataError, match=r"out.bin: No space left on device; .*Free space"):
        merge_datasets([str(tmp_path / "a")], str(tmp_path / "out"), overwrite=True)
    assert pair(tmp_path / "out") == before
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_read_only_folder_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only file system refuses to remove even what does not exist."""
    write(tmp_path / "a", [[[1, 2]]])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "out.bin")

    monkeypatch.setattr(assemble, "_copy_tokens", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DataError, match=r"out.bin: Read-only file system; .*make it writable, or choose another"):
        merge_datasets([str(tmp_path / "a")], str(tmp_path / "out"))


def test_an_input_that_is_not_its_manifests_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [[[1, 2]], [[3]]])
    describe(tmp_path / "a")
    write(tmp_path / "other", [[[1]], [[2, 3]]])
    (tmp_path / "a.idx").write_bytes((tmp_path / "other.idx").read_bytes())
    with pytest.raises(DataError, match=r"not the files that .*a.json describes"):
        merge_datasets([str(tmp_path / "a")], str(tmp_path / "out"))


def test_names_stand_for_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "run.unfinished" / "joined").mkdir(parents=True)
    for name in ("sub/b.v1_text_document", "sub/a", "c", "sub/run.unfinished/joined/x"):
        write(Path(name), [[[1]]])
    assert find_prefixes(["c", "sub"]) == ["c", "sub/a", "sub/b.v1_text_document"]
    assert find_prefixes(["sub/[ab]*", "c.idx"]) == ["sub/a", "sub/b.v1_text_document", "c"]
    resolved_by_the_shell = sorted(map(str, Path("sub").glob("[ab]*")))
    assert find_prefixes([*resolved_by_the_shell, "c.idx", "c.bin"]) == ["sub/a", "sub/b.v1_text_document", "c"]
    for twice in (
        ["sub/a.bin", "sub"],
        ["sub/a", "sub/a.idx"],
        ["sub/a.bin", "sub/../sub/a.bin"],
        ["sub/a.idx", "sub/*.idx"],
    ):
        with pytest.raises(DataError, match=r"sub/a is named twice"):
            find_prefixes(twice)
    with pytest.raises(DataError, match=r"nowhere\*: no dataset there"):
        find_prefixes(["c", "nowhere*"])


def test_damage_passes_into_a_merge_but_not_by_the_check_of_ids(tmp_path: Path) -> None:
    """The manifest's bounds are not those of the damaged bytes: training looks at these."""
    write(tmp_path / "a", [[[1, 2, 3]], [[4]]])
    merge_datasets([str(tmp_path / "a")], str(tmp_path / "b"))
    content = bytearray((tmp_path / "b.bin").read_bytes())
    content[-1] = 1
    (tmp_path / "b.bin").write_bytes(content)
    merge_datasets([str(tmp_path / "b")], str(tmp_path / "c"))
    with pytest.raises(DataError, match="outside the vocabulary of 9"):
        IndexedDataset(tmp_path / "c").check_token_ids(9)
    assert verify(tmp_path / "c")


def test_a_damaged_manifest_is_not_as_none(tmp_path: Path) -> None:
    write(tmp_path / "a", [[[1, 2]]])
    merge_datasets([str(tmp_path / "a")], str(tmp_path / "b"))
    (tmp_path / "b.json").write_bytes(b"x" + (tmp_path / "b.json").read_bytes()[1:])
    with pytest.raises(DataError, match=r"b.json: not a readable manifest .*remove it"):
        merge_datasets([str(tmp_path / "b")], str(tmp_path / "c"))
    with pytest.raises(DataError, match=r"b.json: not a readable manifest"):
        merge_datasets([str(tmp_path / "a")], str(tmp_path / "b"), overwrite=True)


def test_an_output_needs_a_name(tmp_path: Path) -> None:
    write(tmp_path / "a", [[[1, 2]]])
    with pytest.raises(DataError, match="is a folder; add the start of a name"):
        merge_datasets([str(tmp_path / "a")], f"{tmp_path}/")
