"""Keys of the run: length, evaluation, seed, recomputation."""

from typing import Literal

from pydantic import Field

from megamesh.config.keys.section import Section


class TrainingConfig(Section):
    """Length of the run, evaluation, seed and recomputation."""

    train_iters: int | None = Field(None, ge=1, description="Optimizer steps. Give this or train_epochs.")
    train_epochs: int | None = Field(
        None, ge=1, description="Passes over the training data, over each path of a blend. Give this or train_iters."
    )
    eval_interval: int = Field(1000, ge=1, description="Steps between evaluations.")
    eval_iters: int = Field(100, ge=0, description="Global batches per evaluation; 0 turns evaluation off.")
    seed: int = Field(1234, ge=0, lt=2**32, description="Seed of weights, sample order and dropout.")
    checkpoint_activations: bool = Field(
        False, description="Recompute activations in backward instead of keeping them."
    )
    checkpoint_activations_per: Literal["block", "loop"] = Field(
        "block", description="What is recomputed as one piece: a block, or a whole pass through the core."
    )
    checkpoint_num_layers: int = Field(
        1, ge=1, description="Blocks that are recomputed as one piece with checkpoint_activations_per block."
    )
    loss_chunk_tokens: int = Field(
        2048, ge=1, description="Tokens whose logits exist at once while the loss is computed."
    )
    compile: bool = Field(False, description="Run every block through torch.compile.")
    max_nonfinite_steps: int = Field(
        10, ge=1, description="Skipped (non-finite) steps in a row after which the run stops."
    )
    hooks: list[str] = Field(
        default_factory=list,
        description="Hooks of your own, as module:name; megamesh/training/trainer.py says what a hook is and finds, "
        "examples/hooks/gradient_norms.py is one. The module is found on PYTHONPATH.",
    )
