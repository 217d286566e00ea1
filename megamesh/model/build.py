"""From configuration to an initialised Transformer on its device."""

from collections.abc import Callable

import torch

from megamesh.config.keys import ModelConfig, PrecisionConfig, RecursionConfig, TrainingConfig
from megamesh.model.compile import compile_blocks
from megamesh.model.init import initialise
from megamesh.model.recompute import Recompute
from megamesh.model.transformer import Transformer
from megamesh.parallel.tensor import SINGLE, TensorParallel


def torch_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The type of weights and activations."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bfloat16": torch.bfloat16}[precision.precision]


def empty_model(
    model: ModelConfig,
    recursion: RecursionConfig,
    vocab_size: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    training: TrainingConfig | None = None,
    padded_vocab_size: int | None = None,
    tp: TensorParallel = SINGLE,
    holds: Callable[[str], bool] | None = None,
) -> Transformer:
    """A Transformer (this rank's part of one) with unset weights, for a reader that fills them. `holds`: see `Transformer.keep_only`."""
    training = training or TrainingConfig()
    with torch.device("meta"):
        module = Transformer(
            model,
            recursion,
            vocab_size,
            Recompute.from_config(training),
            training.loss_chunk_tokens,
            padded_vocab_size=padded_vocab_size,
            tp=tp,
        )
    if holds is not None:
        module.keep_only(holds)
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
    padded_vocab_size: int | None = None,
    tp: TensorParallel = SINGLE,
    holds: Callable[[str], bool] | None = None,
) -> Transformer:
    """A Transformer with weights drawn from `training.seed`: on every layout parts of the same ones.

    Raises ConfigError where its blocks are to be compiled and cannot be.
    """
    module = empty_model(
        model,
        recursion,
        vocab_size,
        device=device,
        dtype=dtype,
        training=training,
        padded_vocab_size=padded_vocab_size,
        tp=tp,
        holds=holds,
    )
    initialise(module, model, recursion, training.seed)
    if training.compile:
        compile_blocks(module)
    return module
