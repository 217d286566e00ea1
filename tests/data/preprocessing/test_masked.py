"""tools/preprocess_data.py with labels, end to end: tokens and labels against plain loops over records."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from megamesh.data.preprocessing.folder import WorkFolder
from megamesh.data.samples.labels import num_counted_labels, open_labels
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.manifest import read_manifest
from tests.data.preprocessing.corpora import make_texts, train_vocabulary
from tools.preprocess_data import main

Run = Callable[..., int]
SPECIAL = "<|endoftext|>"
TURNS = (
    "{% for m in messages %}{{ '<|endoftext|>' }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|endoftext|>' }}assistant: {% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|endoftext|>' }}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '\\n' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masked")
    train_vocabulary(path, make_texts())
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    def preprocess(records: list[Any], *flags: str) -> int:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        words = ["--input", str(tmp_path / "a.jsonl"), "--output-prefix", str(tmp_path / "out"), "--overwrite"]
        words += ["--tokenizer-type", "HFTokenizer", "--vocab-file", str(folder / "tokenizer.json")]
        return main([*words, *flags])

    return preprocess


def written(prefix: Path, vocab_size: int = 320) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens and labels as training opens them."""
    tokens = IndexedDataset(f"{prefix}_document")
    labels = open_labels(f"{prefix}_label_document", tokens, vocab_size, None)
    assert labels.dtype == np.int32 and tokens.dtype == np.uint16
    found = [labels.get(i).tolist() for i in range(len(labels))]
    counted = num_counted_labels(labels, 0, len(labels), 1 << 30)
    assert counted.tolist() == [sum(label >= 0 for label in document[1:]) for document in found]
    return [tokens.get(i).tolist() for i in range(len(tokens))], found


def masked_by_hand(document: list[int], mark: list[int]) -> list[int]:
    for start in range(len(document) - len(mark) + 1):
        if document[start : start + len(mark)] == mark:
            counted_from = start + len(mark)
            return [-100] * counted_from + document[counted_from:]
    return document


@pytest.mark.parametrize("workers", ["1", "2"])
def test_tokens_after_the_mark_are_counted(run: Run, tokenizer: Tokenizer, tmp_path: Path, workers: str) -> None:
    texts = make_texts(seed=7)
    mark = tokenizer.encode("alphabeta").ids
    records = [{"text": text, "more": text[::-1]} for text in texts]
    flags = ["--mask-before-token", ",".join(map(str, mark)), "--append-eod", "--workers", workers]
    assert run(records, "--jsonl-keys", "text", "more", *flags) == 0
    end = tokenizer.token_to_id(SPECIAL)
    for key in ("text", "more"):
        expected = [[*tokenizer.encode(record[key]).ids, end] for record in records if record["text"]]
        labels = [masked_by_hand(document, mark) for document in expected]
        if key == "text":  # the mark has several tokens, and only some documents hold it
            assert len(mark) > 1 and 0.1 < sum(label[0] == -100 for label in labels) / len(labels) < 0.9
        assert written(tmp_path / f"out_{key}") == (expected, labels)
    manifest = read_manifest(tmp_path / "out.json")
    assert manifest.options["mark"] == flags[1]
    assert manifest.outputs["out_text_label_document"].smallest_id == -100


@pytest.mark.parametrize("append_eod", [False, True])
def test_keys_become_one_document_with_some_masked(
    run: Run, tokenizer: Tokenizer, tmp_path: Path, append_eod: bool
) -> None:
    draw, texts = random.Random(3), make_texts(seed=8)
    records = [{key: draw.choice(texts) for key in ("prompt", "context", "response")} for _ in range(200)]
    flags = ["--segment-keys", "context", "prompt", "response", "--mask-keys", "prompt", "context"]
    assert run(records, *flags, *(["--append-eod"] if append_eod else [])) == 0
    end = [tokenizer.token_to_id(SPECIAL)] if append_eod else []
    tokens, labels = [], []
    for record in records:
        parts = {key: tokenizer.encode(text).ids for key, text in record.items()}
        if any(parts.values()):
            tokens.append(parts["context"] + parts["prompt"] + parts["response"] + end)
            labels.append([-100] * len(parts["context"] + parts["prompt"]) + parts["response"] + end)
    assert written(tmp_path / "out_text") == (tokens, labels)


