"""Floating-point operations per token, at compute depth: a core that runs K times counts K times.

What is counted (a multiply and an add are two operations), per token of a sequence of S tokens:

    block       2·(parameters of its matrices)  +  attention  2·2·(H·d)·(S+1)/2
    core        its blocks, times K
    recursion   2·(matrices of routers), and the mixing of states: each scheme says what it costs
    head        2·D·V

Attention is causal: a query attends to (S+1)/2 keys on average, so half of the square is counted, once for Q·Kᵀ and once for the
weights·V. Conventions that count the whole square (PaLM, appendix B) come out higher. Training is three times the forward pass
(backward differentiates by weights and by inputs); what activation checkpointing computes again is not the model's work and is
not counted. Norms, biases, activations, softmax, rotary embedding and the optimizer are left out.

Letters: S sequence, D hidden size, V padded vocabulary, H heads, d head dimension, K loops.
"""

from dataclasses import dataclass

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.model.recursion.scheme import describe

TRAINING_TO_FORWARD = 3


@dataclass(frozen=True)
class FlopsPerToken:
    """Forward operations of one token, by part."""

    blocks: int
    """Matrices of all blocks at compute depth."""
    attention: int
    """The sequence term of attention at compute depth."""
    recursion: int
    """Routers and the mixing of states."""
    head: int

    @property
    def forward(self) -> int:
        return self.blocks + self.attention + self.recursion + self.head

    @property
    def training(self) -> int:
        """Forward and backward."""
        return TRAINING_TO_FORWARD * self.forward


def flops_per_token(
    model: ModelConfig, recursion: RecursionConfig, vocab_size: int, sequence_length: int | None = None
) -> FlopsPerToken:
    """Operations per token of a sequence of `sequence_length` tokens (default: the training length); padded `vocab_size`."""
    length = sequence_length or model.sequence_length
    layout = recursion.layout
    depth = layout.compute_depth if layout else model.num_layers
    heads_width = model.num_attention_heads * model.head_dim
    return FlopsPerToken(
        blocks=depth * 2 * _block_matrices(model),
        attention=depth * 2 * heads_width * (length + 1),
        recursion=describe(recursion).flops(model.hidden_size) if layout else 0,
        head=2 * model.hidden_size * vocab_size,
    )


def _block_matrices(model: ModelConfig) -> int:
    """Elements of a block's matrices, biases and norms left out."""
    qkv = (model.num_attention_heads + 2 * model.kv_heads) * model.head_dim
    out = model.num_attention_heads * model.head_dim
    return model.hidden_size * (qkv + out + (3 if model.gated else 2) * model.mlp_width)
