"""mesh: Memory-as-State-Highways, routed writes to and reads from a state buffer, in the unrolled form (method: MeSH eq. 2-7).

    sources s_0 = h_emb, s_1 = prelude output, s_{i+2} = h_m(i)      u_i: how s_i was written over the slots (u_0: slot 0)
    read of router set t:  h(t) = Σ_i ⟨w_read, u_i⟩ · s_i            i = 0 … t + 1

Parameters are `{t}.write.…` and `{t}.read.…`: t = 0 is the transitional cycle and t + 1 belongs to loop t; never shared between steps.
Routers work on this rank's tokens.

Letters: T tokens of this rank, D hidden size, N slots, K loops.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megamesh.config.keys import RecursionConfig
from megamesh.errors import ConfigError
from megamesh.model.recursion.scheme import OUR_REMOTE_CODE, Kept, Learned, Moves, Scheme, mesh_paper
from megamesh.model.recursion.schemes.mesh_start import bias_for, deviation, unchosen_weight, written_slot

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megamesh.model.recursion.highway import Highway

CLOSE = 0.05
"""How far the first reads of an upcycled model may be from plain recursion, as a share of the largest state, where no bias is given."""
LARGEST_BIAS = 50.0
"""With it the other slots weigh nothing beside 1 in any number format, and no gradient reaches a router."""


class Mesh(Scheme):
    """Memory-as-State-Highways."""

    keys = ("mesh_num_slots", "mesh_transition_input", "mesh_router_init", "mesh_router_slot_bias")
    start_keys = ("mesh_num_slots", "mesh_router_init", "mesh_router_slot_bias")
    divides_tokens = True
    reads_embeddings = True
    remote_code: Path = OUR_REMOTE_CODE

    def enter(self, highway: "Highway", h_emb_TD: "Tensor", h_pre_TD: "Tensor") -> "Tensor":
        # The prelude was given h_emb, unless it is empty. No block is given its output: the core starts from the first read.
        h_emb_TD, h_pre_TD = highway.split(h_emb_TD, h_pre_TD, num_views=0 if h_pre_TD is h_emb_TD else 1)
        h_emb_TD = highway.keep("source.0", h_emb_TD)
        h_pre_TD = highway.keep("source.1", h_pre_TD)
        control_TD = h_emb_TD if self.recursion.mesh_transition_input == "h_emb" else h_pre_TD
        write_TN, read_TN = self.routers[0](control_TD)
        write_TN = highway.keep("write.1", write_TN)
        return highway.join("h", _read(read_TN, [write_TN], [h_emb_TD, h_pre_TD]))

    def advance(self, highway: "Highway", t: int, h_m_TD: "Tensor") -> "Tensor":
        (h_m_TD,) = highway.split(h_m_TD)
        write_TN, read_TN = self.routers[t + 1](highway.recall("h"))
        sources = [highway.recall(f"source.{i}") for i in range(t + 2)] + [highway.keep(f"source.{t + 2}", h_m_TD)]
        writes = [highway.recall(f"write.{i}") for i in range(1, t + 2)] + [highway.keep(f"write.{t + 2}", write_TN)]
        return highway.join("h", _read(read_TN, writes, sources))

    @property
    def num_slots(self) -> int:
        return self.recursion.num_slots

    def learned(self, hidden_size: int) -> Iterator[Learned]:
        init, bias = self.recursion.mesh_router_init, self.recursion.mesh_router_slot_bias
        for step in range(self.num_loops + 1):
            own_slot = _one_slot(written_slot(step, self.num_slots), self.num_slots, bias)
            for router in ("write", "read"):
                weight = None if init == "normal" else 0.0
                yield Learned(f"{step}.{router}.weight", (self.num_slots, hidden_size), weight, plain=0.0)
                start = own_slot if init == "slot" else 0.0
                yield Learned(f"{step}.{router}.bias", (self.num_slots,), start, plain=own_slot)

    def build(self, hidden_size: int) -> "nn.ModuleList":
        from torch import nn

        from megamesh.model.recursion.routers import Router

        return nn.ModuleList(Router(hidden_size, self.num_slots) for _ in range(self.num_loops + 1))

    def moves(self) -> tuple[Moves, Moves]:
        return Moves(num_split=2, num_joined=1), Moves(num_split=1, num_joined=1)

    def kept(self) -> Iterator[Kept]:
        yield Kept(
            0, 0, self.num_loops, 2, self.num_slots, num_inputs=1
        )  # h_emb and the prelude's output; its write weights
        for kept_in in range(1, self.num_loops + 1):  # each loop's output and its write weights
            yield Kept(kept_in, kept_in, self.num_loops, 1, self.num_slots)
        for kept_in in range(self.num_loops + 1):  # read weights
            yield Kept(kept_in, kept_in, kept_in, 0, self.num_slots)
        for t in range(self.num_loops):  # h(t), which loop t's routers read
            yield Kept(t, t + 1, t + 1, 1, num_current=1, in_blocks=True)

    def flops(self, hidden_size: int) -> int:
        """The read of router set t sums t + 2 sources: 2·N each for ⟨w_read, u⟩ and 2·D for the sum."""
        routers = (self.num_loops + 1) * 2 * 2 * hidden_size * self.num_slots
        sources = sum(step + 2 for step in range(self.num_loops + 1))
        return routers + sources * (2 * self.num_slots + 2 * hidden_size)

    def problems(self, show: Callable[[str], str]) -> Iterator[str]:
        num_slots, needed = self.recursion.mesh_num_slots, self.num_loops + 2
        if self.recursion.mesh_router_init == "slot" and num_slots is not None and num_slots < needed:
            yield (
                f"{show('mesh_num_slots')} is too few for mesh_router_init=slot, which gives each of the loops + 2 states a slot "
                f"of its own; use at least {needed}, or mesh_router_init: normal"
            )

    def resolved(self) -> dict[str, Any]:
        return {"num_slots": self.num_slots}

    def exported_keys(self) -> dict[str, Any]:
        return super().exported_keys() | {"mesh_num_slots": self.num_slots}

    @property
    def card_words(self) -> str:
        return mesh_paper(f"`{self.recursion.recursion_scheme}` with {self.num_slots} slots")

    @property
    def upcycled_words(self) -> str:
        bias = self.recursion.mesh_router_slot_bias
        share, weight = deviation(self.num_loops, self.num_slots, bias), unchosen_weight(self.num_slots, bias)
        crowded = " (fewer slots than states: later reads add older states)"
        return (
            f"mesh starts with slot bias {bias:g}: reads are within {share:.2g} of plain recursion, as a share of the largest state"
            f"{crowded if self.num_slots < self.num_loops + 2 else ''}; other slots have the weight {weight:.2g}"
        )

    @classmethod
    def upcycled_keys(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """With the least bias that starts CLOSE to plain recursion, and the routers' start where a fresh run could have it."""
        keys = super().upcycled_keys(given)
        recursion = RecursionConfig(recursion=keys["recursion"], mesh_num_slots=keys.get("mesh_num_slots"))
        layout = recursion.layout
        assert layout is not None, "a recursion is given"
        bias = keys.get("mesh_router_slot_bias", 0.0)
        if not 0 <= bias <= LARGEST_BIAS:  # nor where it is not a number
            raise ConfigError(
                f"--mesh-router-slot-bias={bias:g} is not a number from 0 to {LARGEST_BIAS:g}; leave it out for the usual one"
            )
        keys.setdefault("mesh_router_slot_bias", bias_for(layout.num_loops, recursion.num_slots, CLOSE))
        has_own_slots = recursion.num_slots >= layout.num_loops + 2
        return keys | ({"mesh_router_init": "slot"} if has_own_slots else {})


def _read(read_TN: "Tensor", writes_TN: "list[Tensor]", sources_TD: "list[Tensor]") -> "Tensor":
    from megamesh.kernels.highway import highway_read

    return highway_read(read_TN, writes_TN, sources_TD)


def _one_slot(slot: int, num_slots: int, bias: float) -> tuple[float, ...]:
    return tuple(bias if index == slot else 0.0 for index in range(num_slots))
