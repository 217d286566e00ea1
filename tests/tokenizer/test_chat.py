"""Chat templates: ids and labels against transformers' own apply_chat_template, and labels against what the messages say."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer.backend import BackendTokenizer, load_hf
from megamesh.tokenizer.chat import IGNORED, ChatOptions, ChatTemplate, ConversationEncoder, load_chat_template

PLAIN = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|stop|>{% endgeneration %}{% else %}{{ m.content }}<|stop|>{% endif %}\n{% endfor %}"
)
REWRITING = "{% for m in messages %}{{ m.role if loop.last else 'x' }}: {{ m.content }}\n{% endfor %}"
WORDS = ("yes", " no", "  ", "é", "🙂", "漢字", "\n", "def f():", "<|stop|>", " 12", "", "the the")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|start|>", "<|stop|>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([Path(json.__file__).read_text(encoding="utf-8")], trainer)
    backend.save(str(path / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "bos_token": {"content": "<s>"}, "chat_template": PLAIN}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def encoder(folder: Path, template: str, end: bool = False, **options: object) -> ConversationEncoder:
    tokenizer = load_hf(folder / "tokenizer.json")
    found = ChatTemplate(template, load_chat_template(folder / "tokenizer.json").special)
    return ConversationEncoder(
        tokenizer,
        found,
        ChatOptions(**options),
        end_id=tokenizer.eod_id if end else None,  # type: ignore[arg-type]
    )


def conversations(count: int) -> list[list[dict[str, str]]]:
    draw = random.Random(0)
    return [
        [
            {"role": role, "content": "".join(draw.choices(WORDS, k=draw.randrange(6)))}
            for role in [["system"], []][draw.randrange(2)] + ["user", "assistant"] * draw.randrange(1, 4)
        ]
        for _ in range(count)
    ]


def counted_text(tokenizer: BackendTokenizer, ids: np.ndarray, labels: np.ndarray) -> str:
    assert np.isin(labels, [IGNORED, *ids]).all() and (labels[labels != IGNORED] == ids[labels != IGNORED]).all()
    return tokenizer.backend.decode(labels[labels != IGNORED].tolist(), skip_special_tokens=False)


def test_ids_and_marked_labels_are_those_of_transformers(folder: Path) -> None:
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="<|endoftext|>"
    )
    chats = conversations(60)
    ids, lengths, labels = encoder(folder, MARKED).encode(chats)
    place = 0
    for chat, length in zip(chats, lengths, strict=True):
        expected = theirs.apply_chat_template(
            chat, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        part = slice(place, place := place + int(length))
        assert ids[part].tolist() == expected["input_ids"]
        assert (labels[part] != IGNORED).tolist() == [bool(m) for m in expected["assistant_masks"]]


def test_without_marks_the_answers_are_counted_with_their_ends(folder: Path) -> None:
    tokenizer = load_hf(folder / "tokenizer.json")
    for chat in conversations(60):
        for message in chat:
            message["content"] = "so" + message["content"]  # no word lies across the beginning of an answer
        ids, _, labels = encoder(folder, PLAIN).encode([chat])
        answers = "".join(f"{m['content']}<|stop|>\n" for m in chat if m["role"] == "assistant")
        assert counted_text(tokenizer, ids, labels) == answers
        ids, _, labels = encoder(folder, PLAIN, only_last=True).encode([json.dumps(chat)])
        assert counted_text(tokenizer, ids, labels) == f"{chat[-1]['content']}<|stop|>\n"


def test_what_is_counted_by_option(folder: Path) -> None:
    chats = conversations(5)
    plain, lengths, labels = encoder(folder, PLAIN, mask=False, end=True).encode(chats)
    assert (plain == labels).all()
    ids, same, labels = encoder(folder, PLAIN, only_end=True, end=True).encode(chats)
    assert (ids == plain).all() and (same == lengths).all()
    ends = np.cumsum(lengths) - 1
    assert np.flatnonzero(labels != IGNORED).tolist() == ends.tolist() and (labels[ends] == ids[ends]).all()
    with_user = [[*chat, {"role": "user", "content": "and?"}] for chat in chats]
    _, lengths, labels = encoder(folder, PLAIN, only_last=True, end=True).encode(with_user)
    assert (labels == IGNORED).all(), "the last message is not the model's"


def test_the_template_beside_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    found = load_chat_template(folder / "tokenizer.json")
    assert found.text == PLAIN and found.special == {"eos_token": "<|endoftext|>", "bos_token": "<s>"}
    mine = tmp_path / "mine.jinja"
    mine.write_text(MARKED, encoding="utf-8")
    assert load_chat_template(folder / "tokenizer.json", mine).text == MARKED
    with pytest.raises(DataError, match="--chat-template"):
        load_chat_template(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "chat", ["[", "3", [], {"role": "user"}, [["role", "user"]], [{"content": "x"}], [{"role": None, "content": "x"}]]
)
def test_what_is_no_conversation_is_refused(folder: Path, chat: object) -> None:
    with pytest.raises(DataError, match=r"message|conversation"):
        encoder(folder, PLAIN).encode([chat])


def test_templates_that_cannot_be_followed_are_refused(folder: Path) -> None:
    chat = [{"role": r, "content": "hello"} for r in ("user", "assistant", "user", "assistant")]
    with pytest.raises(DataError, match="generation"):
        encoder(folder, REWRITING).encode([chat])
    with pytest.raises(DataError, match="roles must take turns"):
        encoder(folder, "{{ raise_exception('roles must take turns') }}").encode([chat])
    with pytest.raises(ConfigError, match="--append-eod"):
        encoder(folder, PLAIN, only_end=True)
    with pytest.raises(ConfigError, match="--no-mask"):
        ChatOptions(mask=False, only_last=True)
