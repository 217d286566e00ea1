"""The feed-forward part of a block: GPT-NeoX's plain MLP, and the gated one of Llama (Shazeer 2020).

Letters: B batch, S sequence, D hidden size, F MLP width.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.config.sections import Activation, ModelConfig

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "geglu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swiglu": F.silu,
}


class MLP(nn.Module):
    """down(act(up(h))); gated: `up` holds the rows of gate and value, and down(act(gate(h)) · value(h)) is computed."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.activation = ACTIVATIONS[model.activation]
        self.gated = model.gated
        width, bias = model.mlp_width, model.use_bias_in_mlp
        self.up = nn.Linear(model.hidden_size, 2 * width if self.gated else width, bias=bias)
        self.down = nn.Linear(width, model.hidden_size, bias=bias)

    def forward(self, h_BSD: Tensor) -> Tensor:
        up = self.up(h_BSD)
        if self.gated:
            gate_BSF, value_BSF = up.chunk(2, dim=-1)
            out: Tensor = self.down(self.activation(gate_BSF) * value_BSF)
        else:
            out = self.down(self.activation(up))
        return out
