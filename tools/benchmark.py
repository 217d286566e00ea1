"""Measure speed, memory and communication.

benchmark.py train      compares models in turn
benchmark.py comm       counts what tensor and pipeline ranks say to each other
benchmark.py pipeline   compares idle time with the simulator's
benchmark.py checkpoint saves and loads
benchmark.py data       makes tokens of text, and batches of tokens
"""

import argparse
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megamesh.arguments import add_configs, from_one, make_folder, parse_with_overrides
from megamesh.command import run_command
from megamesh.config.batch import model_ranks
from megamesh.config.schemes import parse_scheme
from megamesh.errors import ConfigError
from megamesh.tables import aligned

if TYPE_CHECKING:
    from megamesh.benchmark.processes import Candidate

SMALLEST_INDEX = 100_000

TRAIN_EXAMPLES = """\
examples
  the quickstart's model beside plain recursion and transformers' GPTNeoX of the same compute depth
      python tools/benchmark.py train examples/quickstart/common.yml examples/quickstart/mesh.yml examples/quickstart/cpu.yml
  a MeSH 410M on one GPU against a vanilla stack, micro-batch 8
      python tools/benchmark.py train examples/configs/410m-4+8R2+4-mesh.yml --set train_batch_size=8 --against base vanilla

Figures are medians over rounds; "speed" is a ratio to the first row, taken within each round. TFLOP/s and MFU count every block
that a token passes through (compute depth), and nothing that is recomputed. transformers' model is a plain stack: it has the
FLOPs of the recursive one and more parameters. Memory is the device allocator's peak, on a CPU the process's largest resident set."""

COMM_EXAMPLES = """\
examples
  the quickstart's model on two tensor-parallel processes, states replicated and split
      python tools/benchmark.py comm examples/quickstart/common.yml examples/quickstart/mesh.yml --set model_parallel_size=2
      python tools/benchmark.py comm examples/quickstart/common.yml examples/quickstart/mesh.yml --set model_parallel_size=2 \\
          --set sequence_parallel=true

One optimizer step runs on pipe_parallel_size × model_parallel_size processes, and tensor-parallel collectives and pipeline sends of the
busiest rank are counted (data-parallel collectives are DeepSpeed's and are not). MiB are those of the whole tensors; "wire MiB" is what a
rank sends for them. The last rows are sums, and what one micro-batch's state buffer holds on each rank."""

PIPELINE_EXAMPLES = """\
examples
  the schedule alone, on any machine: blocks that sleep 20 ms instead of computing
      python tools/benchmark.py pipeline examples/quickstart/common.yml examples/quickstart/mesh.yml --sleep-ms 20 \\
          --set recursion=4+12R3+4 --set num_layers=44 --set pipe_parallel_size=4 --set gradient_accumulation_steps=16 \\
          --set train_micro_batch_size_per_gpu=1 --set train_batch_size=16
  real layers, a GPU for every process: leave --sleep-ms out

Idle is the share of all ranks' time, between the first start and the last end of a step, in which no forward or backward runs. The
simulator replays the order that the ranks run, with the sleeping times or the measured means of every stage. The optimizer is left out."""

CHECKPOINT_EXAMPLES = """\
examples
  the quickstart's model with a vocabulary of 65,536 on two processes, into the working directory
      python tools/benchmark.py checkpoint examples/quickstart/common.yml examples/quickstart/mesh.yml --set vocab_size=65536 \\
          --set vocab_file=null --processes 2
  where a cluster's checkpoints go
      python tools/benchmark.py checkpoint examples/configs/410m-4+8R2+4-mesh.yml --folder /shared/runs

Ways take turns within every round. GB/s are of all ranks' masters and moments, flushed to the disk; loads mostly come from memory that
has just been written. "training waits" is the median of what a run stands still; "MiB beside" is what the fullest process's resident set
grew by (for an asynchronous save beside the copy, which stays from save to save)."""