def conversations(count: int = 60) -> list[list[dict[str, str]]]:
    draw, texts = random.Random(4), make_texts(seed=9)
    turns = [["system"] * draw.randrange(2) + ["user", "assistant"] * draw.randrange(1, 4) for _ in range(count)]
    return [
        [{"role": role, "content": draw.choice(texts)} for role in roles + ["user"] * draw.randrange(2)]
        for roles in turns
    ]


def chat_by_hand(
    tokenizer: Tokenizer, messages: list[dict[str, str]], counted: Callable[[int], bool], line_end: bool
) -> tuple[list[int], list[int]]:
    """Which characters of the rendered text the model says, and from these its tokens."""
    text, said = "", []
    for number, message in enumerate(messages):
        for part, is_said in (
            (f"{SPECIAL}{message['role']}: ", False),
            (message["content"], counted(number)),
            ("\n", counted(number) and line_end),
        ):
            text += part
            said += [is_said] * len(part)
    encoding = tokenizer.encode(text)
    labels = [
        token if any(said[start:end]) else -100
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
    ]
    return encoding.ids, labels


@pytest.mark.parametrize("template", [TURNS, MARKED])
@pytest.mark.parametrize("only_last", [False, True])
def test_what_the_model_says_is_counted(
    run: Run, tokenizer: Tokenizer, tmp_path: Path, template: str, only_last: bool
) -> None:
    (tmp_path / "chat.jinja").write_text(template)
    chats = conversations()
    flags = ["--chat-key", "messages", "--chat-template", str(tmp_path / "chat.jinja"), "--append-eod"]
    assert run([{"messages": chat} for chat in chats], *flags, *(["--only-last"] if only_last else [])) == 0
    end, tokens, labels = tokenizer.token_to_id(SPECIAL), [], []
    for chat in chats:

        def is_counted(number: int, chat: list[dict[str, str]] = chat) -> bool:
            return chat[number]["role"] == "assistant" and (not only_last or number + 1 == len(chat))

        ids, found = chat_by_hand(tokenizer, chat, is_counted, line_end=template == TURNS)
        tokens.append([*ids, end])
        labels.append([*found, end if found[-1] >= 0 else -100])
    assert written(tmp_path / "out_messages") == (tokens, labels)


def test_everything_or_only_the_end_is_counted(run: Run, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(TURNS)
    chats = conversations(20)
    flags = ["--chat-key", "messages", "--chat-template", str(tmp_path / "chat.jinja"), "--append-eod"]
    assert run([{"messages": chat} for chat in chats], *flags, "--for-rm") == 0
    tokens, labels = written(tmp_path / "out_messages")
    assert labels == [[-100] * (len(document) - 1) + document[-1:] for document in tokens]
    (tmp_path / "out_messages_label_document.bin").unlink()
    assert run([{"messages": chat} for chat in chats], *flags, "--no-mask", "--generation-role", "system") == 0
    assert not (tmp_path / "out_messages_label_document.bin").exists()
    whole = IndexedDataset(tmp_path / "out_messages_document")
    assert [whole.get(i).tolist() for i in range(len(whole))] == tokens


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        ("--jsonl-keys a a_label", []),
        ("--jsonl-keys a b --mask-before-token 1", ["a_label", "b_label"]),
        ("--segment-keys a b --mask-keys a", ["text_label"]),
        ("--chat-key chat", ["chat_label"]),
        ("--chat-key chat --no-mask", []),
    ],
)
def test_labels_are_marked_and_are_not_counted_as_tokens(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    labels: list[str],
) -> None:
    """In the manifest, in the summary and in the progress, of which the last line stands there twice: shards encoded, and found again."""
    (tmp_path / "chat.jinja").write_text(TURNS)
    records = [
        {"a": a, "b": b, "a_label": b, "chat": chat}
        for a, b, chat in zip(make_texts(3), make_texts(4), conversations(), strict=False)
    ]
    words = flags.split() + (["--chat-template", str(tmp_path / "chat.jinja")] if "--chat-key" in flags else [])
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "publish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(records, *words)
    assert run(records, *words) == 0
    outputs = read_manifest(tmp_path / "out.json").outputs
    assert [name for name, output in outputs.items() if output.labels] == [f"out_{name}_document" for name in labels]
    tokens = sum(
        len(np.fromfile(tmp_path / f"{name}.bin", "<u2")) for name, output in outputs.items() if not output.labels
    )
    found = capsys.readouterr()
    assert f"documents, {tokens:,} tokens, " in found.out
    assert found.err.count(f"documents, {tokens:,} tokens, ") == 2


