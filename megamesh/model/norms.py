"""The model's normalisation layers: torch's own, chosen by the configuration."""

from torch import nn

from megamesh.config.keys import ModelConfig


def build_norm(model: ModelConfig, width: int | None = None) -> nn.Module:
    """LayerNorm or RMSNorm over the last `width` dimensions (default: hidden_size)."""
    width = width or model.hidden_size
    if model.norm == "layernorm":
        return nn.LayerNorm(width, eps=model.layernorm_epsilon, bias=model.use_bias_in_norms)
    return nn.RMSNorm(width, eps=model.rms_norm_epsilon)
