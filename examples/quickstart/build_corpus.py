"""Collects the Python sources of the interpreter's own standard library into one jsonl file: a real corpus on every machine.

One line per source file, {"path": ..., "text": ...}, in an order that is shuffled but the same every time, so that a split by documents
gives validation text of the same kind as the training text. Tests, installed packages and files that are tables rather than code (character
encodings, the text of pydoc) are left out.
"""

import argparse
import json
import os
import random
import sysconfig
from collections.abc import Sequence
from pathlib import Path

LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib2to3",
    "encodings",
    "pydoc_data",
}


def source_files(root: Path) -> list[Path]:
    files = [path for path in root.rglob("*.py") if not LEFT_OUT.intersection(path.relative_to(root).parts)]
    files.sort()
    random.Random(0).shuffle(files)
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="jsonl file to write")
    args = parser.parse_args(arguments)
    root = Path(sysconfig.get_paths()["stdlib"])
    num_files = num_bytes = 0
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(args.output.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        for path in source_files(root):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a few files hold other encodings on purpose
            if text.strip():
                out.write(json.dumps({"path": str(path.relative_to(root)), "text": text}) + "\n")
                num_files, num_bytes = num_files + 1, num_bytes + len(text.encode())
    os.replace(temporary, args.output)
    print(f"{args.output}: {num_files} files, {num_bytes / 1e6:.1f} MB of Python from {root}")


if __name__ == "__main__":
    main()
