"""Look into checkpoints: list what they hold, verify that nothing is damaged, compare two of them.

    python tools/inspect_checkpoint.py save                              the run's checkpoints, and what the latest one holds
    python tools/inspect_checkpoint.py save/global_step20 --norms --filter "routers.*"
    python tools/inspect_checkpoint.py verify save                       every byte of every checkpoint of the run
    python tools/inspect_checkpoint.py compare save/global_step20 other/global_step20

Where a checkpoint is asked for, a run's save folder stands for its latest one. It does not matter how a run was laid out over processes.
Neither a process group nor the memory for a whole model is needed: one tensor is read at a time. `list` is meant where no command is given.

Exit status: of verify 0 where all is well, else 1; of compare 0 where all tensors are bit-identical, else 1; of list 0.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megamesh.arguments import from_one
from megamesh.checkpoint.comparison import TensorComparison, compare_tensors, config_differences, yaml_differences
from megamesh.checkpoint.files import read_index
from megamesh.checkpoint.folder import COMPLETE_MARK, resolve_checkpoint
from megamesh.checkpoint.inspection import (
    RunFolder,
    StoredTensor,
    TensorReader,
    config_files,
    consumed_tokens,
    read_run_folder,
    stored_tensors,
)
from megamesh.checkpoint.meta import CheckpointMeta
from megamesh.checkpoint.reader import read_meta
from megamesh.checkpoint.verification import Problem, num_stored_bytes, verify_checkpoint, verify_folder
from megamesh.command import json_text, run_command
from megamesh.errors import CheckpointError
from megamesh.tables import aligned

COMMANDS = ("list", "verify", "compare")
MOST_PROBLEMS = 50


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,verify,compare}")
    lister = commands.add_parser("list", help="what a run's folder or a checkpoint holds (the default)")
    lister.add_argument("path", type=Path, help="a run's save folder or a global_stepN folder in it")
    lister.add_argument("--norms", action="store_true", help="also the norm of each tensor, which reads them all")
    lister.add_argument("--moments", action="store_true", help="also Adam's moments, exp_avg and exp_avg_sq")
    lister.add_argument("--yaml", action="store_true", help="print the YAML files that the run was started with")
    verifier = commands.add_parser("verify", help="read every byte; is it what was saved, and is it all there?")
    verifier.add_argument(
        "path", type=Path, nargs="+", help="save folders (all their checkpoints) or global_stepN folders"
    )
    verifier.add_argument("--finite", action="store_true", help="report NaN and infinite values too")
    comparer = commands.add_parser("compare", help="how two checkpoints differ")
    comparer.add_argument("a", type=Path, help="a run's save folder or a global_stepN folder in it")
    comparer.add_argument("b", type=Path, help="the other one, to which differences are relative")
    comparer.add_argument("--weights-only", action="store_true", help="leave Adam's moments out")
    comparer.add_argument("--top", type=from_one, default=20, metavar="N", help="rows of the table (default: 20)")
    for command in (lister, comparer):
        command.add_argument(
            "--filter", metavar="PATTERN", help="only parameters of such names: 'core.*.weight', '*norm*'"
        )
        command.add_argument(
            "--no-verify", action="store_true", help="read values without comparing them with their checksums"
        )
    for command in (lister, verifier, comparer):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    named = arguments[:1] and (arguments[0] in COMMANDS or arguments[0] in ("-h", "--help"))
    return parser.parse_args(arguments if named or not arguments else ["list", *arguments])


def progress(total_bytes: int, what: str) -> Any:
    return tqdm(total=total_bytes, unit="B", unit_scale=True, desc=what, mininterval=0.5)


def size_text(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"


def shape_text(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def list_all(args: argparse.Namespace) -> int:
    folder = None if (args.path / COMPLETE_MARK).is_file() else read_run_folder(args.path)
    if folder is not None and not args.json:
        print(folder_text(args.path, folder) + "\n")
    path = resolve_checkpoint(args.path)
    meta, metadata = read_meta(path), read_index(path)
    kinds = None if args.moments else ("fp32",)
    tensors = stored_tensors(metadata, kinds=kinds, pattern=args.filter)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no parameter" + (f" that fits --filter={args.filter}" if args.filter else "")
        )
    norms = read_norms(path, tensors, verify=not args.no_verify) if args.norms else {}
    configs = config_files(path)
    if args.json:
        rows = [asdict(tensor) | ({"norm": norms[tensor.key]} if norms else {}) for tensor in tensors]
        saves = None if folder is None else asdict(folder)
        print(json_text({"run": saves, "checkpoint": path, "meta": asdict(meta), "configs": configs, "tensors": rows}))
        return 0
    print(f"{path}\n{meta_text(meta, list(configs))}\n\n{tensors_text(tensors, norms)}")
    for name, text in configs.items() if args.yaml else ():
        print(f"\n# {name}\n{text.rstrip()}")
    return 0


def folder_text(path: Path, folder: RunFolder) -> str:
    """A run's saves, one a line."""
    rows = []
    for save in folder.saves:
        hidden = save.path.name.startswith(".")
        broken = (
            "not complete: interrupted, or being written or removed right now" if hidden else "damaged: it has no index"
        )
        note = "complete" if save.complete else broken
        rows.append(
            (save.path.name, size_text(save.num_bytes), note + (", latest" if save.path == folder.latest else ""))
        )
    lines = [f"{name:<{max(len(row[0]) for row in rows)}}  {size:>12}  {note}" for name, size, note in rows]
    return "\n".join(
        [str(path), *(f"  {line}" for line in lines or ["no checkpoint"]), *filter(None, [folder.problem])]
    )


