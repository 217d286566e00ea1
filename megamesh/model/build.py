"""From configuration to an initialised Transformer on its device."""

import torch

from megamesh.config.sections import ModelConfig, PrecisionConfig, RecursionConfig, TrainingConfig
from megamesh.model.init import initialise
from megamesh.model.recompute import Recompute
from megamesh.model.transformer import Transformer


def torch_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The type of weights and activations."""
    return torch.bfloat16 if precision.precision == "bfloat16" else torch.float32


def empty_model(
    model: ModelConfig,
    recursion: RecursionConfig,
    vocab_size: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    training: TrainingConfig | None = None,
) -> Transformer:
    """A Transformer with unset weights, for a reader that fills them (`vocab_size` is the padded one)."""
    training = training or TrainingConfig()
    with torch.device("meta"):
        module = Transformer(model, recursion, vocab_size, Recompute.from_config(training), training.loss_chunk_tokens)
    module = module.to(dtype).to_empty(device=device)
    module.tie_head()
    return module


def build_model(
    model: ModelConfig,
    recursion: RecursionConfig,
    training: TrainingConfig,
    vocab_size: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """A Transformer with weights drawn from `training.seed`."""
    module = empty_model(model, recursion, vocab_size, device=device, dtype=dtype, training=training)
    initialise(module, model, recursion, training.seed)
    return module
