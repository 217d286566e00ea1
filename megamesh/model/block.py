"""One transformer block, with parallel (GPT-J, Pythia) or sequential (Llama) residuals.

Attention and MLP return this rank's share of their output; the block sums shares over the tensor axis. Norms, dropout and residuals act on
the states that the rank holds.

Letters: T tokens of this rank's states, D hidden size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.config.keys import ModelConfig
from megamesh.model.attention import Attention, AttentionInputs
from megamesh.model.mlp import MLP
from megamesh.model.norms import build_norm
from megamesh.parallel.tensor import TensorParallel


class SequentialBlock(nn.Module):
    """h ← h + attention(norm(h)); h ← h + mlp(norm(h))."""

    def __init__(self, model: ModelConfig, tp: TensorParallel):
        super().__init__()
        self.tp, self.dropout = tp, StateDropout(model.hidden_dropout, tp)
        self.attention_norm, self.mlp_norm = build_norm(model), build_norm(model)
        self.attention, self.mlp = Attention(model, tp), MLP(model, tp)

    def forward(self, h_TD: Tensor, inputs: AttentionInputs, layer: int) -> Tensor:
        h_TD = h_TD + self.dropout(self.tp.reduce(self.attention(self.attention_norm(h_TD), inputs, layer)))
        return h_TD + self.dropout(self.tp.reduce(self.mlp(self.mlp_norm(h_TD))))


class ParallelBlock(nn.Module):
    """h ← h + attention(norm(h)) + mlp(norm(h)), the two norms one where gpt_j_tied.

    Both branches are summed over the tensor axis at once, unless dropout stands between.
    """

    def __init__(self, model: ModelConfig, tp: TensorParallel):
        super().__init__()
        self.tp, self.dropout = tp, StateDropout(model.hidden_dropout, tp)
        self.attention_norm = build_norm(model)
        if not model.gpt_j_tied:
            self.mlp_norm = build_norm(model)
        self.attention, self.mlp = Attention(model, tp), MLP(model, tp)
        self.tied = model.gpt_j_tied

    def forward(self, h_TD: Tensor, inputs: AttentionInputs, layer: int) -> Tensor:
        attention_input_TD = self.attention_norm(h_TD)
        mlp_input_TD = attention_input_TD if self.tied else self.mlp_norm(h_TD)
        attended_TD = self.attention(attention_input_TD, inputs, layer)
        fed_TD = self.mlp(mlp_input_TD)
        if self.dropout.rate == 0:
            return h_TD + self.tp.reduce(attended_TD + fed_TD)
        return h_TD + (self.dropout(self.tp.reduce(attended_TD)) + self.dropout(self.tp.reduce(fed_TD)))


class StateDropout(nn.Module):
    """Dropout on states: alike on all tensor-parallel ranks where they hold the same states, apart where they do not."""

    def __init__(self, rate: float, tp: TensorParallel):
        super().__init__()
        self.rate, self.tp = rate, tp

    def forward(self, h_TD: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return h_TD
        with self.tp.dropout_of_states():
            return F.dropout(h_TD, self.rate)


def build_block(model: ModelConfig, tp: TensorParallel) -> nn.Module:
    return ParallelBlock(model, tp) if model.gpt_j_residual else SequentialBlock(model, tp)
