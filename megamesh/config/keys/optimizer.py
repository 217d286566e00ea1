"""Keys of optimizer, schedule and ZeRO."""

from typing import Any, Literal

from pydantic import Field

from megamesh.config.keys.section import Section


class OptimizerConfig(Section):
    """Optimizer, schedule and ZeRO."""

    optimizer: dict[str, Any] = Field(
        default_factory=lambda: {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8}},
        description="{type, params}: Adam or AdamW (both decouple the decay); params lr (the peak), betas, eps. The default holds where no "
        "optimizer key is given at all. A block that is given replaces it whole: where it names no betas or eps, they are torch's and "
        "GPT-NeoX's, [0.9, 0.999] and 1e-8 (also with --set optimizer.params.lr and nothing else). The dry run and the first log lines "
        "show what holds.",
    )
    zero_optimization: dict[str, Any] = Field(
        default_factory=lambda: {"stage": 0},
        description="DeepSpeed's ZeRO block; stage 0, 1, 2 or 3. "
        "A reduce_bucket_size (in elements, 500000000 by default) above a rank's parameters is cut to them.",
    )
    gradient_clipping: float = Field(
        1.0, ge=0, description="Largest norm of the gradient over all parameters; 0 turns clipping off."
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay of the matrices.")
    weight_decay_all: bool = Field(False, description="Decay norms, biases and embeddings too.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at and after lr_decay_iters.")
    lr_decay_style: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Shape of the decay after warm-up."
    )
    lr_decay_iters: int | None = Field(
        None, ge=1, description="Steps over which the rate decays. Default: train_iters."
    )
    warmup: float = Field(0.01, ge=0, le=1, description="Warm-up as a fraction of lr_decay_iters.")
    override_lr_scheduler: bool = Field(
        False,
        description="On resume, take the schedule from this configuration although it differs from the checkpoint's.",
    )

    @property
    def zero_stage(self) -> int:
        return int(self.zero_optimization.get("stage", 0))

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of warm-up."""
        return float(self._params["lr"])

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's decay rates of the two moments; torch's defaults where the block leaves them out."""
        first, second = self._params.get("betas", (0.9, 0.999))
        return float(first), float(second)

    @property
    def eps(self) -> float:
        return float(self._params.get("eps", 1e-8))

    @property
    def params_left_out(self) -> tuple[str, ...]:
        """Of betas and eps, those that the block does not give."""
        return tuple(key for key in ("betas", "eps") if key not in self._params)

    @property
    def _params(self) -> dict[str, Any]:
        params: dict[str, Any] = self.optimizer["params"]
        return params
