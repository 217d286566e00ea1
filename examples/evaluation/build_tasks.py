"""Writes text.jsonl and choices.jsonl for the tasks beside this file, from the Python sources of the interpreter's standard library.

text.jsonl     {"text": …}                            the beginnings of source files
choices.jsonl  {"context": …, "choices": […], "answer": n}    some lines of a file; which line comes next?

The same every time, and on every machine with the same Python. Files of your own in this format do as well.
"""

import argparse
import json
import random
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

NUM_CONTEXT_LINES = 8
NUM_CHOICES = 4
CHOICE_LENGTHS = range(10, 80)  # characters


def read_sources() -> list[str]:
    """The modules at the top of the standard library, shuffled."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(folder.glob("*.py"))
    random.Random(0).shuffle(paths)
    return [text for path in paths if (text := path.read_text(encoding="utf-8")).strip()]


def ask(source: str, draw: random.Random) -> dict[str, object] | None:
    """A question about a file; None where the file is too short for one."""
    lines = source.splitlines()
    different = sorted({line.strip() for line in lines if len(line.strip()) in CHOICE_LENGTHS})
    places = [n for n in range(NUM_CONTEXT_LINES, len(lines)) if len(lines[n].strip()) in CHOICE_LENGTHS]
    if len(different) < NUM_CHOICES or not places:
        return None
    place = draw.choice(places)
    right = lines[place].strip()
    choices = [right, *draw.sample([line for line in different if line != right], NUM_CHOICES - 1)]
    draw.shuffle(choices)
    context = "\n".join(lines[place - NUM_CONTEXT_LINES : place])
    return {"context": context, "choices": choices, "answer": choices.index(right)}


def write(path: Path, records: Iterable[dict[str, object]]) -> None:
    lines = [json.dumps(record) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} lines")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(), help="folder to write into (default: this one)")
    parser.add_argument("--num-documents", type=int, default=20, help="source files (default: 20)")
    parser.add_argument("--num-characters", type=int, default=20_000, help="most of each file (default: 20,000)")
    parser.add_argument("--num-questions", type=int, default=100, help="questions (default: 100)")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    sources, draw = read_sources(), random.Random(1)
    texts = sources[: args.num_documents]
    write(args.output / "text.jsonl", ({"text": text[: args.num_characters]} for text in texts))
    questions = (ask(draw.choice(sources), draw) for _ in range(args.num_questions))
    write(args.output / "choices.jsonl", (question for question in questions if question))


if __name__ == "__main__":
    main()
