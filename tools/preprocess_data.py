"""Tokenize a corpus into <output-prefix>_<key>_document.bin/.idx for training, with a manifest <output-prefix>.json."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import parent_process
from typing import get_args

from megamesh.arguments import from_one
from megamesh.command import run_command
from megamesh.config.keys import TokenizerConfig
from megamesh.data.preprocessing import Settings, Summary, preprocess
from megamesh.data.preprocessing.encoders import Encoder, TextEncoder
from megamesh.data.preprocessing.masked_encoders import ChatEncoder, Masking, masked_encoder
from megamesh.data.preprocessing.progress import Display
from megamesh.data.preprocessing.ranks import MpiRanks, OneProcess, Ranks
from megamesh.data.preprocessing.spool import Spool
from megamesh.data.sources.inputs import InputFile, find_inputs
from megamesh.data.sources.records import ReadOptions
from megamesh.data.store.manifest import tokenizer_facts
from megamesh.errors import ConfigError
from megamesh.launch import read_launch
from megamesh.tokenizer import build_tokenizer, tokenizer_identity
from megamesh.tokenizer.chat import ChatOptions, ChatTemplate, ConversationEncoder, load_chat_template
from megamesh.tokenizer.engines import Choice, fastest_engine

TOKENIZER_TYPES = get_args(TokenizerConfig.model_fields["tokenizer_type"].annotation)
STANDARD_INPUT = "-"

EXAMPLES = """\
examples
  one file, two processes
      python tools/preprocess_data.py --input a.jsonl --tokenizer-type HFTokenizer --vocab-file tokenizer.json --append-eod \\
          --workers 2 --output-prefix data/corpus
  a folder of compressed shards on four machines (shared storage; one rank per machine, 32 processes each)
      mpirun -n 4 --map-by node python tools/preprocess_data.py --mpi --workers 32 --input /corpus --tokenizer-type HFTokenizer \\
          --vocab-file tokenizer.json --append-eod --output-prefix /shared/corpus
  from another program
      zcat old.warc.gz | extract | python tools/preprocess_data.py --input - …
  conversations of which only what the model says is learned (data/chat_messages_document and data/chat_messages_label_document)
      python tools/preprocess_data.py --input chats.jsonl --chat-key messages --tokenizer-type HFTokenizer \\
          --vocab-file model/tokenizer.json --output-prefix data/chat

what is read (by the ending of the name; folders are searched, patterns like 'data/*.jsonl.zst' work in quotes; what preprocessing wrote
there, such as manifests, is left out of both)
  .jsonl .ndjson .json     one JSON object per line, text under --jsonl-keys
  .txt                     one document per file, or pieces between --document-separator
  .parquet .pq .arrow      columns named by --jsonl-keys; also folders written by datasets' save_to_disk
  .gz .zst .xz of these    and lm_dataformat archives: .jsonl.zst, .jsonl.zst.tar, .dat.zst, .tar(.gz), .zip

what becomes of odd text
  empty documents          left out and counted (as GPT-NeoX does), also where --ftfy leaves nothing; with several keys, when all are empty
  byte order mark          removed at the beginning of a file; elsewhere it is text, as is NUL
  names of special tokens  become these tokens, as in the tokenizer's own library
  bad records              broken JSON or UTF-8, a key that is missing, null or no text, half a surrogate pair: the run stops and names
                           file and line; --on-bad-line skip leaves them out and lists them in <output-prefix>.skipped.jsonl

A run that was killed or stopped keeps its complete shards in <output-prefix>.unfinished/; the same command continues there (for standard
input, which is kept in <output-prefix>.stdin.jsonl until all is written, with --input of that file). The bytes
written do not depend on --workers, on MPI, or on interruptions. Inputs are cut into shards; a compressed file is one shard, so give
several such files for several processes. Memory: about 200 MB per process, and ten times the longest document; where the tokenizer's own
library encodes it (the first line says so), up to 200 times."""


LABELS = """Each of the first three writes <output-prefix>_<key>_label_document beside <output-prefix>_<key>_document, for
train_label_data_paths beside train_data_paths: int32, at every token its id, or -100 where it is not counted."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_flags(parser.add_argument_group("input"))
    add_token_flags(parser.add_argument_group("tokens"))
    add_masking_flags(parser.add_argument_group("labels: which tokens are counted in the loss", LABELS))
    add_output_flags(parser)
    return parser.parse_args(arguments)


