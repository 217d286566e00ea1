"""The output head: logits for inference, and the training loss without ever holding all logits.

Letters: B batch, S sequence, T = B·S tokens, D hidden size, V padded vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.kernels.linear_cross_entropy import linear_cross_entropy


class Head(nn.Linear):
    """A bias-free projection to the vocabulary whose forward is the training loss."""

    def __init__(self, hidden_size: int, vocab_size: int, loss_chunk_tokens: int):
        super().__init__(hidden_size, vocab_size, bias=False)
        self.loss_chunk_tokens = loss_chunk_tokens

    def forward(self, h_BSD: Tensor, labels_BS: Tensor, loss_mask_BS: Tensor) -> Tensor:  # type: ignore[override]
        """Mean cross entropy of the tokens that the mask counts: a scalar in fp32."""
        tokens = (h_BSD.flatten(0, 1), self.weight, labels_BS.flatten(), loss_mask_BS.flatten())
        return linear_cross_entropy(*tokens, self.loss_chunk_tokens)

    def logits(self, h: Tensor) -> Tensor:
        """[..., D] → [..., V] in the model's type."""
        return F.linear(h, self.weight)
