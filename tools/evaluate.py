"""Measure a trained checkpoint: perplexity of texts, accuracy on multiple-choice questions.

    python tools/evaluate.py --checkpoint save --text valid.jsonl
    python tools/evaluate.py --checkpoint save/global_step1000 --text a.txt b.txt --choices questions.jsonl --json
    torchrun --nproc-per-node 4 tools/evaluate.py --checkpoint save --text valid.jsonl

--text takes files, globs and folders, of all the kinds that tools/preprocess_data.py reads: .txt (one document per file), .jsonl (one per
line, under "text"), .parquet and others, compressed or not. Each document is read from its beginning, the first token predicted from the
tokenizer's BOS or end-of-document token. One that is longer than --max-length is cut into windows.

  loss, token_perplexity            per token; compare only models with the same tokenizer
  word_perplexity, byte_perplexity  per word between white space, per byte of UTF-8; compare any models on the same text
  bits_per_byte                     the same as log2 of byte_perplexity

--choices takes .jsonl with one question per line: {"context": "2 + 2 =", "choices": ["3", "4"], "answer": 1}. Every choice is appended to
its context, --delimiter between them, and the model answers with the most likely one.

  acc         share of right answers
  acc_norm    the same where likelihood is taken per character, so that long choices are not at a disadvantage

lm-eval computes the same numbers from an export (tools/convert_to_hf.py); examples/evaluation shows how. It reads
max_position_embeddings tokens at once: where the model was trained on fewer (seq_length), give it max_length.

Started by torchrun, deepspeed or srun, the model is divided over all processes (tensor parallelism): use it where the weights do not fit
into one GPU. The same numbers come out, once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from megamesh.arguments import add_checkpoint, add_moved_tokenizer, from_one
from megamesh.checkpoint.inference import OpenCheckpoint, open_checkpoint
from megamesh.command import json_text, run_command
from megamesh.config.keys import ModelConfig
from megamesh.data.sources import InputFile, ReadOptions, find_inputs, read_texts
from megamesh.data.sources.inputs import SUPPORTED
from megamesh.errors import ConfigError
from megamesh.evaluation.scores import Question, read_questions, score_choices, score_texts
from megamesh.generation.processes import first_then_all, load_over, one_model
from megamesh.launch import read_launch
from megamesh.model.transformer import Transformer
from megamesh.tables import aligned

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser)
    parser.add_argument("--text", nargs="+", metavar="FILE", help=f"documents to predict: {SUPPORTED}")
    parser.add_argument("--jsonl-keys", nargs="+", default=["text"], help="keys or columns with text (default: text)")
    parser.add_argument("--choices", nargs="+", type=Path, metavar="FILE", help="questions to answer: .jsonl files")
    parser.add_argument("--delimiter", default=" ", help="text between a context and a choice (default: one space)")
    parser.add_argument(
        "--max-length",
        type=from_one,
        metavar="TOKENS",
        help="most tokens that the model reads at once, up to max_position_embeddings (default: seq_length, as in training)",
    )
    parser.add_argument("--batch-size", type=from_one, default=8, help="sequences that are read at once (default: 8)")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="number format (default: float32 on CPU, bfloat16 on a GPU)"
    )
    parser.add_argument(
        "--device",
        help="such as cpu or cuda:0 (default: a GPU where there is one; of several processes each takes its own)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_moved_tokenizer(parser)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not args.text and not args.choices:
        parser.error("nothing to measure: give --text, --choices, or both")
    return args


def documents(files: Sequence[InputFile], keys: Sequence[str]) -> Iterator[str]:
    """Every text of the files, with a progress bar in bytes."""
    with _bar(sum(file.num_bytes for file in files), "B", "reading texts") as bar:
        yield from read_texts(files, ReadOptions(keys=tuple(keys)), bar.update)


def asked(questions: Sequence[Question]) -> Iterator[Question]:
    """The questions, with a progress bar."""
    with _bar(len(questions), "", "answering") as bar:
        for question in questions:
            yield question
            bar.update()


def _bar(total: int, unit: str, what: str) -> Any:
    silent = read_launch(os.environ).rank > 0
    return tqdm(total=total, unit=unit or " questions", unit_scale=unit == "B", desc=what, disable=silent)


def max_length(asked_for: int | None, model: ModelConfig) -> int:
    """Tokens that the model reads at once: by default as many as in training. ConfigError for more than it has positions for."""
    limit = model.longest_sequence
    if asked_for is not None and asked_for > limit:
        raise ConfigError(
            f"--max-length={asked_for} is more than the {limit} positions that the model takes (max_position_embeddings); "
            f"use at most {limit}"
        )
    return asked_for or model.sequence_length


def read_inputs(args: argparse.Namespace) -> tuple[OpenCheckpoint, list[InputFile], list[Question]]:
    """What there is to measure, and the checkpoint, not yet its tensors."""
    files = find_inputs(args.text, "--text") if args.text else []
    questions = [question for path in args.choices or [] for question in read_questions(path)]
    return open_checkpoint(args.checkpoint, vocab_file=args.vocab_file, merge_file=args.merge_file), files, questions


def measure(
    args: argparse.Namespace,
    opened: OpenCheckpoint,
    model: Transformer,
    files: list[InputFile],
    questions: list[Question],
) -> dict[str, dict[str, float | None]]:
    """Metrics of texts and of choices, by name."""
    sizes = {"max_length": max_length(args.max_length, opened.run.model), "batch_size": args.batch_size}
    if sizes["max_length"] > opened.run.model.sequence_length:
        log.warning(
            "--max-length=%d is more than the %d tokens that the model was trained on (seq_length)",
            sizes["max_length"], opened.run.model.sequence_length,
        )  # fmt: skip
    results: dict[str, dict[str, float | None]] = {}
    if files:
        texts = score_texts(model, opened.tokenizer, documents(files, args.jsonl_keys), **sizes)
        counts = ("num_documents", "num_tokens", "num_words", "num_bytes")
        metrics = ("loss", "token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
        results["text"] = {name: getattr(texts, name) for name in (*counts, *metrics)}
    if questions:
        choices = score_choices(model, opened.tokenizer, asked(questions), delimiter=args.delimiter, **sizes)
        names = ("num_questions", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
        results["choices"] = {name: getattr(choices, name) for name in names}
    return results


def as_text(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def run(args: argparse.Namespace) -> None:
    with one_model(args.device) as (mesh, device):
        opened, files, questions = first_then_all(lambda: read_inputs(args))
        max_length(args.max_length, opened.run.model)
        dtype = args.dtype or ("float32" if device.type == "cpu" else "bfloat16")
        model = cast(Transformer, load_over(mesh, opened, device, DTYPES[dtype]))  # without a pipeline it is one
        results = measure(args, opened, model, files, questions)
    if read_launch(os.environ).rank > 0:
        return
    if args.json:
        print(json_text({"checkpoint": opened.path, "step": opened.step, "dtype": dtype, **results}))
        return
    print(f"{opened.path} (step {opened.step}), {dtype}")
    for kind, found in results.items():
        print(f"\n{kind}\n" + aligned([(name, as_text(value)) for name, value in found.items()], indent="  "))


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