def add_input_flags(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--input", required=True, nargs="+",
        help="files, folders or patterns, separated by commas or spaces; - reads standard input",
    )  # fmt: skip
    what.add_argument(
        "--jsonl-keys", nargs="+",
        help="keys (or columns) of the text; each writes an output of its own (default: text)",
    )  # fmt: skip
    what.add_argument(
        "--document-separator", metavar="TEXT",
        help=r"what divides a .txt file into documents; \n is a line end (default: a file is one document)",
    )  # fmt: skip
    what.add_argument(
        "--join-paragraphs", action="store_true", help="join lists of texts by blank lines, as lm_dataformat does"
    )
    what.add_argument(
        "--max-document-mib", type=from_one, default=64, metavar="MIB",
        help="longest document that is read; a longer one is a bad record (default: 64)",
    )  # fmt: skip
    what.add_argument(
        "--on-bad-line", choices=["stop", "skip"], default="stop",
        help="stop at a bad record, or leave it out, count and list it (default: stop)",
    )  # fmt: skip
    what.add_argument(
        "--stdin-format", choices=["jsonl", "txt"], default="jsonl", help="kind of standard input (default: jsonl)"
    )
    what.add_argument("--num-docs", type=int, help="documents in the input, if known: progress then counts towards it")


def add_token_flags(how: argparse._ArgumentGroup) -> None:
    how.add_argument("--tokenizer-type", required=True, choices=TOKENIZER_TYPES, help="kind of tokenizer")
    how.add_argument(
        "--vocab-file", help="tokenizer.json, sentencepiece model, vocab.json, .tiktoken or vocabulary of characters"
    )
    how.add_argument("--merge-file", help="merges.txt of GPT2BPETokenizer")
    how.add_argument(
        "--tokenizer-engine", choices=get_args(Choice), default="auto",
        help="auto: gigatoken where its ids are exactly the tokenizer's (checked throughout), else the tokenizer's own library",
    )  # fmt: skip
    how.add_argument("--append-eod", action="store_true", help="end every document with the end-of-document token")
    how.add_argument("--ftfy", action="store_true", help="mend broken Unicode with ftfy first")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("output")
    out.add_argument("--output-prefix", required=True, help="start of the outputs' names")
    out.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    out.add_argument(
        "--dataset-impl", choices=["mmap"], default="mmap", help="format of the output; mmap is the only one"
    )
    speed = parser.add_argument_group("processes")
    speed.add_argument(
        "--workers", type=from_one, default=1, help="tokenizing processes, under MPI per rank (default: 1)"
    )
    speed.add_argument("--mpi", action="store_true", help="share the work with the other ranks of an mpirun or srun")
    speed.add_argument(
        "--log-interval",
        type=int,
        default=100,
        help="fewest documents between two updates of the progress (default: 100)",
    )


def add_masking_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mask-before-token", metavar="IDS",
        help="ids of a mark, separated by commas: tokens are counted after its first occurrence in a document, the mark itself is not; a "
        "document without the mark is counted whole (as in GPT-NeoX, which names the labels <output-prefix>_label_document)",
    )  # fmt: skip
    group.add_argument(
        "--segment-keys", nargs="+", default=[], metavar="KEY",
        help="keys whose texts are encoded one by one and joined, in this order, to one document (outputs: text and text_label); "
        "tokens that the tokenizer puts around a text stand around each of them",
    )  # fmt: skip
    group.add_argument(
        "--mask-keys", nargs="+", default=[], metavar="KEY",
        help="those of --segment-keys that are not counted; an end-of-document token is",
    )  # fmt: skip
    group.add_argument(
        "--chat-key", metavar="KEY",
        help="key of conversations, lists of {role, content}: rendered by a chat template; what the model says is counted, and "
        "--append-eod's token where the token before it is (leave --append-eod out where the template ends so itself)",
    )  # fmt: skip
    group.add_argument(
        "--chat-template", metavar="FILE",
        help="jinja template, with or without {%% generation %%} (default: the one beside --vocab-file)",
    )  # fmt: skip
    group.add_argument("--generation-role", default="assistant", help="role of the model (default: assistant)")
    group.add_argument("--only-last", action="store_true", help="count the last message only, if it is the model's")
    group.add_argument(
        "--for-rm", action="store_true", help="count only --append-eod's token, as a reward model is trained"
    )
    group.add_argument("--no-mask", action="store_true", help="count everything: no labels are written")


def masking_of(args: argparse.Namespace) -> Masking:
    masking = Masking(
        mark=args.mask_before_token,
        segment_keys=tuple(args.segment_keys),
        mask_keys=tuple(args.mask_keys),
        chat_key=args.chat_key,
        chat_template=args.chat_template,
        generation_role=args.generation_role,
        no_mask=args.no_mask,
        only_last=args.only_last,
        for_rm=args.for_rm,
    )
    if masking.chat_key is not None:
        wrong = {
            "--ftfy": args.ftfy,
            "--join-paragraphs": args.join_paragraphs,
            "--tokenizer-engine=gigatoken": args.tokenizer_engine == "gigatoken",
        }
        for flag, given in wrong.items():
            if given:
                raise ConfigError(f"{flag} is for text, and --chat-key reads conversations; leave one out")
    return masking


