"""Every command of every page: run, or read by the parser of its own program. (What else the pages say: test_pages.py.)

    README.md's five steps ──bash, as typed──▶ data/, runs/ ──a copy for each page──▶ its ```bash lines, in order

Run in this process: our own tools, with their real options. Read only, never skipped: what is marked `# needs: …`, launchers, training
(its configuration is loaded and its dry run printed), benchmarks, scripts and tests (each file that is named must exist). A command of no
kind that is known here fails: give it a mark, or teach this file to run it.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from megamesh.config.load import load_config
from megamesh.training.hooks.user import load_hooks
from tests.examples.pages import ROOT, Block, Command, Page, pages

PAGES = {page.name: page for page in pages()}
FRONT = PAGES["README.md"]
CHAIN = "## Your own run"
LINKED = ("tools", "megamesh", "tests")
RUN_BY_THE_SHELL = {"echo", "tail", "head", "mkdir", "cat"}


def section(page: Page, heading: str) -> Page:
    """A page's part from a heading to the next of the same rank."""
    (text,) = re.findall(rf"^{re.escape(heading)}.*?(?=^## |\Z)", page.text, flags=re.MULTILINE | re.DOTALL)
    return Page(page.name, text)


def chain_of_the_front_page() -> Block:
    """The first block of its section: all five steps."""
    return next(block for block in section(FRONT, CHAIN).blocks if block.language == "bash")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the five steps of the front page were typed. Only the number of steps is smaller, in the example's file."""
    folder = tmp_path_factory.mktemp("first_run")
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (tiny,) = (folder / "examples/configs").glob("tiny-*.yml")
    text = tiny.read_text()
    assert "train_iters: 300" in text
    tiny.write_text(text.replace("train_iters: 300", "train_iters: 6"))
    chain = chain_of_the_front_page().text
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", chain], cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "chain.out").write_text(done.stdout)
    return folder


def test_the_five_steps_run_as_typed(first_run: Path) -> None:
    output = (first_run / "chain.out").read_text()
    for found in ("documents", "tokens_per_step", "bits_per_byte", "logits of"):
        assert found in output, found
    assert (first_run / "runs/laptop/latest").read_text().strip() == "global_step6"
    assert (first_run / "routers.png").read_bytes().startswith(b"\x89PNG")