def meta_text(meta: CheckpointMeta, configs: list[str]) -> str:
    state, tokens = meta.state, consumed_tokens(meta)
    steps = f"{state.step:,} ({meta.optimizer_step:,} of the optimizer, {state.skipped_steps:,} skipped)"
    samples = f"{state.consumed_samples:,} samples" + (f", {tokens:,} tokens" if tokens is not None else "")
    rows = {
        "step": steps,
        "consumed": samples,
        "seed": str(state.seed),
        "written by": ", ".join(f"{key} {value}" for key, value in meta.layout.items()) or "not recorded",
        "versions": ", ".join(f"{key} {value}" for key, value in meta.versions.items()) or "not recorded",
        "loss scale": f"{meta.loss_scale.scale:g}" if meta.loss_scale is not None else "none",
        "configs": ", ".join(configs) or "none",
    }
    return "\n".join(f"  {name:<12}{value}" for name, value in rows.items())


def tensors_text(tensors: list[StoredTensor], norms: dict[str, float]) -> str:
    """Tensors one a line, with their totals."""
    one_kind = len({tensor.kind for tensor in tensors}) == 1
    rows = [("tensor", "shape", "type", "pieces", *(("norm",) if norms else ()))]
    for tensor in tensors:
        norm = (f"{norms[tensor.key]:.6g}",) if norms else ()
        name = tensor.name if one_kind else tensor.key
        rows.append((name, shape_text(tensor.shape), tensor.dtype, f"{tensor.num_pieces:,}", *norm))
    masters = [tensor.num_elements for tensor in tensors if tensor.kind == "fp32"]
    total = size_text(sum(tensor.num_bytes for tensor in tensors))
    return f"{aligned(rows, indent='  ')}\n  {len(tensors):,} tensors, {sum(masters):,} parameters, {total}"


def read_norms(path: Path, tensors: list[StoredTensor], *, verify: bool) -> dict[str, float]:
    reader, norms = TensorReader(path, verify=verify), {}
    with progress(sum(tensor.num_bytes for tensor in tensors), "reading") as bar:
        for tensor in tensors:
            norms[tensor.key] = reader.norm(tensor.key)
            bar.update(tensor.num_bytes)
    return norms


def verify_all(args: argparse.Namespace) -> int:
    found: dict[Path, list[Problem]] = {}
    checkpoints: list[Path] = []
    for path in args.path:
        if (path / COMPLETE_MARK).is_file():
            checkpoints.append(path)
            continue
        folder = read_run_folder(path)
        complete = [save.path for save in folder.saves if save.complete]
        if not complete:
            raise CheckpointError(f"{path} holds no complete checkpoint to verify")
        checkpoints += complete
        if problems := verify_folder(folder):
            found[path] = problems
    total = sum(map(num_stored_bytes, checkpoints))
    started = time.monotonic()
    with progress(total, "verifying") as bar:
        for path in checkpoints:
            found[path] = verify_checkpoint(path, finite=args.finite, on_read=bar.update)
    seconds = time.monotonic() - started
    damaged = {str(path): [asdict(problem) for problem in listed] for path, listed in found.items() if listed}
    if args.json:
        print(json_text({"verified": checkpoints, "num_bytes": total, "seconds": seconds, "problems": damaged}))
    else:
        print(verification_text(found))
        print(f"read {size_text(total)} in {seconds:.1f} s ({total / 1e6 / max(seconds, 1e-9):,.0f} MB/s)")
    return 1 if damaged else 0


