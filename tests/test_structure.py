"""What the agreed structure of the repository looks like from outside."""

import ast
import subprocess
from functools import cache
from pathlib import Path

from tests import fast

ROOT = Path(__file__).parents[1]
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION, LEAST_ANNOTATED = 400, 60, 0.95
Function = ast.FunctionDef | ast.AsyncFunctionDef
TOP_LEVEL = {"megamesh", "tools", "examples", "tests", "docker", "setup.py", "README.md"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(line) for line in listing.stdout.splitlines() if (ROOT / line).exists()]


def sources() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py"]


@cache
def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, Function)]


def is_annotated(function: Function) -> bool:
    """What it takes and what it returns; `self` and what __init__ returns need no words."""
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    taken = all(argument.annotation for argument in arguments if argument.arg not in ("self", "cls"))
    return taken and (function.returns is not None or function.name == "__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_top_level_holds_what_was_agreed() -> None:
    names = {path.parts[0] for path in tracked_files()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_model_and_kernels_know_no_process_group() -> None:
    for path in tracked_files():
        if path.suffix == ".py" and path.parts[:2] in {("megamesh", "model"), ("megamesh", "kernels")}:
            assert not {name for name in imports(path) if name.startswith("torch.distributed")}, path


def test_tools_hold_no_path_edits() -> None:
    for path in tracked_files():
        if path.suffix == ".py" and path.parts[0] in {"tools", "examples", "megamesh"}:
            assert "sys.path" not in (ROOT / path).read_text(), path


def test_a_file_has_one_subject() -> None:
    """And so it is short, and so are its functions."""
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in sources()}
    long = {
        f"{path}:{function.lineno} {function.name}": function.end_lineno - function.lineno + 1
        for path in sources()
        for function in functions(path)
        if function.end_lineno is not None
    }
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FILE} == {}
    assert {name: count for name, count in long.items() if count > MOST_LINES_OF_A_FUNCTION} == {}


def test_functions_say_what_they_take_and_return() -> None:
    every = [(path, function) for path in sources() for function in functions(path)]
    silent = [f"{path}:{function.lineno} {function.name}" for path, function in every if not is_annotated(function)]
    assert len(silent) <= (1 - LEAST_ANNOTATED) * len(every), "\n".join(silent)


def test_what_the_fast_run_names_is_there() -> None:
    assert [name for name in fast.SLOW if not (fast.TESTS / name).exists()] == []
    for test in fast.AXES.values():
        file, name = test.split("::")
        assert file in fast.SLOW and f"def {name.partition('[')[0]}(" in (fast.TESTS / file).read_text(), test
