"""Write a checkpoint, of whatever layout, as a Hugging Face folder, after comparing its logits with ours.

    python tools/convert_to_hf.py --checkpoint save --output my-model
    python tools/convert_to_hf.py --checkpoint save/global_step1000 --output my-model --dtype bfloat16 --max-shard-size 2GB

A model without recursion whose architecture is exactly GPTNeoXForCausalLM or LlamaForCausalLM is written as that and loads anywhere. Every
other model is written with its own code and loads with AutoModelForCausalLM.from_pretrained("my-model", trust_remote_code=True).

One process does it, without a GPU, whatever number of processes wrote the checkpoint, and the result does not depend on that number.
Weights go from the checkpoint to the files parameter by parameter: the tool says at the start how much memory that takes at most, and at
the end how much it took. Before the folder appears under its name
  1. every tensor is read back from the disk and must have the bits that were written;
  2. transformers loads the model, and its logits must be ours (both in fp32): those of the whole model where memory is enough for that
     (--check logits), else those of a sample of its layers with all loops and routers (--check layers).
Whatever goes wrong, no folder is left. An export that is interrupted is removed by the next one to the same name.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from megamesh.arguments import add_checkpoint, add_moved_tokenizer
from megamesh.checkpoint.inference import open_checkpoint
from megamesh.command import run_command
from megamesh.hf.exporting.export import DTYPES, ExportReport, export_model
from megamesh.hf.exporting.source import checkpoint_source
from megamesh.hf.exporting.weights import parse_size
from megamesh.hf.staging import refuse_existing
from megamesh.tokenizer.spm import exported_as_model


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="number format of the weights (default: float32, exact). bfloat16 and float16 round each weight once; "
        "float16 refuses weights beyond its largest number",
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest weights file, such as 500MB (default: 5GB)"
    )
    parser.add_argument(
        "--check",
        choices=["auto", "logits", "layers"],
        default="auto",
        help="logits: compare the whole model. layers: compare a model of a few of its layers, with all loops and routers. "
        "auto: logits where memory is enough, else layers (default)",
    )
    parser.add_argument(
        "--tokenizer-files",
        choices=["tokenizers", "sentencepiece"],
        default="tokenizers",
        help="tokenizers: tokenizer.json, refused where its ids would not be the trained ones (default). sentencepiece: the sentencepiece "
        "model itself, for any normaliser; it loads with trust_remote_code=True where the sentencepiece package is installed",
    )
    add_moved_tokenizer(parser)
    return parser.parse_args(arguments)


class Bars:
    """A bar in bytes for each thing that is done."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}

    def __call__(self, doing: str, num_bytes: int, total_bytes: int) -> None:
        if doing not in self._bars:
            self.close()
            self._bars[doing] = tqdm(total=total_bytes, unit="B", unit_scale=True, desc=doing, mininterval=0.5)
        bar = self._bars[doing]
        bar.update(num_bytes)
        if bar.n >= total_bytes:
            bar.close()  # before anything else is said

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()


def run(args: argparse.Namespace) -> None:
    refuse_existing(args.output)
    max_shard_bytes = parse_size(args.max_shard_size)
    opened = open_checkpoint(args.checkpoint, vocab_file=args.vocab_file, merge_file=args.merge_file)
    tokenizer = exported_as_model(opened.tokenizer) if args.tokenizer_files == "sentencepiece" else opened.tokenizer
    bars = Bars()
    try:
        report = export_model(
            checkpoint_source(opened),
            tokenizer,
            args.output,
            dtype=args.dtype,
            max_shard_bytes=max_shard_bytes,
            check=args.check,
            progress=bars,
        )
    finally:
        bars.close()
    print(
        f"{said(report)}\n"
        f"wrote {args.output}: {report.class_name}, {report.weight_bytes / 1e6:,.1f} MB of {args.dtype} weights, step {opened.step}"
    )


def said(report: ExportReport) -> str:
    """What was found, in two lines."""
    found, megabytes = report.agreement, 1e-6
    return (
        f"logits of {found.of} agree: the largest difference is {found.max_difference:.3g}, the largest logit {found.max_logit:.3g}\n"
        f"memory: at most {report.bound_bytes * megabytes:,.0f} MB of tensors were stated; the process peaked at "
        f"{report.peak_bytes * megabytes:,.0f} MB, {report.peak_before_bytes * megabytes:,.0f} MB of it before the export began; "
        "the rest is tensors and the code that transformers loads for the comparison"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
