"""Import a model from a transformers folder as the checkpoint that a run starts from, after comparing its logits with transformers'.

    hf download EleutherAI/pythia-160m --local-dir pythia-160m
    python tools/convert_from_hf.py --input pythia-160m --output imported
    python tools/generate.py --checkpoint imported --prompt "Once upon a time"
    python tools/train.py imported/global_step0/configs/imported.yml data.yml

GPTNeoXForCausalLM (Pythia), LlamaForCausalLM and what tools/convert_to_hf.py wrote are read, from safetensors or .bin files, in fp32, fp16
or bf16. --output becomes a run's folder: global_step0 with the weights, bit for bit, and no optimizer's moments; the tokenizer, copied; and
inside the checkpoint imported.yml, every key of the model, from which a run of any layout goes on (data.yml says data, batch size, length,
optimizer and `save`). tools/upcycle.py makes a recursive model of it, tools/convert_to_hf.py the transformers folder again.

Memory, beside the libraries: twice the largest parameter in fp32 while weights are written; the whole model in fp32 and once more as it is
stored while logits are compared, or --check layers for a few layers of it.
What our model would compute differently is refused: scaled rotary embeddings (Llama 3.1 and later), other activations than gelu, relu and
silu, quantised weights. A tensor that is missing, left over or of another shape is refused by its name.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from megamesh.command import run_command
from megamesh.hf.exporting.compare import Agreement
from megamesh.hf.importing.import_check import Check
from megamesh.hf.importing.imported_tokenizer import TYPES, TokenizerChoice
from megamesh.hf.importing.importing import import_model
from megamesh.hf.memory import peak_bytes


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", required=True, type=Path, help="folder with config.json, weights and, usually, the tokenizer"
    )
    parser.add_argument("--output", required=True, type=Path, help="run's folder to write; must not exist")
    parser.add_argument(
        "--check",
        choices=get_args(Check),
        default="auto",
        help="what to compare with transformers: logits of the whole model, of some of its layers, or nothing "
        "(default: the whole where memory allows, else some layers)",
    )
    parser.add_argument("--vocab-file", help="the tokenizer's file, where --input holds none or another is wanted")
    parser.add_argument("--merge-file", help="merges.txt, where --vocab-file is the vocab.json of GPT-2's tokenizer")
    parser.add_argument(
        "--tokenizer-type",
        choices=TYPES,
        help="kind of the tokenizer, where the file's name does not say it (default: tokenizer.json is HFTokenizer, "
        "*.model SPMTokenizer, vocab.json with merges.txt GPT2BPETokenizer)",
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    choice = TokenizerChoice(args.tokenizer_type, args.vocab_file, args.merge_file)
    report = import_model(args.input, args.output, tokenizer=choice, check=args.check)
    print(
        f"{_said_of_logits(report.agreement)}\n"
        f"wrote {args.output}: {report.class_name}, {report.num_parameters:,} parameters, {report.tokenizer.tokenizer_type}; "
        f"peak memory {peak_bytes() / 1e9:.2f} GB\n"
        f"train on: python tools/train.py {shlex.quote(str(report.yaml_path))} data.yml"
    )


def _said_of_logits(found: Agreement | None) -> str:
    if found is None:
        return "logits were not compared, as asked"
    return (
        f"logits of {found.of} agree with transformers': the largest difference is {found.max_difference:.3g}, "
        f"the largest logit {found.max_logit:.3g}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
