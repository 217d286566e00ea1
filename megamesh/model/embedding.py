"""Token embedding, scaled by √D where the recipe asks for it (MeSH, appendix B).

Letters: T tokens, D hidden size.
"""

import math

from torch import Tensor

from megamesh.config.keys import ModelConfig
from megamesh.parallel.layers import VocabParallelEmbedding
from megamesh.parallel.tensor import TensorParallel


class TokenEmbedding(VocabParallelEmbedding):
    """Token ids [T] → this rank's share of states [T, D], times √D with scale_embeddings."""

    def __init__(self, model: ModelConfig, vocab_size: int, num_rows: int, tp: TensorParallel):
        super().__init__(vocab_size, num_rows, model.hidden_size, tp)
        self.scale = math.sqrt(model.hidden_size) if model.scale_embeddings else 1.0

    def forward(self, tokens_T: Tensor) -> Tensor:
        h_TD = super().forward(tokens_T)
        return h_TD if self.scale == 1.0 else h_TD * self.scale
