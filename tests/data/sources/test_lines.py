"""Lines of JSON in every format: a plain reader's records and bad lines, at any shard size, block size and limit."""

import json
import random
from pathlib import Path

import pytest

from megamesh.data.sources import (
    ReadOptions,
    cut_into_shards,
    disk,
    find_inputs,
    json_lines,
    place,
    read_records,
    read_shard,
)
from megamesh.errors import DataError
from tests.data.sources.formats import LINES, MARK, read_all, slow_lines

GOOD = [
    b'{"text": "plain"}',
    '{"text": "é 字 🙂 \u2028 \x85 \u2029"}'.encode(),
    b'{"text": "a\\nb\\u0000c", "n": NaN}',
    b'{"text": ""}\r',
    b' \t{"other": "\\ud800", "text": "half a pair elsewhere"} ',
    b'{"text": "first", "text": "last"}',
    b'{"text": "big", "n": ' + b"9" * 5000 + b"}",
    b'{"text": "pair \\ud83d\\ude42", "n": 123456789012345678901234567890, "x": -Infinity}',
    '{"text": "\ufeff inside"}'.encode(),
]
BAD = [
    b"{",
    b'{"text": "open}',
    b'{"text": "a"} {"text": "b"}',
    b'{"text": "a"},',
    b'{"text": "caf\xe9"}',
    b'\xff\xfe{\x00"\x00',
    b'{"text": "\xed\xa0\x80"}',
    b'{"txt": "a"}',
    b"{}",
    b'{"text": null}',
    b'{"text": 3}',
    b'{"text": true}',
    b'{"text": ["a"]}',
    b'{"text": {"a": 1}}',
    b'["text"]',
    b'"text"',
    b"null",
    b"7",
    b'{"text": "\\ud800"}',
    b'{"text": "\\udc00\\ud800"}',
    b'{"text": "raw \x00 control"}',
    b"\x00",
    b'{"text": "\x01"}',
    MARK + b'{"text": "a mark in the middle"}',
    b"[" * 5000,
]
BLANK = [b"", b"  ", b"\r", b"\t \r"]


def corpus(seed: int, num_lines: int = 60) -> bytes:
    draw = random.Random(seed)
    kinds = [GOOD, GOOD, BAD, BLANK]
    lines = [draw.choice(draw.choice(kinds)) for _ in range(num_lines)]
    return draw.choice([b"", MARK]) + b"\n".join(lines) + draw.choice([b"", b"\n", b"\r\n", b"\n\n"])


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("orjson", [True, False], ids=["orjson", "json"])
def test_every_bad_line_in_every_format_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, orjson: bool
) -> None:
    if not orjson:
        monkeypatch.setattr(json_lines, "_fast_loads", json_lines._standard_loads)
    content = b"\n".join([*GOOD, *BAD, *BLANK, *GOOD])
    (tmp_path / name).write_bytes(LINES[name](content))
    assert read_all(tmp_path / name) == slow_lines(content)
    records, bad, lines = read_all(tmp_path / name)
    assert (len(records), len(bad), lines) == (2 * len(GOOD), len(BAD), 2 * len(GOOD) + len(BAD) + len(BLANK))


NASTY = [
    b"",
    b"\n",
    MARK,
    MARK + b"\n",
    MARK[:2] + b"\n",
    b'{"text": "a"}',
    b'{"text": "a"}\r\n{"text": "b"}\r\n',
    MARK + '{"text": "é字🙂"}\n\n \t\n{"text": "\u2028x"}\n'.encode() + MARK + b'{"text": "c"}',
    b'\n\n{"text": "a\x00"}\n{"text": "' + b"x" * 40 + b'"}\n{"text": "b"}\n\n\n',
]


