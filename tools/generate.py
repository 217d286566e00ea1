"""Continue text with a trained checkpoint.

    python tools/generate.py --checkpoint save --prompt "def main(" --max-new-tokens 100
    python tools/generate.py --checkpoint save --input-file prompts.txt --output continuations.jsonl --temperature 0
    python tools/generate.py --checkpoint save --interactive --temperature 0.8 --top-p 0.95
    torchrun --nproc-per-node 4 tools/generate.py --checkpoint save --prompt "def main("

Started by torchrun, deepspeed or srun, the model is divided over all processes, whatever divided it in training: use it where the weights
do not fit into one GPU. Tensor parallelism divides heads, key/value heads and the MLP's width, which must be divisible by the number of
processes; --pipe-parallel-size cuts the layers over so many ranks and leaves the rest to the tensor axis. The same text comes out, once.

--input-file holds one prompt per line (.txt) or per record under "text" (.jsonl). --output gets one JSON object per prompt: prompt, text,
num_tokens, stopped (true where the model ended the document itself). Without --output, texts go to standard output.
Temperature 0 always takes the most probable token; 1 draws from the model's own distribution; --top-k and --top-p cut off its
tail. The same --seed gives the same text, whatever else is in the batch. An empty prompt starts a new document.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from megamesh.arguments import add_checkpoint, add_moved_tokenizer, make_folder
from megamesh.checkpoint.inference import OpenCheckpoint, open_checkpoint
from megamesh.command import run_command
from megamesh.errors import ConfigError, DataError, MegaMeshError
from megamesh.generation.generate import LanguageModel, generate, room_for, stream
from megamesh.generation.processes import first_then_all, from_first, load_over, one_model
from megamesh.generation.sampling import Sampling
from megamesh.generation.text import decode_continuation, decode_stream, encode_prompt
from megamesh.launch import read_launch
from megamesh.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="text to continue; may be given several times")
    source.add_argument("--input-file", type=Path, help="prompts: .txt, one per line, or .jsonl with a text key")
    source.add_argument(
        "--interactive", action="store_true", help="read prompts from the terminal and show tokens as they come"
    )
    parser.add_argument("--output", type=Path, help=".jsonl file to write; must not exist (default: standard output)")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help="most tokens to add to each prompt (default: 128, or as many as the model has positions for)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="0 is greedy, below 1 is safer, above 1 wilder (default: 1)"
    )
    parser.add_argument("--top-k", type=int, help="draw from the k most probable tokens only (default: all)")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the most probable tokens that make up this share (default: 1, all)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="seed of the draws (default: 1234)")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts that are continued at once (default: 8)")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="number format (default: float32 on CPU, bfloat16 on a GPU)"
    )
    parser.add_argument(
        "--device",
        help="such as cpu or cuda:0 (default: a GPU where there is one; of several processes each takes its own)",
    )
    parser.add_argument(
        "--pipe-parallel-size",
        type=int,
        default=1,
        metavar="P",
        help="of several processes, how many to cut the layers over; they work in turn (default: 1)",
    )
    add_moved_tokenizer(parser)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def read_prompts(path: Path) -> list[str]:
    """Prompts of a .txt or .jsonl file. DataError names the line that is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--input-file={path} cannot be read: {error}") from error
    if not text:
        raise DataError(f"--input-file={path} is empty; write one prompt per line")
    lines = text.removesuffix("\n").split("\n")  # splitlines() would also cut at U+2028, which JSON allows in a string
    if path.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompt = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise DataError(f'{path}:{number} is not a JSON object with a "text" string')
        prompts.append(prompt)
    return prompts