def run(args: argparse.Namespace, ranks: Ranks) -> None:
    started_as = read_launch(os.environ).world_size
    if started_as > 1 and not args.mpi:
        raise ConfigError(
            f"started as {started_as} processes, which would all write the same; add --mpi to share the work"
        )
    masking = masking_of(args)
    keys = masking.keys(args.jsonl_keys)
    config = TokenizerConfig(tokenizer_type=args.tokenizer_type, vocab_file=args.vocab_file, merge_file=args.merge_file)
    template = load_chat_template(args.vocab_file or "", args.chat_template) if masking.chat_key is not None else None
    make_encoder = partial(
        build_encoder, config, args.tokenizer_engine, keys, args.append_eod, args.ftfy, masking, template
    )
    settings = Settings(
        ReadOptions(
            keys=keys,
            separator=_unescaped(args.document_separator),
            max_document_bytes=args.max_document_mib << 20,
            join_paragraphs=args.join_paragraphs,
            messages=masking.chat_key is not None,
            mend=f"see {masking.keys_flag}",
        ),
        {"append_eod": args.append_eod, "ftfy": args.ftfy, **masking.described(template)},
        skip_bad=args.on_bad_line == "skip",
    )
    started = time.monotonic()
    show = partial(
        Display,
        name="tokenizing" if ranks.size == 1 else f"rank {ranks.rank}",
        num_docs=args.num_docs,
        log_interval=args.log_interval,
        bar=ranks.size == 1,
        write=say,
    )
    with input_files(args) as find:
        summary = preprocess(
            find,
            args.output_prefix,
            make_encoder,
            settings,
            workers=args.workers,
            overwrite=args.overwrite,
            ranks=ranks,
            show=show,
        )
    if ranks.rank == 0:
        print(described(summary, time.monotonic() - started))


def say(line: str) -> None:
    """Progress of every rank goes to standard error, whole lines at a time."""
    print(line, file=sys.stderr, flush=True)


def described(summary: Summary, seconds: float) -> str:
    """What was done, for people."""
    left_out = [f"{summary.num_empty:,} empty"] if summary.num_empty else []
    left_out += [f"{count:,} {reason}" for reason, count in summary.skipped.items()]
    lines = [
        f"{summary.num_documents:,} documents, {summary.num_tokens:,} tokens, {summary.num_input_bytes / seconds / 1e6:,.1f} MB/s of input"
        + (f"; left out: {', '.join(left_out)}" if left_out else ""),
        *(f"wrote {prefix}.bin and {prefix}.idx" for prefix in summary.prefixes),
    ]
    return "\n".join([*lines, *([f"bad records are listed in {summary.report}"] if summary.report else [])])


@contextmanager
def input_files(args: argparse.Namespace) -> Iterator[Callable[[], list[InputFile]]]:
    """What finds the input. Standard input is kept in a file until the work inside is done."""
    if args.input != [STANDARD_INPUT]:
        yield partial(find_inputs, args.input)
        return
    spool = Spool(args.output_prefix, args.stdin_format)

    def find() -> list[InputFile]:
        spool.fill(sys.stdin.buffer)
        say(
            f"standard input is in {spool.path}; if this run is interrupted, continue with --input {spool.path} "
            "(which does not remove the file)"
        )
        return find_inputs([str(spool.path)])

    try:
        yield find
    except BaseException:
        if spool.is_ours:
            say(f"standard input is kept in {spool.path}; continue with --input {spool.path}")
        raise
    spool.remove()


def build_encoder(
    config: TokenizerConfig,
    engine: Choice,
    keys: tuple[str, ...],
    append_eod: bool,
    ftfy: bool,
    masking: Masking,
    template: ChatTemplate | None,
) -> Encoder:
    """What each process encodes with."""
    tokenizer = build_tokenizer(config)
    facts = tokenizer_facts(*tokenizer_identity(config, tokenizer))
    eod_id = tokenizer.eod_id if append_eod else None
    if template is not None and masking.chat_key is not None:
        options = ChatOptions(masking.generation_role, not masking.no_mask, masking.only_last, masking.for_rm)
        conversations = ConversationEncoder(tokenizer, template, options, end_id=eod_id)
        return ChatEncoder(conversations, facts, masking.chat_key, with_labels=not masking.no_mask)
    fastest, line = fastest_engine(tokenizer, engine)
    if parent_process() is None and read_launch(os.environ).rank == 0:
        say(line)
    texts = TextEncoder(fastest, facts, keys, eod_id=None if masking.segment_keys else eod_id, ftfy=ftfy)
    return masked_encoder(texts, masking, eod_id)


def _unescaped(separator: str | None) -> str | None:
    if separator is None:
        return None
    text = separator.replace("\\n", "\n").replace("\\t", "\t")
    if not text:
        raise ConfigError("--document-separator is empty; leave it out for one document per file")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    if not args.mpi:
        return run_command(lambda: run(args, OneProcess()))
    return run_under_mpi(args)


def run_under_mpi(args: argparse.Namespace) -> int:
    """A rank that fails ends all: the others would wait for it for ever."""
    ranks: Ranks = OneProcess()

    def work() -> None:
        nonlocal ranks
        ranks = MpiRanks()
        run(args, ranks)

    try:
        status = run_command(work)
    except BaseException:
        traceback.print_exc()
        status = 1
    if status:
        ranks.stop(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