DATA_EXAMPLES = """\
examples
  200 MB of this machine's documentation; the others get 20 MB of it
      python tools/benchmark.py data
  a corpus and tokenizer of one's own, eight processes
      python tools/benchmark.py data --input corpus.jsonl --vocab-file tokenizer.json --workers 8

Every row is a whole command, from start to finished files; rows take turns within every round. MB/s are of the input file, "times" is a
ratio to the NeoX-style loop within each round, "MiB" the largest resident set among the command's processes. Start-up counts:
several seconds for megatron-core's imports. Rows of programs that are not installed are missing: megatron-core (the pool, the index) and
datatrove."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (what, examples, add_options) in COMMANDS.items():
        add_options(
            commands.add_parser(name, help=what, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
        )
    return parse_with_overrides(parser, arguments)


def add_candidates(command: argparse.ArgumentParser, default: list[str] | None = None, *others: str) -> None:
    """The configuration to measure and, with a default, what it is compared with: schemes, a vanilla stack, or one of `others`."""
    add_configs(command, also="; no data is needed, and with --set vocab_size=N no tokenizer")
    if default is None:
        return
    known = ("vanilla", *others)
    command.add_argument(
        "--against", nargs="*", default=default, type=partial(other_model, *known), metavar="MODEL",
        help=f"what to compare with: a recursion scheme, {' or '.join(known)} (default: {' '.join(default) or 'nothing'})",
    )  # fmt: skip


def add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--folder", type=Path, default=Path(), help="folder to write into, made where it is missing (default: here)"
    )


def train_options(train: argparse.ArgumentParser) -> None:
    add_candidates(train, ["base", "transformers"], "transformers")
    train.add_argument("--processes", type=from_one, help="processes per model (default: as many as hold one copy)")
    train.add_argument("--steps", type=from_one, default=5, help="optimizer steps per round (default: 5)")
    train.add_argument("--rounds", type=from_one, default=5, help="rounds (default: 5)")
    train.add_argument("--warmup", type=from_one, default=2, help="steps before the first round (default: 2)")


def comm_options(comm: argparse.ArgumentParser) -> None:
    add_candidates(comm, ["base"])


def pipeline_options(pipeline: argparse.ArgumentParser) -> None:
    add_candidates(pipeline, [])
    pipeline.add_argument(
        "--sleep-ms", type=float, metavar="MS", help="a block's forward sleeps so long, its backward twice"
    )
    pipeline.add_argument("--steps", type=from_one, default=3, help="steps after a first one (default: 3)")


def checkpoint_options(checkpoint: argparse.ArgumentParser) -> None:
    add_candidates(checkpoint)
    checkpoint.add_argument("--processes", type=from_one, help="processes (default: as many as hold one copy)")
    checkpoint.add_argument("--rounds", type=from_one, default=5, help="rounds (default: 5)")
    add_folder(checkpoint)
    checkpoint.set_defaults(against=[])


def data_options(data: argparse.ArgumentParser) -> None:
    data.add_argument("--input", type=Path, metavar="FILE.jsonl", help="corpus (default: texts of this machine)")
    data.add_argument("--megabytes", type=from_one, default=200, help="size of the corpus that is made (default: 200)")
    data.add_argument(
        "--others-megabytes", type=from_one, default=20, help="size of the others' part of it (default: 20)"
    )
    data.add_argument(
        "--vocab-file", type=Path, help="tokenizer.json (default: a byte-level BPE of 50,257, trained on the corpus)"
    )
    data.add_argument("--workers", type=from_one, default=2, help="processes of the rows with several (default: 2)")
    data.add_argument("--rounds", type=from_one, default=3, help="rounds (default: 3)")
    data.add_argument(
        "--index-tokens",
        type=index_tokens,
        default=10**9,
        metavar="N",
        help="tokens to cut into samples (default: 1e9)",
    )
    add_folder(data)


COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("tokens/s, TFLOP/s, MFU, peak memory", TRAIN_EXAMPLES, train_options),
    "comm": (
        "tensor-parallel collectives and bytes per optimizer step, bytes of the state buffer",
        COMM_EXAMPLES,
        comm_options,
    ),
    "pipeline": ("idle time of pipeline ranks, measured and simulated", PIPELINE_EXAMPLES, pipeline_options),
    "checkpoint": ("seconds, GB/s and memory of saving and loading", CHECKPOINT_EXAMPLES, checkpoint_options),
    "data": ("preprocessing, index building and loading beside other programs'", DATA_EXAMPLES, data_options),
}


def other_model(*arguments: str) -> str:
    """A recursion scheme, or one of the names before the text itself, as a type for argparse."""
    *others, text = arguments
    try:
        return text if text in others else "+".join(parse_scheme(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not {', '.join(others)} or a recursion scheme; {error}"
        ) from error


def candidates_of(args: argparse.Namespace) -> "list[Candidate]":
    """The configuration's model, and those that it is compared with."""
    from megamesh.benchmark.processes import make_candidate
    from megamesh.config.load import load_config
    from megamesh.training.vocabulary import known_vocabulary_size

    config = load_config(args.configs, args.overrides, for_training=False).run
    vocab_size = known_vocabulary_size(config.model, config.tokenizer)
    return [make_candidate(kind, config, vocab_size) for kind in ["config", *args.against]]


