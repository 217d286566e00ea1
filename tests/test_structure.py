"""What the agreed structure of the repository looks like from outside."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"megamesh", "tools", "examples", "tests", "docker", "setup.py", "README.md"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(line) for line in listing.stdout.splitlines() if (ROOT / line).exists()]


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