def test_malformed_conversations_are_bad_records(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chat.jinja").write_text(TURNS)
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    bad: list[Any] = [
        [{"content": "a"}],
        [*good, {"role": "user", "content": None}],
        "text",
        [good],
        5,
        [{"role": "user"}],
    ]
    records = [{"messages": value} for value in (good, *bad, [], good)]
    flags = ["--chat-key", "messages", "--chat-template", str(tmp_path / "chat.jinja")]
    assert run(records, *flags) == 1
    assert "a.jsonl:2: 'messages', message 1: it has no role" in capsys.readouterr().err
    assert run(records, *flags, "--on-bad-line", "skip") == 0
    assert len(written(tmp_path / "out_messages")[0]) == 2
    report = [json.loads(line) for line in (tmp_path / "out.skipped.jsonl").read_text().splitlines()]
    assert [entry["reason"] for entry in report] == [
        "bad-message", "bad-message", "not-a-string", "not-a-string", "not-a-string", "bad-message",
    ]  # fmt: skip
    assert "message 3: its content is null instead of text" in report[1]["message"]
    (tmp_path / "b.txt").write_text("plain text")
    assert run(records, *flags, "--input", str(tmp_path / "b.txt")) == 1
    assert "b.txt:1: a text file holds no lists of messages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--mask-before-token 1 --chat-key m",
            "--mask-before-token and --chat-key are different ways to mask; choose one",
        ),
        ("--mask-before-token 1,x", "--mask-before-token=1,x: give the mark as token ids (0 … 319)"),
        ("--mask-before-token 320", "--mask-before-token=320: give"),
        (
            "--mask-before-token 1 --jsonl-keys a a_label",
            "--mask-before-token writes a label output of that name itself",
        ),
        ("--mask-keys a", "--mask-keys=a needs --segment-keys"),
        ("--segment-keys a b --mask-keys c", "--mask-keys=c is not among --segment-keys=a b"),
        ("--segment-keys a b --mask-keys b a", "nothing would be counted"),
        ("--segment-keys a a", "--segment-keys=a a names a key twice"),
        ("--segment-keys a b --jsonl-keys a", "--segment-keys names the keys that are read"),
        ("--chat-key m --jsonl-keys a", "--chat-key names the keys that are read"),
        ("--chat-key m", "--chat-template"),
        ("--chat-key m --no-mask --only-last", "--no-mask and --only-last count different tokens"),
        ("--chat-key m --ftfy", "--ftfy is for text"),
        ("--chat-key m --tokenizer-engine gigatoken", "--tokenizer-engine=gigatoken is for text"),
        ("--only-last", "--only-last is about conversations"),
        ("--generation-role model", "--generation-role is about conversations"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert run([{"text": "x"}], *flags.split()) == 1
    assert message in capsys.readouterr().err