def comm_tables(args: argparse.Namespace) -> str:
    from megamesh.benchmark.communication import CommunicationReport, measure_communication

    def table(report: CommunicationReport) -> str:
        parallel = report.candidate.config.parallel
        states = "sequence parallel" if parallel.sequence_parallel else "states replicated"
        rows: list[tuple[str, ...]] = [
            (*total.kind, f"{total.calls:,}", f"{total.num_bytes / 2**20:,.3f}", f"{total.wire_bytes / 2**20:,.3f}")
            for total in report.totals
        ]
        calls, num_bytes, wire_bytes = (
            sum(values) for values in zip(*((t.calls, t.num_bytes, t.wire_bytes) for t in report.totals), strict=True)
        )
        rows.append(("total", "", "", f"{calls:,}", f"{num_bytes / 2**20:,.3f}", f"{wire_bytes / 2**20:,.3f}"))
        rows.append(("state buffer, held", "", "", "", f"{report.highway_bytes / 2**20:,.3f}", ""))
        header = ("collective", "when", "operation", "calls", "MiB", "wire MiB")
        ranks = f"{parallel.pipe_parallel_size} pipeline × " if parallel.pipe_parallel_size > 1 else ""
        title = f"{report.candidate.name}, {ranks}{parallel.model_parallel_size} tensor ranks, {states}"
        return f"{title}\n{aligned([header, *rows])}"

    return "\n\n".join(table(measure_communication(candidate)) for candidate in candidates_of(args))


def pipeline_table(args: argparse.Namespace) -> str:
    from megamesh.benchmark.bubble import BubbleReport, measure_bubble

    def row(report: BubbleReport) -> tuple[str, ...]:
        measured, simulated = report.measured_idle_share, report.simulated.idle_share
        seconds = sorted(timeline.seconds for timeline in report.measured)
        return (
            report.candidate.name,
            str(report.partition.num_ranks),
            str(report.partition.num_passes),
            str(report.num_micro_batches),
            f"{simulated:.1%}",
            f"{measured:.1%}",
            f"{100 * (measured - simulated):+.1f}",
            f"{1e3 * report.simulated.seconds:,.0f}",
            f"{1e3 * seconds[0]:,.0f} / {1e3 * seconds[len(seconds) // 2]:,.0f} / {1e3 * seconds[-1]:,.0f}",
        )

    layer_seconds = None if args.sleep_ms is None else args.sleep_ms / 1e3
    reports = [
        measure_bubble(candidate, num_steps=args.steps, layer_seconds=layer_seconds)
        for candidate in candidates_of(args)
    ]
    header = (
        "model", "ranks", "passes", "micro-batches", "idle, simulated", "idle, measured", "points apart",
        "simulated ms", "ms per step: min / median / max",
    )  # fmt: skip
    return aligned([header, *map(row, reports)])


def checkpoint_table(args: argparse.Namespace) -> str:
    from megamesh.benchmark.checkpoint_speed import WayReport, measure_checkpoints

    make_folder(args.folder, f"--folder {args.folder}")
    (candidate,) = candidates_of(args)
    reports = measure_checkpoints(candidate, args.processes, args.rounds, args.folder)

    def row(report: WayReport) -> tuple[str, ...]:
        seconds = sorted(report.seconds)
        return (
            report.way,
            f"{seconds[0]:.2f} / {seconds[len(seconds) // 2]:.2f} / {seconds[-1]:.2f}",
            f"{report.bytes_per_second / 1e9:.2f}",
            f"{report.waiting_seconds:.2f}",
            f"{report.extra_bytes / 2**20:,.0f}",
        )

    header = ("", "seconds: min / median / max", "GB/s", "training waits, s", "MiB beside")
    title = f"{candidate.name}, {reports[0].state_bytes / 2**20:,.0f} MiB of masters and moments"
    return f"{title}\n{aligned([header, *map(row, reports)])}"


