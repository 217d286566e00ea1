"""Sentencepiece model → tokenizer.json, verified before it is written; or the model itself, with the code that reads it.

    model proto ─▶ pieces, scores, normaliser ─▶ tokenizers Unigram or BPE ─▶ same ids on probes? ─▶ tokenizer.json
          └─────────────────────────── as it is ───────────────────────────▶ sentencepiece.model, tokenization_megamesh.py

transformers' own converters assume a fixed normaliser and let `<s>` or `<0x0A>`, where they stand in a text, become control or byte
tokens. Here control, unknown and byte pieces score so low that spelled-out text never uses them, and special tokens in text are spelled
out, as sentencepiece does. What cannot be carried over shows up in the probes, and the export is refused. Normalisers are such a thing:
sentencepiece replaces the longest key wherever it begins, tokenizers looks at whole graphemes and keeps the shortest key of each, so
decomposed text comes out otherwise. The probes hold every key of the model's normaliser (charsmap.py).
For unigram models trained elsewhere one difference can remain: between
segmentations whose scores tie, each library follows its own rounding (train.quantised removes this from ours).
"""

import json
import random
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from megamesh.errors import DataError
from megamesh.tokenizer.backend import write_pretrained
from megamesh.tokenizer.charsmap import probe_texts, replacements

SPACE_MARK = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
PROBES = (
    "",
    " ",
    "\n",
    "\t",
    "a",
    "  two before, three after   ",
    "def f(x):\n\tif x:\n\t\treturn  {'a': x}\n\n\n    return None\n",
    "class A:\n    def b(self):\n        pass  # indented by 8\r\n",
    "tabs\t\t\tand spaces   \t mixed\n \n\t\n",
    "<s> </s> <unk> <pad> <0x0A> <0xFF> <|endoftext|> spelled out",
    "naïve café, Ångström, ½, ﬁ, ①, e\u0301, 中文字符, кириллица, العربية, 🙂👩‍👩‍👧",
    "control \x00\x01\x7f, \u200b\ufeff\u00a0\u2028",
    "0123456789 3.14159e-10 0xFFFF ((((((((((()))))))))))",
    unicodedata.normalize("NFD", "안녕하세요 한국어, tiếng Việt được, ガギグ がぎ, Ångström"),
    "ﾊﾝｶｸ ｶﾞｷﾞﾊﾟ, ক\u09c7\u09beথায়, ﬁ\u0308 ½\u0308 ①\u0323 a\x85b\r\nc",
)
CODE = Path(__file__).with_name("tokenization_megamesh.py")
MODEL_FILE = "sentencepiece.model"