def verification_text(found: dict[Path, list[Problem]]) -> str:
    """What was found wrong with each folder, and which are as they were saved."""
    lines = []
    for path, problems in found.items():
        count = f"{len(problems):,} problem" + ("s" if len(problems) > 1 else "")
        lines.append(f"{path}: {count if problems else 'all is well'}")
        lines += [f"  {problem}" for problem in problems[:MOST_PROBLEMS]]
        if len(problems) > MOST_PROBLEMS:
            lines.append(f"  … and {len(problems) - MOST_PROBLEMS:,} more, which --json lists")
    return "\n".join(lines)


def compare(args: argparse.Namespace) -> int:
    paths = [resolve_checkpoint(args.a), resolve_checkpoint(args.b)]
    a, b = (TensorReader(path, verify=not args.no_verify) for path in paths)
    metas = [read_meta(path) for path in paths]
    kinds = ("fp32",) if args.weights_only else None
    total = sum(tensor.num_bytes for tensor in stored_tensors(a.metadata, kinds=kinds, pattern=args.filter))
    with progress(total, "comparing") as bar:
        tensors = compare_tensors(a, b, kinds=kinds, pattern=args.filter, on_read=bar.update)
    keys, yamls = config_differences(metas[0].config, metas[1].config), yaml_differences(*paths)
    facts = config_differences(*(asdict(replace(meta, config={})) for meta in metas))
    if args.json:
        values = {"a": paths[0], "b": paths[1], "bit_identical": tensors.all_identical, **asdict(tensors)}
        print(json_text(values | {"meta": facts, "config": keys, "yaml": yamls}))
        return 0 if tensors.all_identical else 1
    for name, path, meta in zip("AB", paths, metas, strict=True):
        print(f"{name}  {path}: step {meta.state.step:,}, {meta.state.consumed_samples:,} samples")
    print(f"\n{comparison_text(tensors, args.top)}")
    for key, (in_a, in_b) in facts.items():
        print(f"{key}: {in_a!r} in A, {in_b!r} in B")
    for key, (in_a, in_b) in keys.items():
        print(f"config {key}: {in_a!r} in A, {in_b!r} in B")
    for name, lines in yamls.items():
        print("\n".join([f"\n{name}", *lines]))
    return 0 if tensors.all_identical else 1


def comparison_text(tensors: TensorComparison, top: int) -> str:
    """How many tensors are alike, and the `top` ones that differ most."""
    held = len(tensors.identical) + len(tensors.different) + len(tensors.other_shape)
    lines = [
        f"{held:,} tensors in both: {len(tensors.identical):,} bit-identical, {len(tensors.different):,} different"
    ]
    rows = [("tensor", "shape", "max |a − b|", "‖a − b‖ / ‖b‖")]
    for found in tensors.different[:top]:
        rows.append((found.key, shape_text(found.shape), f"{found.largest:.3g}", f"{found.relative:.3g}"))
    if len(rows) > 1:
        lines.append(aligned(rows, indent="  "))
    if len(tensors.different) > top:
        lines.append(f"  … and {len(tensors.different) - top:,} more (--top)")
    for key, shape_a, shape_b in tensors.other_shape:
        lines.append(f"  {key} is {shape_text(shape_a)} in A and {shape_text(shape_b)} in B")
    for name, only in (("A", tensors.only_in_a), ("B", tensors.only_in_b)):
        if only:
            lines.append(f"only in {name}: {', '.join(only)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    work = {"list": list_all, "verify": verify_all, "compare": compare}[args.command]
    results: list[int] = []
    return run_command(lambda: results.append(work(args))) or results[0]


if __name__ == "__main__":
    sys.exit(main())
