"""The output head: logits for inference, and the training loss without ever holding all logits.

Letters: T tokens, D hidden size, V vocabulary (true: without padding).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.parallel.cross_entropy import vocab_parallel_cross_entropy
from megamesh.parallel.layers import num_real_rows, place_vocabulary
from megamesh.parallel.shards import ShardSpec
from megamesh.parallel.tensor import TensorParallel


class Head(nn.Linear):
    """A bias-free projection to the vocabulary, divided over the tensor axis, whose forward is the training loss.

    `num_rows` is the padded vocabulary; the padding has no part in loss or logits.
    """

    def __init__(self, hidden_size: int, vocab_size: int, num_rows: int, loss_chunk_tokens: int, tp: TensorParallel):
        super().__init__(hidden_size, tp.share(num_rows), bias=False)
        self.tp, self.vocab_size, self.loss_chunk_tokens = tp, vocab_size, loss_chunk_tokens

    def forward(self, h_TD: Tensor, labels_T: Tensor, weights_T: Tensor) -> Tensor:  # type: ignore[override]
        """Mean of cross entropy × weight over all tokens, from this rank's states: a scalar in fp32."""
        return vocab_parallel_cross_entropy(
            self.tp.all_tokens(h_TD),
            self.weight,
            labels_T,
            weights_T,
            chunk_tokens=self.loss_chunk_tokens,
            num_real_rows=num_real_rows(self.out_features, self.vocab_size, self.tp),
            group=self.tp.group,
        )

    def logits(self, h: Tensor) -> Tensor:
        """This rank's states [..., D] → [..., V] of all tokens, in the model's type. No gradient under tensor parallelism."""
        return self.tp.gather_columns(F.linear(self.tp.all_tokens(h), self.weight))[..., : self.vocab_size]

    def place(self, name: str, _parameter: str) -> ShardSpec:
        """How the weight sits in the global parameter `name`."""
        return place_vocabulary(name, self.weight, self.vocab_size, self.tp)