def export_sentencepiece(
    processor: SentencePieceProcessor, model: bytes, folder: Path, name: str, encode: Callable[[str], list[int]]
) -> None:
    """Write tokenizer.json and tokenizer_config.json that give the ids of `encode`; raises DataError where they would not."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    if proto.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise DataError(f"{name}: only unigram and bpe models can be written for transformers")
    backend = _backend(proto)
    backend.encode_special_tokens = True
    differs = _difference(encode, lambda text: list(backend.encode(text).ids), _probes(proto))
    if differs is not None:
        ours, theirs = encode(differs), list(backend.encode(differs).ids)
        normalised = processor.normalize(differs), backend.normalizer.normalize_str(differs)
        reason = " (its normaliser makes {!r} of it here and {!r} there)".format(*normalised)
        raise DataError(
            f"{name}: cannot be written for transformers with the same token ids: {differs!r} gives {ours} here and {theirs} there"
            f"{reason if normalised[0] != normalised[1] else ''}; write the model itself with the code that reads it "
            "(tools/convert_to_hf.py --tokenizer-files sentencepiece), or train with tools/train_tokenizer.py, whose settings carry over"
        )
    write_pretrained(folder, backend, _special_tokens(processor), spell_out_specials=True)


def write_sentencepiece(processor: SentencePieceProcessor, model: bytes, folder: Path, cut_at: Sequence[str]) -> None:
    """Write the model itself, and code with which transformers reads it (trust_remote_code=True) and cuts the text at `cut_at` first.

    OSError as from the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(model)
    shutil.copyfile(CODE, folder / CODE.name)
    name = "MegaMeshSentencePieceTokenizer"
    config: dict[str, Any] = {
        "tokenizer_class": name,
        "auto_map": {"AutoTokenizer": [f"{CODE.stem}.{name}", None]},
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "cut_at": list(cut_at),
        **_special_tokens(processor),
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _special_tokens(processor: SentencePieceProcessor) -> dict[str, str]:
    roles = {
        "unk_token": processor.unk_id(),
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "pad_token": processor.pad_id(),
    }
    return {role: processor.id_to_piece(i) for role, i in roles.items() if i >= 0}


def _probes(proto: Any) -> Iterator[str]:
    yield from PROBES
    yield from _random_texts(proto)
    if proto.normalizer_spec.precompiled_charsmap:
        yield from probe_texts(replacements(proto.normalizer_spec.precompiled_charsmap))


def _difference(
    encode: Callable[[str], list[int]], theirs: Callable[[str], list[int]], texts: Iterator[str]
) -> str | None:
    """A short text, out of the first of `texts`, whose ids are not the same; None where all are."""
    found = next((text for text in texts if encode(text) != theirs(text)), None)
    step = len(found or "") // 2
    while found is not None and step:
        shorter = (found[step:], found[:-step])
        smaller = next((text for text in shorter if encode(text) != theirs(text)), None)
        found, step = (found, step // 2) if smaller is None else (smaller, min(step, len(smaller) // 2))
    return found


def _backend(proto: Any) -> Tokenizer:
    """The `tokenizers` twin of a sentencepiece model."""
    byte_fallback = bool(proto.trainer_spec.byte_fallback)
    if proto.trainer_spec.model_type == UNIGRAM:
        backend = Tokenizer(
            models.Unigram(_scored_pieces(proto), unk_id=proto.trainer_spec.unk_id, byte_fallback=byte_fallback)
        )
    else:
        vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        unknown = proto.pieces[proto.trainer_spec.unk_id].piece
        bpe = models.BPE(vocabulary, _merges(proto), unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
        backend = Tokenizer(bpe)
    steps = _normalizers(proto.normalizer_spec)
    backend.normalizer = normalizers.Sequence(steps)
    parts = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        parts.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(parts)
    backend.add_tokens(
        [
            AddedToken(p.piece, normalized=False, special=p.type == CONTROL)
            for p in proto.pieces
            if p.type in (CONTROL, USER_DEFINED)
        ]
    )
    return backend


def _scored_pieces(proto: Any) -> list[tuple[str, float]]:
    lowest = min((p.score for p in proto.pieces if p.type == NORMAL), default=0.0)
    never = 50 * min(lowest, -1.0)  # below any spelling of `<0x0A>` in single characters
    return [(p.piece, p.score if p.type in (NORMAL, USER_DEFINED) else never) for p in proto.pieces]


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Merges in the order of the merged piece's score (sentencepiece merges the best-scored pair first)."""
    ids = {p.piece: i for i, p in enumerate(proto.pieces) if p.type == NORMAL}
    found = []
    for piece, i in ids.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-proto.pieces[i].score, ids[left], ids[right], (left, right)))
    return [pair for *_, pair in sorted(found)]


def _normalizers(spec: Any) -> list[Any]:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # normalizers.Strip would take line ends too
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE_MARK))
    return steps


def _random_texts(proto: Any, num_texts: int = 300, num_pieces: int = 40) -> list[str]:
    """Texts strung together from the model's own pieces, the same ones every time."""
    draw = random.Random(0)
    surfaces = [p.piece.replace(SPACE_MARK, " ") for p in proto.pieces if p.type in (NORMAL, USER_DEFINED)]
    surfaces += ["\n", "\t", " ", "    ", "é", "字", "🙂", "\x07"]
    return ["".join(draw.choice(surfaces) for _ in range(num_pieces)) for _ in range(num_texts)]
