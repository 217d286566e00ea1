"""The notation of recursive models' layers, such as `4+8R2+4`. Schemes are in schemes.py.

4+8R2+4   4 prelude layers, 8 core layers run twice with the same weights, 4 coda layers
4+8+8+4   the same boundaries with a core of its own for each loop (the paper's vanilla+mesh)
"""

import re
from dataclasses import dataclass

from megamesh.errors import ConfigError

_SHARED = re.compile(r"(\d+)\+(\d+)R(\d+)\+(\d+)", re.IGNORECASE)
_UNSHARED = re.compile(r"\d+(?:\+\d+){2,}")


@dataclass(frozen=True)
class RecursionLayout:
    """Layers of a recursive model: `num_core` counts the layers of one loop."""

    num_prelude: int
    num_core: int
    num_loops: int
    num_coda: int
    shared: bool

    @property
    def compute_depth(self) -> int:
        """Blocks that one token passes through."""
        return self.num_prelude + self.num_core * self.num_loops + self.num_coda

    @property
    def num_core_weights(self) -> int:
        """Core blocks that have weights of their own."""
        return self.num_core if self.shared else self.num_core * self.num_loops

    def __str__(self) -> str:
        core = f"{self.num_core}R{self.num_loops}" if self.shared else "+".join([str(self.num_core)] * self.num_loops)
        return f"{self.num_prelude}+{core}+{self.num_coda}"


def parse_recursion(notation: str) -> RecursionLayout:
    """Read `a+bRk+c` or `a+b+…+b+c`; ConfigError where the text is neither or a core is empty."""
    text = notation.replace(" ", "")
    if match := _SHARED.fullmatch(text):
        prelude, core, loops, coda = map(int, match.groups())
        layout = RecursionLayout(prelude, core, loops, coda, shared=True)
    elif _UNSHARED.fullmatch(text):
        prelude, *cores, coda = map(int, text.split("+"))
        if len(set(cores)) != 1:
            length = next(core for core in cores if core)
            equal = [prelude, *[length] * len(cores), coda]
            raise ConfigError(
                f"recursion={notation!r}: the cores {cores} differ in length; "
                f"write equal ones, such as {'+'.join(map(str, equal))} with num_layers: {sum(equal)}"
            )
        layout = RecursionLayout(prelude, cores[0], len(cores), coda, shared=False)
    else:
        raise ConfigError(
            f"recursion={notation!r} is not a layer notation; "
            "write prelude+coreRloops+coda, such as 4+8R2+4, or 4+8+8+4 for a core that shares nothing"
        )
    if layout.num_core < 1 or layout.num_loops < 1:
        raise ConfigError(f"recursion={notation!r} has an empty core; it needs at least one layer and one loop")
    return layout
