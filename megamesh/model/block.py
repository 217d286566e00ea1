"""One transformer block, with parallel (GPT-J, Pythia) or sequential (Llama) residuals.

Letters: B batch, S sequence, D hidden size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.config.sections import ModelConfig
from megamesh.model.attention import Attention, AttentionInputs
from megamesh.model.mlp import MLP
from megamesh.model.norms import build_norm


class SequentialBlock(nn.Module):
    """h ← h + attention(norm(h)); h ← h + mlp(norm(h))."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.dropout = model.hidden_dropout
        self.attention_norm, self.mlp_norm = build_norm(model), build_norm(model)
        self.attention, self.mlp = Attention(model), MLP(model)

    def forward(self, h_BSD: Tensor, inputs: AttentionInputs, layer: int) -> Tensor:
        h_BSD = h_BSD + self._drop(self.attention(self.attention_norm(h_BSD), inputs, layer))
        return h_BSD + self._drop(self.mlp(self.mlp_norm(h_BSD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class ParallelBlock(nn.Module):
    """h ← h + attention(norm(h)) + mlp(norm(h)), the two norms one where gpt_j_tied."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.dropout = model.hidden_dropout
        self.attention_norm = build_norm(model)
        if not model.gpt_j_tied:
            self.mlp_norm = build_norm(model)
        self.attention, self.mlp = Attention(model), MLP(model)
        self.tied = model.gpt_j_tied

    def forward(self, h_BSD: Tensor, inputs: AttentionInputs, layer: int) -> Tensor:
        attention_input_BSD = self.attention_norm(h_BSD)
        mlp_input_BSD = attention_input_BSD if self.tied else self.mlp_norm(h_BSD)
        attended_BSD = self._drop(self.attention(attention_input_BSD, inputs, layer))
        return h_BSD + (attended_BSD + self._drop(self.mlp(mlp_input_BSD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def build_block(model: ModelConfig) -> nn.Module:
    return ParallelBlock(model) if model.gpt_j_residual else SequentialBlock(model)
