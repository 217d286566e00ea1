"""Which layout of a model on a number of GPUs is fastest: `plan.py a.yml b.yml --gpus 64`. Needs no GPU, data or process group."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megamesh.arguments import add_configs, from_one, parse_with_overrides, picture
from megamesh.command import run_command
from megamesh.errors import ConfigError

if TYPE_CHECKING:
    from megamesh.planning.search import Plan

EPILOG = """\
what the estimates are made of
  time of a block  its FLOPs (backward twice the forward's) at --efficiency of --peak-tflops, or what you measured; proportional to
                   tokens and to 1/tp, so a plan does not know that small matrices fill a GPU badly
  tensor axis      bytes of every collective over the bandwidth, plus 10 microseconds each; nothing overlaps with computing
  pipeline axis    the very lists of actions that training runs, replayed with these times; messages travel while ranks compute
  data axis        gradients in fp32 and new weights after the step, nothing overlaps; ZeRO 2 and 3 in every micro-batch
  memory           parameters exact, activations nearly (see --dry-run of tools/train.py), at each rank's fullest moment; a layout may fill
                   nine tenths of --gpu-memory-gib
  left out         optimizer, data loading, kernel launches, stragglers
Estimates rank layouts; before a long run, measure two or three of them with tools/train.py.

examples
  what fits 64 GPUs of 80 GiB, and how fast
      python tools/plan.py examples/configs/1.4b-4+8R2+4-mesh.yml --gpus 64
  a picture of the timeline on 4 pipeline ranks, 16 micro-batches
      python tools/plan.py examples/configs/1.4b-4+8R2+4-mesh.yml --set train_batch_size=16 --gpus 4 --layout 1,4,1 --plot timeline.png
  with times that were measured: {"block_forward": 0.0012, "block_backward": 0.0025, "head": 0.004}, seconds for one sequence on one GPU;
  head with its gradients; boundary_forward and boundary_backward may be given too
      python tools/plan.py examples/configs/1.4b-4+8R2+4-mesh.yml --gpus 64 --measured measured.json
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_configs(parser)
    parser.add_argument("--gpus", type=from_one, required=True, metavar="N", help="number of GPUs")
    parser.add_argument("--gpus-per-node", type=from_one, default=8, metavar="N", help="GPUs of one node (default: 8)")
    parser.add_argument("--gpu-memory-gib", type=positive, default=80.0, metavar="GIB", help="of one GPU (default: 80)")
    parser.add_argument(
        "--bandwidth-gbps", type=two_numbers, default=(3600.0, 400.0), metavar="INTRA,INTER",
        help="of one GPU in one direction, in Gbit/s, inside a node and between nodes (default: 3600,400)",
    )  # fmt: skip
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--peak-tflops", type=positive, metavar="TFLOPS",
        help="dense peak of one GPU (default: the configuration's peak_tflops, or 989, an H100's in bfloat16)",
    )  # fmt: skip
    speed.add_argument(
        "--layer-seconds", type=two_numbers, metavar="FORWARD,BACKWARD",
        help="what one block takes for one sequence on one GPU; the rest in proportion to FLOPs",
    )  # fmt: skip
    speed.add_argument("--measured", type=Path, metavar="FILE.json", help="seconds of block, head and loop boundary")
    parser.add_argument(
        "--efficiency", type=share, default=0.4, metavar="SHARE", help="of the peak, 0 to 1 (default: 0.4)"
    )
    parser.add_argument(
        "--layout", type=three_sizes, metavar="TP,PP,DP", help="only this layout, with all its variants"
    )
    parser.add_argument("--top", type=from_one, default=10, metavar="N", help="layouts to show (default: 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot", type=picture, metavar="PICTURE", help="draw the timeline of the fastest pipeline that is shown"
    )
    return parse_with_overrides(parser, arguments)


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be greater than 0")
    return number


def share(text: str) -> float:
    number = positive(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1, the whole peak")
    return number


def two_numbers(text: str) -> tuple[float, float]:
    numbers = [positive(part) for part in text.split(",")]
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a comma between them")
    return numbers[0], numbers[1]


def three_sizes(text: str) -> tuple[int, int, int]:
    sizes = [from_one(part) for part in text.split(",")]
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not tp,pp,dp")
    return sizes[0], sizes[1], sizes[2]


def make_plan(args: argparse.Namespace) -> "tuple[Plan, dict[str, Any]]":
    """The plan, and its report."""
    from megamesh.config.load import load_config
    from megamesh.planning.hardware import Cluster
    from megamesh.planning.report import report_plan
    from megamesh.planning.search import plan
    from megamesh.planning.speed import read_measured, speed_from_flops, speed_from_layer_seconds
    from megamesh.training.vocabulary import known_vocabulary_size

    run = load_config(args.configs, args.overrides, for_training=False).run
    if args.layout and args.gpus != args.layout[0] * args.layout[1] * args.layout[2]:
        raise ConfigError(f"--layout {','.join(map(str, args.layout))} does not take --gpus {args.gpus}; change one")
    vocab_size = known_vocabulary_size(run.model, run.tokenizer)
    padded = run.model.padded_vocab_size(vocab_size)
    intra, inter = args.bandwidth_gbps
    cluster = Cluster(args.gpus, args.gpus_per_node, args.gpu_memory_gib, intra_node_gbps=intra, inter_node_gbps=inter)
    if args.measured:
        speed, source = read_measured(args.measured), f"as measured in {args.measured}"
    elif args.layer_seconds:
        speed, source = speed_from_layer_seconds(run, padded, *args.layer_seconds), "as given"
    else:
        peak = args.peak_tflops or run.log.peak_tflops or 989.0
        speed = speed_from_flops(run, padded, peak, args.efficiency)
        source = f"from FLOPs at {args.efficiency:.0%} of {peak:g} TFLOP/s"
    found = plan(run, vocab_size, cluster, speed, top=args.top, only=args.layout)
    return found, report_plan(run, found, cluster, speed, source)


def draw(found: "Plan", path: Path) -> str:
    """The fastest pipeline's timeline; what was drawn."""
    from megamesh.diagnostics.timeline_plot import plot_timeline

    entry = next((entry for entry in found.best if entry.step.layout.pp > 1), None)
    if entry is None:
        raise ConfigError(
            "--plot: none of the layouts shown has a pipeline; name one with --layout, or show more with --top"
        )
    layout, run = entry.step.layout, entry.step.run
    name = run.recursion.recursion or f"{run.model.num_layers} layers"
    scheme = f" {run.recursion.recursion_scheme}" if run.recursion.recursion else ""
    title = (
        f"{name}{scheme} on tp {layout.tp}, pp {layout.pp}, dp {layout.dp}: {layout.num_micro_batches} micro-batches of "
        f"{layout.micro_batch_size}, {entry.estimate.idle_share:.1%} idle"
    )
    plot_timeline(entry.timeline, entry.step.placement.partition, path, title)
    return f"drew tp {layout.tp} pp {layout.pp} dp {layout.dp} to {path}"


def run(args: argparse.Namespace) -> None:
    from megamesh.planning.report import describe_plan

    found, report = make_plan(args)
    drawn = draw(found, args.plot) if args.plot else None
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else describe_plan(report))
    if drawn and not args.json:
        print(f"\n{drawn}")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
