"""Train a model: `deepspeed tools/train.py model.yml site.yml`."""

import argparse
import json
import os
import sys

from megamesh.arguments import add_configs, parse_with_overrides
from megamesh.command import run_command
from megamesh.config.load import load_config

DESCRIPTION = """\
Train a model from YAML files. Usually two: what is trained (examples/configs/*.yml: shapes, recursion, recipe) and where
(examples/configs/site/*.yml: data, batch per device, ZeRO, precision, folders). A key may stand in one of them only;
examples/configs/REFERENCE.md explains every key."""

EXAMPLES = """\
examples
  look before you run: parameters, FLOPs, memory, batch arithmetic, the DeepSpeed configuration
      python tools/train.py --dry-run --world-size 8 examples/configs/410m-4+8R2+4-mesh.yml examples/configs/site/one-gpu-node.yml
  train on all GPUs of this machine (torchrun, srun and mpirun work too; plain python is one process)
      deepspeed tools/train.py examples/configs/410m-4+8R2+4-mesh.yml examples/configs/site/one-gpu-node.yml
  change single keys, here to compare recursion schemes at a small budget
      deepspeed tools/train.py a.yml b.yml --set recursion_scheme=base --set train_iters=1000 --set save=runs/base
  continue a run that was stopped: the same command again; it starts from save's latest checkpoint
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `overrides` holds the `--set` keys."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_configs(
        parser,
        about_set="; the value is YAML, null takes the key away; optimizer.params.lr=3e-4 reaches into a block",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show what the run would be, and stop; needs no GPU, data or process group, and with --set vocab_size=N no tokenizer",
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: print one JSON object")
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="with --dry-run: number of processes (default: as many as hold one copy of the model)",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parsed = parse_with_overrides(parser, arguments)
    if parsed.json and not parsed.dry_run:
        parser.error("--json needs --dry-run")
    if parsed.world_size is not None and parsed.world_size < 1:
        parser.error("--world-size must be at least 1")
    if parsed.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(parsed.local_rank))
    return parsed


def main(arguments: list[str] | None = None) -> int:
    parsed = parse_arguments(arguments)
    return run_command(lambda: show(parsed) if parsed.dry_run else train(parsed))


def train(parsed: argparse.Namespace) -> None:
    loaded = load_config(parsed.configs, parsed.overrides)
    # Imported late: the engine's imports are slow, and a wrong configuration should be told at once.
    from megamesh.training.run import run

    run(loaded)


def show(parsed: argparse.Namespace) -> None:
    from megamesh.planning.dry_run import describe, dry_run

    report = dry_run(load_config(parsed.configs, parsed.overrides, for_training=False), parsed.world_size)
    print(json.dumps(report, indent=2, ensure_ascii=False) if parsed.json else describe(report))


if __name__ == "__main__":
    sys.exit(main())