@pytest.mark.parametrize("content", NASTY)
def test_shards_of_any_size_join_to_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    for block_bytes in (1, 3, 1 << 20):
        monkeypatch.setattr(disk, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(disk, "_SEARCH_BYTES", block_bytes)
        for limit in (20, 1 << 20):
            expected = slow_lines(content, limit)
            for shard_bytes in range(1, len(content) + 2):
                found = read_all(path, ReadOptions(max_document_bytes=limit), shard_bytes)
                assert found == expected, (block_bytes, limit, shard_bytes)


def test_random_corpora_at_random_shard_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, draw = tmp_path / "a.jsonl", random.Random(0)
    for seed in range(40):
        content = corpus(seed)
        path.write_bytes(content)
        monkeypatch.setattr(disk, "BLOCK_BYTES", draw.choice([1, 7, 64, 1 << 20]))
        limit = draw.choice([15, 60, 1 << 20])
        found = read_all(path, ReadOptions(max_document_bytes=limit), draw.randint(1, 200))
        assert found == slow_lines(content, limit), seed


def test_long_lines_in_streams_are_not_held(tmp_path: Path) -> None:
    content = b'{"text": "a"}\n{"text": "' + b"x" * (5 << 20) + b'"}\n{"text": "b"}\n' + b"y" * (3 << 20)
    for name in LINES:
        (tmp_path / name).write_bytes(LINES[name](content))
        assert read_all(tmp_path / name, ReadOptions(max_document_bytes=1000)) == slow_lines(content, 1000), name


def test_a_bad_line_is_placed_in_its_file(tmp_path: Path) -> None:
    content = MARK + b'{"text": "a"}\n\n\n{"text": "b"}\n{"text": null}\n{"text": "c"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    for shard_bytes in range(1, len(content) + 1):
        before, places = 0, []
        for shard in cut_into_shards(find_inputs([str(path)]), shard_bytes):
            parts = list(read_shard(shard, ReadOptions()))
            places += [(place(shard, bad), place(shard, bad, before)) for part in parts for bad in part.bad]
            before += sum(part.num_lines for part in parts)
        assert places == [(f"{path}:5", f"{path}:5")], shard_bytes
    archive = tmp_path / "a.jsonl.zst.tar"
    archive.write_bytes(LINES["a.jsonl.zst.tar"](content))
    said = r"a\.jsonl\.zst\.tar!a\.jsonl\.zst:5: 'text' is null instead of text; mend or remove the record$"
    with pytest.raises(DataError, match=said):
        list(read_records(find_inputs([str(archive)]), ReadOptions()))


def test_keys_stay_aligned_and_a_record_with_one_bad_key_is_left_out(tmp_path: Path) -> None:
    lines = [
        {"a": "1", "b": "x"},
        {"a": "2", "b": None},
        {"a": "3"},
        {"b": "y", "a": ""},
        {"a": "", "b": ""},
        {"a": 5, "b": "z"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    records, bad, _ = read_all(path, ReadOptions(keys=("b", "a")))
    assert records == [("x", "1"), ("y", ""), ("", "")]
    assert bad == [(2, "null"), (3, "missing-key"), (6, "not-a-string")]


def test_paragraphs_are_joined_and_conversations_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    conversation = [{"role": "user", "content": "é"}]
    calls = [*conversation, {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}]
    values = ["plain", ["a", "b"], [], conversation, ["a", 1], None, [{"role": "\ud800"}], ["\ud800"], 3, calls]
    values += [[{"role": "user"}], [{"content": "a"}], [*conversation, {"role": "user", "content": 3}]]
    path.write_text("\n".join(json.dumps({"text": value}) for value in values))
    records, bad, _ = read_all(path, ReadOptions(join_paragraphs=True))
    assert records == [("plain",), ("a\n\nb",), ("",)]
    odd = ["not-a-string"] * 2 + ["null", "not-a-string", "surrogate", "not-a-string"]
    assert [reason for _, reason in bad] == odd + ["not-a-string"] * 4
    records, bad, _ = read_all(path, ReadOptions(messages=True))
    assert records == [([],), (conversation,), (calls,)]
    reasons = {1: "not-a-string", 2: "not-a-string", 5: "not-a-string", 6: "null", 7: "surrogate"}
    reasons |= {8: "not-a-string", 9: "not-a-string", 11: "bad-message", 12: "bad-message", 13: "bad-message"}
    assert dict(bad) == reasons
