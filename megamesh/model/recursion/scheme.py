"""What a recursion scheme is: what the core's next input is made of, and all that follows from it.

    h_emb, prelude output ──enter──▶ h(0) ──core──▶ h_m(0) ──advance(0)──▶ h(1) … ──advance(K−1)──▶ h(K) ──▶ coda

A scheme is one class. The model runs its `enter` and `advance`; counts, FLOPs, initial weights, memory estimates, pipelines, plans,
upcycling, exports and cards ask it for the rest, and nothing outside its own file knows which scheme it is. A class that answers too
little is not loaded. The built-in ones are in schemes/; a user's is named by `recursion_scheme: my_package.my_module:MyScheme`, has its
settings in `recursion_scheme_params`, and needs no change here.

This file and the built-in descriptions load without torch, so that a configuration can be checked and planned quickly.

Letters: T tokens of this rank, D hidden size, K loops. Pass 0 ends in `enter`, pass t + 1 (the core's loop t) in `advance(t)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from megamesh.config import schemes as registry
from megamesh.config.keys import RecursionConfig, Section
from megamesh.config.recursion import RecursionLayout
from megamesh.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megamesh.model.recursion.highway import Highway

Shape = tuple[int, ...]
Start = float | tuple[float, ...] | Callable[[Shape], "Tensor"] | None
"""Values of a parameter: one number, those of its last dimension, a function of its shape; None: drawn, as weights of other linears."""
OUR_REMOTE_CODE = Path(__file__).parents[2] / "hf" / "remote" / "recursion_megamesh.py"
"""The built-in schemes in exports."""


def mesh_paper(words: str) -> str:
    """Card words of the schemes that the paper describes."""
    return f'{words}, as in "MeSH: Memory-as-State-Highways for Recursive Transformers"\n(arXiv 2510.07739)'


@dataclass(frozen=True)
class Learned:
    """A parameter. Tensor ranks hold it whole; it lives where the loop boundaries are."""

    name: str
    """In the modules that `build` makes, such as 0.write.weight; the model calls it routers.0.write.weight."""
    shape: Shape
    start: Start
    """Of a fresh model."""
    plain: Start
    """Where the first forward pass is plain recursion, or as near to it as can be: of an upcycled model."""


@dataclass(frozen=True)
class Kept:
    """States of one micro-batch that backward needs or a later boundary reads, and that live equally long, by the passes that use them.

    `first_read` is the first pass whose boundary uses them, `last_read` the last one; both are `kept_in` where only that pass's own
    backward does. `num_weights` counts fp32 values per token that live as long.
    """

    kept_in: int
    first_read: int
    last_read: int
    num_states: int
    num_weights: int = 0
    num_current: int = 0
    """Of the states, those that are h(kept_in), which the boundary gave to the next block."""
    num_inputs: int = 0
    """Of the states, those that in one process are inputs of blocks too: views of them (`Highway.split`), counted here and not there."""
    in_blocks: bool = False
    """In one process all of them are inputs of blocks, and counted there."""


@dataclass(frozen=True)
class Moves:
    """States that a boundary splits over tensor ranks, and joins again: 0 where it works on whole states."""

    num_split: int = 0
    num_joined: int = 0


class NoParams(Section):
    """A scheme without settings of its own."""


class Scheme(ABC):
    """A scheme as configured; with `routers`, what `build` made, it runs.

    `keys` are the keys of RecursionConfig that it reads, `start_keys` those of them (or others) that trained weights do not depend on, or
    whose resolved value shows in their shapes. `Params` declares what `recursion_scheme_params` may hold, which is `self.params`.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    start_keys: ClassVar[tuple[str, ...]] = ()
    Params: ClassVar[type[Section]] = NoParams

    def __init__(self, recursion: RecursionConfig, routers: "nn.ModuleList | None" = None):
        self.recursion = recursion
        self.terms = registry.parse_scheme(recursion.recursion_scheme)
        self.params: Any = registry.read_params(recursion, self.Params)
        self._routers = routers

    @property
    def layout(self) -> RecursionLayout:
        layout = self.recursion.layout
        assert layout is not None, "a model without recursion has no loop boundaries"
        return layout

    @property
    def num_loops(self) -> int:
        return self.layout.num_loops

    @property
    def routers(self) -> "nn.ModuleList":
        """The learned modules."""
        assert self._routers is not None, "the scheme describes a model and is none"
        return self._routers

    # What it computes

    @abstractmethod
    def enter(self, highway: "Highway", h_emb_TD: "Tensor", h_pre_TD: "Tensor") -> "Tensor":
        """The core's first input h(0), from the embeddings and the prelude's output."""

    @abstractmethod
    def advance(self, highway: "Highway", t: int, h_m_TD: "Tensor") -> "Tensor":
        """h(t+1), from the output of the core's loop t."""

    # What it learns

    @abstractmethod
    def learned(self, hidden_size: int) -> Iterable[Learned]:
        """Every parameter, in the order of the modules."""

    @abstractmethod
    def build(self, hidden_size: int) -> "nn.ModuleList":
        """The modules with these parameters, unset."""

    # What it keeps, costs and needs

    @property
    @abstractmethod
    def divides_tokens(self) -> bool:
        """Whether tensor ranks that hold the same states divide their tokens for the boundaries: `split` and `join` of the highway.

        Then each rank sees a part of the tokens, gradients of what is learned are summed over them, and the sequence must divide.
        Otherwise every rank computes on whole states, and each has the whole gradient.
        """

    @property
    @abstractmethod
    def reads_embeddings(self) -> bool:
        """Whether `enter` uses h_emb, so that a pipeline must bring it to where the boundaries are."""

    @abstractmethod
    def moves(self) -> tuple[Moves, Moves]:
        """What `enter`, and what every `advance`, splits and joins."""

    @abstractmethod
    def kept(self) -> Iterable[Kept]:
        """What is kept of one micro-batch, and how long."""

    @abstractmethod
    def flops(self, hidden_size: int) -> int:
        """Forward operations per token of all boundaries: what a multiply-add counts as, see megamesh/model/flops.py."""

    # How it is exported, and what is said of it

    @property
    @abstractmethod
    def remote_code(self) -> Path | None:
        """The file that becomes an export's recursion_megamesh.py; None: it has none, and is not exported.

        It defines `build_routers(config)` and `build_recursion(config, routers, h_emb_BSD, h_pre_BSD)` as ours does, may import torch,
        transformers and the export's other files relatively, and is held against `enter` and `advance` by every export's own check.
        """

    @property
    @abstractmethod
    def card_words(self) -> str:
        """What a model card says after "Recursion scheme:", with the paper it is from."""

    @property
    @abstractmethod
    def upcycled_words(self) -> str:
        """How near the first forward pass of an upcycled model is to plain recursion."""

    def problems(self, show: Callable[[str], str]) -> Iterator[str]:
        """What is wrong with the configuration, each with its mend; `show` writes a key with its value and place."""
        yield from ()

    def resolved(self) -> dict[str, Any]:
        """What a dry run shows of the settings that are worked out."""
        return {}

    def exported_keys(self) -> dict[str, Any]:
        """Keys of an export's config.json, under the names and with the values that RecursionConfig takes back."""
        params = {"recursion_scheme_params": self.params.model_dump(mode="json")} if self.Params.model_fields else {}
        return {key: getattr(self.recursion, key) for key in self.keys} | params

    def exported_name(self, name: str) -> str:
        """The name of a parameter in the modules of the remote code, where it is another."""
        return name

    @classmethod
    def upcycled_keys(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The recursion's keys of an upcycled model, from those that were given. ConfigError for one that has no effect."""
        for key in given:
            if key not in ("recursion", "recursion_scheme", "recursion_scheme_params", *cls.keys):
                raise ConfigError(
                    f"{key} has no effect with recursion_scheme={given['recursion_scheme']}; leave it out"
                )
        return dict(given)


def describe(recursion: RecursionConfig) -> Scheme:
    """The configured scheme, to be asked. ConfigError where there is none."""
    return cast(Scheme, registry.describe(recursion))


def build_routers(recursion: RecursionConfig, hidden_size: int) -> "nn.ModuleList":
    """The learned modules of the configured scheme. ConfigError where their parameters are not those that it says it learns."""
    scheme = describe(recursion)
    routers = scheme.build(hidden_size)
    said = {learned.name: tuple(learned.shape) for learned in scheme.learned(hidden_size)}
    built = {name: tuple(parameter.shape) for name, parameter in routers.named_parameters()}
    if wrong := sorted(name for name in said.keys() | built.keys() if said.get(name) != built.get(name)):
        name = wrong[0]
        raise ConfigError(
            f"recursion_scheme={recursion.recursion_scheme}: its modules have {name} {built.get(name, '(no such parameter)')}, and "
            f"`learned` says {said.get(name, '(no such parameter)')}; make them agree"
        )
    return routers


def build_scheme(recursion: RecursionConfig, routers: "nn.ModuleList") -> Scheme:
    """The configured scheme, to be run over the modules that `build_routers` made."""
    return type(describe(recursion))(recursion, routers)


def find_learned(name: str, recursion: RecursionConfig, hidden_size: int) -> Learned:
    """What the scheme says of the parameter with the global name `routers.…`."""
    scheme = describe(recursion)
    return next(learned for learned in scheme.learned(hidden_size) if f"routers.{learned.name}" == name)


def filled(start: Start, shape: Shape) -> "Tensor | None":
    """The fp32 values on the CPU; None where they are drawn."""
    import torch  # late: what describes a scheme needs no torch

    if start is None:
        return None
    if callable(start):
        return start(shape).float()
    return torch.tensor(start, dtype=torch.float32).expand(shape).clone()