def ask() -> str | None:
    """A prompt from the terminal; None at its end."""
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def interact(model: LanguageModel, tokenizer: Tokenizer, max_new_tokens: int | None, sampling: Sampling) -> None:
    """Prompts from the terminal until it ends; every prompt draws from a stream of its own."""
    print("Type a prompt and Enter; Ctrl-D ends.", file=sys.stderr)
    limits = {"vocab_size": tokenizer.vocab_size, "stop_id": tokenizer.eod_id}
    index = 0
    while (text := from_first(ask)) is not None:
        try:
            prompt = encode_prompt(tokenizer, text)
            most = max_new_tokens or room_for(model.config, [prompt])
            tokens = stream(model, prompt, max_new_tokens=most, sampling=sampling, index=index, **limits)
            for piece in decode_stream(tokenizer, prompt, tokens):
                print(piece, end="", flush=True)
        except MegaMeshError as error:  # a prompt that is too long ends this prompt, not the session
            print(f"error: {error}", file=sys.stderr, end="")
        except KeyboardInterrupt:
            # Several processes stop at different tokens and cannot go on together.
            if read_launch(os.environ).world_size > 1:
                return
        print()
        index += 1


def write_results(
    args: argparse.Namespace,
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: list[tuple[str, list[int]]],
    sampling: Sampling,
) -> None:
    ids_of = [ids for _, ids in prompts]
    results = generate(
        model,
        ids_of,
        max_new_tokens=args.max_new_tokens or room_for(model.config, ids_of),
        vocab_size=tokenizer.vocab_size,
        stop_id=tokenizer.eod_id,
        sampling=sampling,
        batch_size=args.batch_size,
    )
    records = []
    for (prompt, ids), result in zip(prompts, results, strict=True):
        text = decode_continuation(tokenizer, ids, result.tokens)
        records.append({"prompt": prompt, "text": text, "num_tokens": len(result.tokens), "stopped": result.stopped})
    if read_launch(os.environ).rank > 0:
        return
    if args.output is None:
        for record in records:
            print(f"{record['prompt']}{record['text']}")
        return
    try:
        with args.output.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    except OSError as error:
        raise DataError(f"--output={args.output} cannot be written: {error}") from error
    print(f"wrote {args.output}: {len(records)} continuations")


def check_arguments(args: argparse.Namespace) -> None:
    for key, value in (("--max-new-tokens", args.max_new_tokens), ("--batch-size", args.batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{key}={value} is too small; use 1 or more")
    if args.output is not None and args.output.exists():
        raise ConfigError(f"--output={args.output} exists; name another file")
    if args.output is not None:
        make_folder(args.output.parent, f"--output={args.output}")  # before all the work


def read_inputs(args: argparse.Namespace) -> tuple[OpenCheckpoint, list[tuple[str, list[int]]]]:
    """What there is to generate from: the checkpoint, not yet its tensors, and the prompts with their token ids."""
    texts = args.prompt or (read_prompts(args.input_file) if args.input_file else [])
    opened = open_checkpoint(args.checkpoint, vocab_file=args.vocab_file, merge_file=args.merge_file)
    return opened, [(text, encode_prompt(opened.tokenizer, text)) for text in texts]


@contextmanager
def silent(silenced: bool) -> Iterator[None]:
    """Nothing is printed where `silenced`; errors and the log are not held back."""
    with open(os.devnull, "w") as nowhere, ExitStack() as stack:
        for redirect in (redirect_stdout, redirect_stderr) if silenced else ():
            stack.enter_context(redirect(nowhere))
        yield


def run(args: argparse.Namespace) -> None:
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    check_arguments(args)
    with one_model(args.device, args.pipe_parallel_size) as (mesh, device):
        opened, prompts = first_then_all(lambda: read_inputs(args))
        dtype = DTYPES[args.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
        model = load_over(mesh, opened, device, dtype)
        with silent(read_launch(os.environ).rank > 0):
            if args.interactive:
                interact(model, opened.tokenizer, args.max_new_tokens, sampling)
            else:
                write_results(args, model, opened.tokenizer, prompts, sampling)


def main(arguments: Sequence[str] | None = None) -> int:
    with silent(read_launch(os.environ).rank > 0):
        args = parse_arguments(arguments)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
