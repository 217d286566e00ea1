"""Write a checkpoint as a Hugging Face folder, after comparing its logits with ours.

    python tools/convert_to_hf.py --checkpoint save --output my-model
    python tools/convert_to_hf.py --checkpoint save/global_step1000 --output my-model --dtype bfloat16

A model without recursion whose architecture is exactly GPTNeoXForCausalLM or LlamaForCausalLM is written as that and loads anywhere. Every
other model is written with its own code and loads with AutoModelForCausalLM.from_pretrained("my-model", trust_remote_code=True).
The folder appears under its name only after transformers has loaded it and its logits agree.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megamesh.checkpoint.inference import open_checkpoint
from megamesh.command import run_command
from megamesh.hf.export import DTYPES, ModelSource, export_model, refuse_existing
from megamesh.hf.weights import parse_size


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a run's save folder (its latest checkpoint) or a global_stepN folder in it",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="number format of the weights (default: float32, exact)",
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest weights file, such as 500MB (default: 5GB)"
    )
    parser.add_argument("--vocab-file", help="where the tokenizer's file is now, if it has moved since training")
    parser.add_argument("--merge-file", help="the same for merges.txt of GPT2BPETokenizer")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    refuse_existing(args.output)
    max_shard_bytes = parse_size(args.max_shard_size)
    opened = open_checkpoint(args.checkpoint, vocab_file=args.vocab_file, merge_file=args.merge_file)
    model, recursion = opened.run.model, opened.run.recursion
    source = ModelSource(model, recursion, opened.vocab_size, opened.weights, description=str(opened.path))
    report = export_model(source, opened.tokenizer, args.output, dtype=args.dtype, max_shard_bytes=max_shard_bytes)
    print(
        f"logits agree: the largest difference is {report.max_difference:.3g}, the largest logit {report.max_logit:.3g}\n"
        f"wrote {args.output}: {report.class_name}, {report.weight_bytes / 1e6:,.1f} MB of {args.dtype} weights, step {opened.step}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
