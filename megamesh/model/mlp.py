"""The feed-forward part of a block: GPT-NeoX's plain MLP, and the gated one of Llama (Shazeer 2020).

Letters: T tokens, D hidden size, F MLP width (this rank's part of it).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.config.keys import ModelConfig
from megamesh.config.keys.model import Activation
from megamesh.parallel.layers import ColumnParallelLinear, RowParallelLinear
from megamesh.parallel.tensor import TensorParallel

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "geglu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swiglu": F.silu,
}


class MLP(nn.Module):
    """down(act(up(h))); gated: `up` holds the rows of gate and value, and down(act(gate(h)) · value(h)) is computed."""

    def __init__(self, model: ModelConfig, tp: TensorParallel):
        super().__init__()
        self.activation = ACTIVATIONS[model.activation]
        self.gated = model.gated
        width, bias = model.mlp_width, model.use_bias_in_mlp
        num_parts = 2 if self.gated else 1
        self.up = ColumnParallelLinear(model.hidden_size, num_parts * width, bias=bias, tp=tp, num_parts=num_parts)
        self.down = RowParallelLinear(width, model.hidden_size, bias=bias, tp=tp)

    def forward(self, h_TD: Tensor) -> Tensor:
        """States [T, D] → this rank's share of [T, D], to be summed by `TensorParallel.reduce`."""
        up = self.up(h_TD)
        if self.gated:
            gate_TF, value_TF = up.chunk(2, dim=-1)
            out: Tensor = self.down(self.activation(gate_TF) * value_TF)
        else:
            out = self.down(self.activation(up))
        return out