def test_the_export_of_the_five_steps_loads(first_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The front page's Python lines, as they stand there."""
    monkeypatch.chdir(first_run)
    (lines,) = [block.text for block in section(FRONT, CHAIN).blocks if block.language == "python"]
    names: dict[str, object] = {}
    exec(compile(lines, "README.md", "exec"), names)
    assert type(names["model"]).__name__ == "MegaMeshForCausalLM"


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page(
    name: str, first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(first_run, tmp_path, PAGES[name])
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "examples/hooks"):  # PYTHONPATH=…, as the pages say
        monkeypatch.syspath_prepend(folder)
    ran_already = Page(name, f"```bash\n{chain_of_the_front_page().text}\n```").commands if name == "README.md" else []
    done = {command.text for command in ran_already}
    problems = []
    for command in PAGES[name].commands:
        if command.text in done:
            continue
        problem = problem_of(command)
        capsys.readouterr()
        if problem:
            problems.append(f"{name}:{command.line}: {command.text}\n    {problem}")
    assert not problems, "\n".join(problems)


def prepare(first_run: Path, folder: Path, page: Page) -> None:
    """A copy of what the five steps left, and the files that the page itself shows: blocks that begin with their name in a comment."""
    for path in first_run.iterdir():
        if path.is_symlink():
            (folder / path.name).symlink_to(path.readlink())
        elif path.is_dir():
            shutil.copytree(path, folder / path.name, copy_function=os.link)  # no tool writes into a file that is there
    for block in page.blocks:
        if named := re.match(r"# (\w+\.(yml|py))$", block.text, flags=re.MULTILINE):
            (folder / named[1]).write_text(block.text)
    if "pythia-160m" in page.text:
        write_pythia(folder / "pythia-160m", folder / "data/tokenizer.json")


def write_pythia(folder: Path, tokenizer: Path) -> None:
    """What `hf download EleutherAI/pythia-160m` would bring, in its layers and much narrower."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=4096, hidden_size=32, num_hidden_layers=12, num_attention_heads=4, intermediate_size=128, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")


def problem_of(command: Command) -> str:
    """Run or read one command; what is wrong with it, or nothing."""
    words = command.words
    try:
        if "…" in command.text and not command.shown:
            return "has a gap: it cannot be typed"
        return checked(words, command, read_only=bool(command.needs) or command.shown)
    except SystemExit as left:
        return f"its parser refuses it (status {left.code})" if left.code else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def checked(words: Sequence[str], command: Command, *, read_only: bool) -> str:
    program, arguments = words[0], words[1:]
    if program == "python" and arguments[0] == "-m":
        if arguments[1] == "pytest":
            return missing(arguments[2:])
        return "" if importlib.util.find_spec(arguments[1]) else f"there is no module {arguments[1]}"
    if program == "python" and arguments[0].endswith(".py"):
        return tool(arguments[0], arguments[1:], read_only=read_only)
    if program in LAUNCHERS:
        script, rest = LAUNCHERS[program](arguments)
        return tool(script, rest, read_only=True)
    if program in {"bash", "."}:
        subprocess.run(["bash", "-n", arguments[0]], check=True, capture_output=True)
        knows = Path(arguments[0]).read_text() + Path("tests/conftest.py").read_text()
        unknown = [word for word in arguments[1:] if word.startswith("--") and word not in knows]
        return f"{arguments[0]} does not know {unknown}" if unknown else missing(arguments[1:])
    if program in RUN_BY_THE_SHELL and not read_only:
        done = subprocess.run(["bash", "-c", command.text], capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""
    return "" if read_only else f"{program} is not run here; mark it with `# needs: …`"


def missing(arguments: Sequence[str]) -> str:
    """Paths among the arguments of pytest that do not exist."""
    paths = [word.split("::")[0] for word in arguments if "/" in word and not word.startswith("-")]
    return ", ".join(f"{path} does not exist" for path in paths if not Path(path).exists())


def tool(script: str, arguments: Sequence[str], *, read_only: bool) -> str:
    """One of our programs: run, or its options read and its configuration loaded."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    if not hasattr(module, "parse_arguments"):
        return str(module.main(list(arguments)) or "")
    if script in {"tools/train.py", "tools/benchmark.py"} or read_only:
        return read(module, arguments)
    status = module.main(list(arguments))
    return f"status {status}" if status else ""


def read(module: ModuleType, arguments: Sequence[str]) -> str:
    parsed = module.parse_arguments(list(arguments))
    if not getattr(parsed, "configs", None):
        return ""
    loaded = load_config(parsed.configs, parsed.overrides, for_training=False)
    load_hooks(loaded.run.training.hooks)
    if module.__name__ == "tools.train":
        extra = [] if parsed.dry_run else ["--dry-run"]
        status = module.main([*arguments, *extra])
        return f"its dry run ends with status {status}" if status else ""
    return ""


def _deepspeed(arguments: Sequence[str]) -> tuple[str, list[str]]:
    from deepspeed.launcher.runner import parse_args

    parsed = parse_args(list(arguments))
    return parsed.user_script, parsed.user_args


def _torchrun(arguments: Sequence[str]) -> tuple[str, list[str]]:
    from torch.distributed.run import parse_args

    parsed = parse_args(list(arguments))
    return parsed.training_script, parsed.training_script_args


def _other(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """mpirun and srun, whose parsers are not ours to call: the tool begins after `python`."""
    start = list(arguments).index("python")
    return arguments[start + 1], list(arguments[start + 2 :])


LAUNCHERS = {"deepspeed": _deepspeed, "torchrun": _torchrun, "mpirun": _other, "srun": _other}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("python tools/train.py --dry-runn a.yml", "its parser refuses it"),
        ("python tools/no_such_tool.py", "No module named"),
        ("deepspeed --no-such-option tools/train.py a.yml", "its parser refuses it"),
        ("make everything", "mark it"),
        ("bash tests/run.sh tests/no/such/test.py", "does not exist"),
        ("bash tests/run.sh --no-such-option", "does not know"),
        ("python tools/train.py … a.yml", "has a gap"),
    ],
)
def test_a_command_that_is_wrong_is_seen(text: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert problem in problem_of(Command(text, "", 1)) != ""
