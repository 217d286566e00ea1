"""Pictures of runs: `plot.py loss` and `plot.py routers`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megamesh.arguments import from_one, picture
from megamesh.command import run_command
from megamesh.errors import DataError

EXAMPLES = """\
examples
  training and validation loss of two runs over tokens, with a horizontal line for comparison
      python tools/plot.py loss --run mesh=runs/mesh --run base=runs/base --line unigram=6.8 --output loss.png
  who writes to and reads from which slot, averaged over validation text
      python tools/plot.py routers --checkpoint runs/mesh --output routers.png
"""


def named(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} has no '='; write NAME=VALUE")
    return name, value


def named_loss(text: str) -> tuple[str, float]:
    name, value = named(text)
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number; write NAME=LOSS") from None


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    loss = kinds.add_parser("loss", help="loss over tokens, from save/metrics.jsonl")
    loss.add_argument(
        "--run", type=named, action="append", required=True, metavar="NAME=SAVE", help="a run's save folder; repeat"
    )
    loss.add_argument(
        "--line", type=named_loss, action="append", default=[], metavar="NAME=LOSS", help="a horizontal line; repeat"
    )
    loss.add_argument("--output", type=picture, required=True, help="picture to write (.png, .pdf, .svg)")
    routers = kinds.add_parser("routers", help="mean write and read weights per step and slot of a MeSH model")
    routers.add_argument(
        "--checkpoint", type=Path, required=True, help="save folder (its latest) or one global_step folder"
    )
    routers.add_argument(
        "--samples", type=from_one, default=16, help="validation samples to average over (default: 16)"
    )
    routers.add_argument("--output", type=picture, required=True, help="picture to write (.png, .pdf, .svg)")
    return parser.parse_args(arguments)


def plot_loss(args: argparse.Namespace) -> None:
    from megamesh.diagnostics.plots import LossCurve, plot_losses
    from megamesh.training.hooks.metrics_file import FILE_NAME, read_metrics

    curves = {}
    for name, folder in args.run:
        try:
            rows = read_metrics(Path(folder) / FILE_NAME)
        except OSError as error:
            raise DataError(f"--run {name}={folder} is not a run's save folder: {error}") from error
        rows = [row for row in rows if row.keys() >= {"consumed_tokens", "loss"}]
        points = {
            kind: [(row["consumed_tokens"], row["loss"]) for row in rows if row["kind"] == kind]
            for kind in ("train", "valid")
        }
        if name in curves or not any(points.values()):
            problem = "is a second run of that name" if name in curves else "has logged no loss yet"
            raise DataError(f"--run {name}={folder} {problem}; name another")
        curves[name] = LossCurve(**points)
    plot_losses(curves, args.output, dict(args.line))


def plot_routers(args: argparse.Namespace) -> None:
    from megamesh.checkpoint.inference import load_for_inference
    from megamesh.data.samples.build import build_datasets
    from megamesh.data.samples.loader import iterate_batches
    from megamesh.diagnostics.plots import plot_router_maps
    from megamesh.diagnostics.router_maps import router_maps

    model, config, tokenizer = load_for_inference(args.checkpoint)
    data = build_datasets(
        config.data,
        sequence_length=config.model.sequence_length,
        seed=config.training.seed,
        num_samples=(0, args.samples, 0),
        vocab_size=tokenizer.vocab_size,
    )
    if data.valid is None:
        raise DataError(f"{args.checkpoint}: its configuration names no validation data to average over")
    batches = iterate_batches(
        data.valid,
        consumed_samples=0,
        total_samples=args.samples,
        micro_batch_size=1,
        dp_rank=0,
        dp_size=1,
        num_workers=0,
    )
    maps = router_maps(model, (batch.tokens_BS for batch in batches))
    title = f"MeSH routing, {config.recursion.recursion}, mean over {args.samples * config.model.sequence_length:,} validation tokens"
    plot_router_maps(maps, args.output, title)


def run(args: argparse.Namespace) -> None:
    (plot_loss if args.kind == "loss" else plot_routers)(args)
    print(f"wrote {args.output}")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
