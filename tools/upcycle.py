"""Build a recursive model from a checkpoint of a plain one, to be trained on.

    python tools/upcycle.py --checkpoint imported --output upcycled --recursion 4+8R2+4
    python tools/upcycle.py --checkpoint imported --output upcycled --recursion 4+8R2+4 --recursion-scheme mesh --core-from average \\
        --text valid.jsonl
    deepspeed tools/train.py upcycled/global_step0/configs/upcycled.yml site.yml --set save=runs/upcycled

--checkpoint is a run of ours without recursion, or what tools/convert_from_hf.py made. --recursion is prelude+coreRloops+coda. Prelude and
coda are the source's first and last layers; of those between them --core-from says which seed the core:

    stepwise     evenly spaced ones, the first and the last kept: covers the whole depth, with gaps between neighbours
    average      each block the mean of the layers that it will stand for (with 8 between and 4R2: 0+4, 1+5, 2+6, 3+7); needs a multiple
    lower        the first ones: neighbours that fit each other, but nothing of the layers after them
    upper        the last ones: the same, but nothing of the layers before them
    4,6,9,11     these layers of the source, counted from 0, one for each block

stepwise, average and lower are from Relaxed Recursive Transformers (Bae et al., arXiv 2410.20672), which found stepwise best for plain
recursion; upper is where retrofitted recurrence takes its core from (McLeish et al., arXiv 2511.07384). No rule keeps the source's loss:
weights that were trained for one depth are run at several. Try them: each takes a copy's time, and --text tells the loss. Where the core
has as many blocks as there are layers between (4+8+8+4 from 24, which shares nothing), every rule is the same exact copy.

Schemes. base, static and dynamic start as plain recursion of the chosen layers, exactly. mesh starts near it: every state has a slot of its
own, router weights are zero, and --mesh-router-slot-bias stands on the slot that is written and read. The first reads are off by less than
(2·slots + 2·loops − 1)·e^−bias of the largest state, and the routers' gradients are multiplied by e^−bias, the weight of the other slots: a
large bias keeps closer to plain recursion, a small one lets routers learn sooner. With 2 loops and 5 slots:

    bias            2       4       5.6      7.2       9.5       12
    reads off by    0.91    0.21    0.047    0.0097    0.00097   0.00008
    gradients ×     0.088   0.017   0.0037   0.00074   0.00007   0.000006

The default is the least bias with which reads are off by less than 0.05.

With fewer slots than loops + 2 not every state has its own, and no start is plain recursion: states go round the slots, and later reads add
the older ones that stand there. The paper's default, loops + 3, has room.

residual, anchor, anchor* and sums of them add states that neither the source nor plain recursion adds: let the loss say what that does.
A scheme of your own (my_package.my_module:MyScheme, its settings in --recursion-scheme-params) starts where its description says.

The output holds weights alone: training starts at step 0, with new moments, on any layout. configs/upcycled.yml inside has all keys; it
names the output as `load`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megamesh.arguments import add_checkpoint, add_moved_tokenizer, block, from_one
from megamesh.command import run_command
from megamesh.errors import ConfigError

RECURSION_KEYS = (
    "recursion", "recursion_scheme", "recursion_scheme_params", "mesh_num_slots", "mesh_transition_input", "mesh_router_slot_bias",
)  # fmt: skip


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder of the new checkpoint; must hold none")
    parser.add_argument("--recursion", required=True, metavar="LAYERS", help="such as 4+8R2+4, or 4+8+8+4")
    parser.add_argument(
        "--recursion-scheme", "--recursion_scheme", default="mesh", metavar="SCHEME", help="default: mesh"
    )
    parser.add_argument(
        "--recursion-scheme-params",
        "--recursion_scheme_params",
        type=block,
        metavar="BLOCK",
        help="settings of a scheme of your own, as YAML: '{key: value}'",
    )
    parser.add_argument(
        "--core-from", "--core_from", default="stepwise", metavar="RULE", help="see above (default: stepwise)"
    )
    mesh = parser.add_argument_group("mesh")
    mesh.add_argument(
        "--mesh-num-slots", "--mesh_num_slots", type=from_one, metavar="N", help="slots (default: loops + 3)"
    )
    mesh.add_argument(
        "--mesh-transition-input",
        "--mesh_transition_input",
        choices=["h_emb", "prelude"],
        help="what the transitional routers read (default: h_emb)",
    )
    mesh.add_argument(
        "--mesh-router-slot-bias",
        "--mesh_router_slot_bias",
        type=float,
        metavar="BIAS",
        help="see above (default: the least with which reads are within 0.05 of plain recursion)",
    )
    loss = parser.add_argument_group("loss, before and after, in float32")
    loss.add_argument(
        "--text",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="text to take it on: .txt, .jsonl with a text key, or another kind that preprocess_data.py reads",
    )
    loss.add_argument(
        "--max-windows",
        type=from_one,
        default=64,
        metavar="N",
        help="windows of the model's sequence length to read of it (default: 64)",
    )
    loss.add_argument("--device", help="such as cpu or cuda:0 (default: a GPU where there is one)")
    add_moved_tokenizer(parser)
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    # Imported late, so that --help comes at once.
    from megamesh.checkpoint.inference import open_checkpoint
    from megamesh.checkpoint.meta import CONFIGS_FOLDER
    from megamesh.evaluation.text_loss import read_windows
    from megamesh.generation.processes import one_model
    from megamesh.upcycling.model import CONFIG_NAME, losses, plan_upcycling, write_upcycled
    from megamesh.upcycling.report import describe_losses, describe_seeds, describe_sizes, describe_start

    moved = {"vocab_file": args.vocab_file, "merge_file": args.merge_file}
    source = open_checkpoint(args.checkpoint, **moved)
    plan = plan_upcycling(
        source, args.output, {key: getattr(args, key) for key in RECURSION_KEYS}, args.core_from, **moved
    )
    with one_model(args.device) as (mesh, device):
        if mesh is not None:
            raise ConfigError("upcycling is the work of one process; start it with python, without a launcher")
        length = source.run.model.sequence_length
        windows = read_windows(args.text, source.tokenizer, length, args.max_windows) if args.text else []
        print(f"{describe_seeds(plan.seeds)}\n\n{describe_sizes(plan)}\n\n{describe_start(plan)}\n", flush=True)
        before = losses(source, windows, device) if windows else []
        path = write_upcycled(plan, args.output)
        if windows:
            print(describe_losses([*before, *losses(open_checkpoint(path), windows, device)]))
        else:
            print("loss before and after: name text with --text FILE.txt or FILE.jsonl")
    more = "data.yml" if plan.loaded.missing else "--set save=FOLDER"
    config = shlex.quote(str(path / CONFIGS_FOLDER / CONFIG_NAME))
    print(f"\nwrote {path}\ntrain on: python tools/train.py {config} {more}")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
