"""The pages of the repository as data: fenced blocks, the commands in them, links, and what a page says beside them.

    README.md … ──fences──▶ Block(language, text) ──▶ Command(text, needs, line)
                └─prose───▶ `code spans`, [links](…), headings

A command is a line of a ```bash block (lines that end in a backslash go on), a line after "$ " in a block without a language, or a code
span that begins with a program of PROGRAMS. `# needs: …` behind a command says what this machine lacks.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("python", "bash", "deepspeed", "torchrun", "mpirun", "srun", "pip", "hf", "lm_eval")
_NEEDS = re.compile(r"\s#\s+needs: (?P<what>\S.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language (empty where none is given), its text, and the number of its first line."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """One command as it is typed. `needs`: what it needs that a machine may lack; `shown`: beside its output or in a sentence."""

    text: str
    needs: str
    line: int
    shown: bool = False

    @property
    def words(self) -> list[str]:
        """The words of the command, without comment and without settings of the environment in front."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        return words


@dataclass(frozen=True)
class Page:
    """A page of the repository; `name` is its path in it."""

    name: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        found: list[Block] = []
        fence, start, lines = None, 0, []
        for number, line in enumerate(self.text.splitlines(), start=1):
            if fence is None and (opened := re.match(r"```(\w*)", line)):
                fence, start, lines = opened[1], number + 1, []
            elif fence is not None and line.startswith("```"):
                found.append(Block(fence, "\n".join(lines), start))
                fence = None
            elif fence is not None:
                lines.append(line)
        assert fence is None, f"{self.name}:{start}: a fence that is not closed"
        return found

    @property
    def prose(self) -> str:
        """The text outside fences."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @property
    def commands(self) -> list[Command]:
        """All commands, those in ```bash blocks first and in order."""
        typed = [command for block in self.blocks if block.language == "bash" for command in _typed(block)]
        beside = [command for block in self.blocks if not block.language for command in _beside_output(block)]
        spans = [Command(span, "", 0, shown=True) for span in self.spans if span.split()[0] in PROGRAMS and " " in span]
        return typed + beside + spans

    @property
    def spans(self) -> list[str]:
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]

    @property
    def links(self) -> list[str]:
        """Targets of links and pictures that are not on the web."""
        found = re.findall(r"\]\(([^)\s]+)\)", self.prose) + re.findall(r'src="([^"]+)"', self.prose)
        return [target for target in found if not re.match(r"https?://", target)]

    @property
    def anchors(self) -> set[str]:
        """What `#…` may name: headings as GitHub spells them."""
        headings = re.findall(r"^#+ (.*)$", self.prose, flags=re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pages() -> list[Page]:
    """Every README.md of the repository, and the pages of examples/ that people write."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", "README.md", "*/README.md", "examples/*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = sorted(set(listing.stdout.splitlines()) - {"examples/configs/REFERENCE.md"})
    return [Page(name, (ROOT / name).read_text()) for name in names if (ROOT / name).exists()]


def _typed(block: Block) -> Iterator[Command]:
    lines = iter(enumerate(block.text.splitlines(), start=block.line))
    for number, line in lines:
        text = line.strip()
        while text.endswith("\\"):
            text = f"{text[:-1].rstrip()} {next(lines)[1].strip()}"
        if text and not text.startswith("#"):
            needs = _NEEDS.search(text)
            yield Command(_NEEDS.sub("", text), needs["what"] if needs else "", number)


def _beside_output(block: Block) -> Iterator[Command]:
    lines = iter(enumerate(block.text.splitlines(), start=block.line))
    for number, line in lines:
        if not line.startswith("$ "):
            continue
        text = line[2:].strip()
        while text.endswith("\\"):
            text = f"{text[:-1].rstrip()} {next(lines)[1].strip()}"
        yield Command(text, "", number, shown=True)
