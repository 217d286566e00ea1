"""Keys of recursion: which layers recur, and what carries state from loop to loop."""

from typing import Any, Literal

from pydantic import Field

from megamesh.config.keys.section import Section
from megamesh.config.recursion import RecursionLayout, parse_recursion

RouterInit = Literal["normal", "zero", "slot"]
TransitionInput = Literal["h_emb", "prelude"]


class RecursionConfig(Section):
    """Which layers recur, and what carries state from loop to loop."""

    recursion: str | None = Field(
        None,
        description='Layer notation: "4+8R2+4" (shared core) or "4+8+8+4" (same boundaries, nothing shared). None: a plain stack.',
    )
    recursion_scheme: str = Field(
        "mesh",
        description="base, residual, anchor, anchor* (or a sum such as residual+anchor), static, dynamic, mesh, "
        "or a class of your own as my_package.my_module:MyScheme. Needs recursion.",
    )
    recursion_scheme_params: dict[str, Any] | None = Field(
        None,
        description="Settings of a scheme of your own, as its class declares them. The built-in schemes have none.",
    )
    mesh_num_slots: int | None = Field(None, ge=1, description="State-buffer slots N. Default: loops + 3.")
    mesh_transition_input: TransitionInput = Field(
        "h_emb", description="What the transitional routers read: the embeddings or the prelude's output."
    )
    mesh_router_init: RouterInit = Field(
        "normal",
        description="normal: weights as other linears, biases 0. zero: uniform routing. slot: biases give every state a slot of its own.",
    )
    mesh_router_slot_bias: float = Field(
        4.0, description="Bias β on slot t+1 of router set t with mesh_router_init slot."
    )

    @property
    def layout(self) -> RecursionLayout | None:
        return parse_recursion(self.recursion) if self.recursion else None

    @property
    def num_slots(self) -> int:
        """Slots N of the state buffer (MeSH's B)."""
        layout = self.layout
        assert layout is not None, "a model without recursion has no slots"
        return self.mesh_num_slots or layout.num_loops + 3
