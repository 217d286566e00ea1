"""Token embedding, scaled by √D where the recipe asks for it (MeSH, appendix B).

Letters: B batch, S sequence, D hidden size.
"""

import math

from torch import Tensor, nn

from megamesh.config.sections import ModelConfig


class TokenEmbedding(nn.Embedding):
    """Token ids [B, S] → states [B, S, D], times √D with scale_embeddings."""

    def __init__(self, model: ModelConfig, vocab_size: int):
        super().__init__(vocab_size, model.hidden_size)
        self.scale = math.sqrt(model.hidden_size) if model.scale_embeddings else 1.0

    def forward(self, tokens_BS: Tensor) -> Tensor:
        h_BSD = super().forward(tokens_BS)
        return h_BSD if self.scale == 1.0 else h_BSD * self.scale
