"""Measure speed, memory and communication: `benchmark.py train` compares models in turn, `benchmark.py comm` counts collectives."""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megamesh.command import run_command
from megamesh.config.yaml_files import parse_override

if TYPE_CHECKING:
    from megamesh.training.benchmark_processes import Candidate

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

One optimizer step runs on model_parallel_size processes and its tensor-parallel collectives are counted (data-parallel ones are
DeepSpeed's and are not). MiB are those of the whole tensors; "wire MiB" is what a ring sends from each rank for them. The last rows are
sums, and what one micro-batch's state buffer holds on each rank."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="tokens/s, TFLOP/s, MFU, peak memory",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    comm = commands.add_parser(
        "comm",
        help="tensor-parallel collectives and bytes per optimizer step, bytes of the state buffer",
        epilog=COMM_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for command in (train, comm):
        command.add_argument(
            "configs", nargs="+", metavar="FILE.yml", help="configuration files, read as one; no data is needed"
        )
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the files"
        )
    train.add_argument(
        "--against", nargs="*", default=["base", "transformers"], choices=["base", "mesh", "vanilla", "transformers"],
        help="what to compare with (default: base transformers)",
    )  # fmt: skip
    comm.add_argument(
        "--against", nargs="*", default=["base"], choices=["base", "mesh", "vanilla"],
        help="what to compare with (default: base)",
    )  # fmt: skip
    train.add_argument("--processes", type=positive, help="processes per model (default: model_parallel_size)")
    train.add_argument("--steps", type=positive, default=5, help="optimizer steps per round (default: 5)")
    train.add_argument("--rounds", type=positive, default=5, help="rounds (default: 5)")
    train.add_argument("--warmup", type=positive, default=2, help="steps before the first round (default: 2)")
    args = parser.parse_args(arguments)
    try:
        args.overrides = dict(map(parse_override, args.set))
    except ValueError as error:
        parser.error(f"--set {error}")
    return args


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def candidates_of(args: argparse.Namespace) -> "list[Candidate]":
    """The configuration's model, and those that it is compared with."""
    from megamesh.config.load import load_config
    from megamesh.training.benchmark_processes import make_candidate
    from megamesh.training.vocabulary import vocabulary_size

    config = load_config(args.configs, args.overrides, for_training=False).run
    vocab_size = vocabulary_size(config.model, config.tokenizer)
    return [make_candidate(kind, config, vocab_size) for kind in ["config", *args.against]]


def comm_tables(args: argparse.Namespace) -> str:
    from megamesh.training.communication import CommunicationReport, measure_communication

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
        return f"{report.candidate.name}, {parallel.model_parallel_size} ranks, {states}\n{aligned([header, *rows])}"

    return "\n\n".join(table(measure_communication(candidate)) for candidate in candidates_of(args))


def train_table(args: argparse.Namespace) -> str:
    from megamesh.training.benchmark import Measurement, benchmark

    candidates = candidates_of(args)
    results = benchmark(
        candidates,
        num_processes=args.processes or candidates[0].config.parallel.model_parallel_size,
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


def aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    # Leaving in order ends the processes that it has started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    tables = train_table if args.command == "train" else comm_tables
    return run_command(lambda: print(tables(args)))


if __name__ == "__main__":
    sys.exit(main())
