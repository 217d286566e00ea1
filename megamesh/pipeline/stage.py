"""What one rank computes in one pass, forward and backward, for one micro-batch.

    received states ──(embed)──▶ h ──blocks──▶ (enter or advance, on the highway) ──(norm, head)──▶ states to send, or the result

Each stage and micro-batch has an autograd graph of its own. Between forward and backward only what that graph saved stays in memory, and
what names its ends: the leaves that stand for received states, and the gradient edges of the results. A state that is merely passed on
(h_emb on its way to the last rank; h through an empty slice) is not kept, and its gradient is passed back as it comes.

Letters: B batch, S sequence, T tokens of this rank, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from megamesh.model.attention import AttentionInputs, attention_inputs
from megamesh.model.transformer import Transformer
from megamesh.pipeline.highway import RingHighway
from megamesh.pipeline.stages import ENTER, Stage

Finish = Callable[[Tensor], Tensor]
"""What becomes of the last states [T, D] where the head is: a loss, logits."""


@dataclass(frozen=True)
class MicroBatch:
    """What stages need of a micro-batch beside its states. `seed` keys its dropout."""

    tokens_BS: Tensor
    positions: Tensor
    attention: AttentionInputs
    seed: int

    @classmethod
    def after(cls, previous: "MicroBatch | None", model: Transformer, tokens_BS: Tensor, seed: int) -> "MicroBatch":
        """A micro-batch of training or evaluation; of the same shape as the previous one, it shares what depends on the shape alone."""
        if previous is not None and previous.tokens_BS.shape == tokens_BS.shape:
            return cls(tokens_BS, previous.positions, previous.attention, seed)
        positions = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        return cls(tokens_BS, positions, attention_inputs(model.config, len(tokens_BS), positions), seed)


class StageRunner:
    """A stage and the modules that it runs."""

    def __init__(self, model: Transformer, stage: Stage):
        self.model, self.stage = model, stage
        self.blocks = getattr(model, stage.stack)[stage.first_block : stage.first_block + stage.num_blocks]
        self.is_last_boundary = stage.boundary == model.num_loops - 1

    def forward(
        self, micro_batch: MicroBatch, received: Sequence[Tensor], highway: RingHighway | None, finish: Finish
    ) -> list[Tensor]:
        """States for the next stage, or the one result of the stage that has the head."""
        model, stage = self.model, self.stage
        if stage.after_head:
            return []
        if stage.embeds:
            received = [model.embed(micro_batch.tokens_BS, micro_batch.positions)] * (1 + stage.sends_embeddings)
        h_TD, h_emb_TD = received[0], received[-1]
        h_TD = model.recompute.run(self.blocks, h_TD, micro_batch.attention, stage.first_layer)
        if stage.boundary is not None:
            assert highway is not None, "loop boundaries need a highway"
            highway.start(stage.pass_index)
            if stage.boundary == ENTER:
                h_TD = model.scheme.enter(highway, h_emb_TD, h_TD)
            else:
                h_TD = model.scheme.advance(highway, stage.boundary, h_TD)
            highway.finish(is_last=self.is_last_boundary)
        if stage.has_head:
            return [finish(model.final_norm(h_TD))]
        return [h_TD, h_emb_TD] if stage.sends_embeddings else [h_TD]


class Graph(NamedTuple):
    """The ends of one stage's graph for one micro-batch: leaves and gradient edges; an output that is an input is its index."""

    leaves: list[Tensor | None]
    outputs: list[GradientEdge | int]

    @classmethod
    def between(cls, received: Sequence[Tensor], sent: Sequence[Tensor], *, has_boundary: bool) -> "Graph":
        """The graph from received states to outputs, as the forward left it. At a boundary the highway may keep what is passed on."""
        passed_on = {} if has_boundary else {id(state): index for index, state in enumerate(received)}
        outputs = [passed_on.get(id(state)) for state in sent]
        return cls(
            [None if index in outputs else leaf for index, leaf in enumerate(received)],
            [get_gradient_edge(state) if index is None else index for state, index in zip(sent, outputs, strict=True)],
        )

    def backward(
        self, gradients: Sequence[Tensor], kept: Sequence[GradientEdge] = (), left: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Gradients of the received states, from those of the outputs and of the states `kept` on the highway. Consumes the graph."""
        edges, starts = list(kept), list(left)
        passed_back: dict[int, Tensor] = {}
        for output, gradient in zip(self.outputs, gradients, strict=True):
            if isinstance(output, int):
                passed_back[output] = gradient
            else:
                edges.append(output)
                starts.append(gradient)
        if edges:
            torch.autograd.backward(edges, starts)
        return [passed_back[index] if leaf is None else _gradient_of(leaf) for index, leaf in enumerate(self.leaves)]


def _gradient_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