def index_tokens(text: str) -> int:
    """A number of tokens that may be written 1e9, as a type for argparse."""
    try:
        number = int(float(text))
    except (ValueError, OverflowError):
        number = 0
    if number < SMALLEST_INDEX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens from {SMALLEST_INDEX:,} up")
    return number


def data_tables(args: argparse.Namespace) -> str:
    import tempfile

    from megamesh.benchmark import data as speed

    make_folder(args.folder, f"--folder {args.folder}")
    for flag, path in (("--input", args.input), ("--vocab-file", args.vocab_file)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{flag} {path} is not a file; name one that exists, or leave it out")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="benchmark-data-") as name:
        folder = Path(name)
        corpus = args.input or speed.write_corpus(folder / "corpus.jsonl", args.megabytes * 1_000_000)
        part = speed.head(corpus, folder / "part.jsonl", args.others_megabytes * 1_000_000)
        vocabulary = args.vocab_file or speed.train_vocabulary(corpus, folder / "tokenizer.json")
        ways = speed.measure_ways(speed.ways(corpus, part, vocabulary, args.workers), args.rounds, folder)
        prefix = speed.keep_output(ways[0], folder)
        index = speed.measure_index(args.index_tokens, 1_000, 2_048, args.rounds)
        loads = {n: speed.measure_loader(prefix, 512, 8, n, args.rounds) for n in (0, args.workers)}
    base = next(way for way in ways if way.name == speed.LOOP)
    rows = [
        (
            way.name, f"{way.num_bytes / 1e6:,.0f}", spread(way.seconds), f"{way.megabytes_per_second:,.1f}",
            f"{statistics.median(way.ratios(base)):,.1f}", f"{max(way.peak_bytes) / 2**20:,.0f}",
        )
        for way in ways
    ]  # fmt: skip
    header = ("text to tokens", "MB", "seconds: min / median / max", "MB/s", "times", "MiB")
    tables = [aligned([header, *rows])]
    cut = f"{index.num_tokens:.2g} tokens in {index.num_documents:,} documents"
    cuts = [
        ("MegaMesh", cut, spread(index.ours)),
        *([("megatron-core", cut, spread(index.megatron))] if index.megatron else []),
    ]
    tables.append(aligned([("sample index", "", "seconds: min / median / max"), *cuts]))
    speeds_of = [
        (
            f"{'in the training process' if n == 0 else f'{n} loader processes'}",
            f"{statistics.median(speeds):,.0f}",
            f"{statistics.median(speeds) * 512:,.0f}",
        )
        for n, speeds in loads.items()
    ]
    tables.append(aligned([("loader, 512 tokens a sample, 8 a batch", "samples/s", "tokens/s"), *speeds_of]))
    return "\n\n".join(tables)


def spread(seconds: Sequence[float]) -> str:
    return " / ".join(f"{value:.3g}" for value in (min(seconds), statistics.median(seconds), max(seconds)))


def train_table(args: argparse.Namespace) -> str:
    from megamesh.benchmark.report import Measurement, benchmark

    candidates = candidates_of(args)
    results = benchmark(
        candidates,
        num_processes=args.processes or model_ranks(candidates[0].config.parallel),
        num_rounds=args.rounds,
        steps_per_round=args.steps,
        num_warmup_steps=args.warmup,
    )

    def row(result: Measurement) -> tuple[str, ...]:
        mfu = f"{result.tflops_per_device / result.peak_tflops:.1%}" if result.peak_tflops else "–"
        return (
            result.candidate.name,
            f"{result.num_parameters:,}",
            f"{result.tokens_per_second:,.0f}",
            f"{result.ratio_to(results[0]):.3f}",
            f"{result.tflops_per_device:.4g}",
            mfu,
            f"{result.peak_bytes / 2**20:,.0f}",
            f"{1e3 * min(result.seconds_per_step):,.1f} / {1e3 * result.median_seconds:,.1f} / {1e3 * max(result.seconds_per_step):,.1f}",
        )

    header = (
        "model",
        "parameters",
        "tokens/s",
        "speed",
        "TFLOP/s per device",
        "MFU",
        "peak MiB",
        "ms per step: min / median / max",
    )
    return aligned([header, *map(row, results)])


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    # Leaving in order ends the processes that it has started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    tables = {
        "train": train_table,
        "comm": comm_tables,
        "pipeline": pipeline_table,
        "checkpoint": checkpoint_table,
        "data": data_tables,
    }
    return run_command(lambda: print(tables[args.command](args)))


if __name__ == "__main__":
    sys.exit(main())
