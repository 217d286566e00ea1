"""Optimizer and schedule as a run has them, defaults filled in: for the dry run, the first log lines and the model card.

OptimizerConfig + train_iters ──▶ {type, lr, betas, eps, …}, {style, warmup_steps, decay_steps, …} ──▶ one line each
"""

from typing import Any

from megamesh.config.keys import OptimizerConfig


def resolved_optimizer(optimizer: OptimizerConfig) -> dict[str, Any]:
    """What the optimizer is built with. `type` is always AdamW: Adam decouples the decay here too."""
    return {
        "type": "AdamW",
        "lr": optimizer.peak_lr,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "gradient_clipping": optimizer.gradient_clipping,
    }


def resolved_schedule(optimizer: OptimizerConfig, train_iters: int | None) -> dict[str, Any]:
    """The learning rate over the steps of the run; None for what depends on a length that only the data tell."""
    steps = optimizer.lr_decay_iters or train_iters
    warmup = None if steps is None else _whole(round(optimizer.warmup * steps, 3))
    constant = optimizer.lr_decay_style == "constant"
    return {
        "style": optimizer.lr_decay_style,
        "warmup_steps": warmup if optimizer.warmup else 0,
        "decay_steps": None if constant else steps,
        "min_lr": None if constant else optimizer.min_lr,
    }


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def describe_optimizer(optimizer: OptimizerConfig) -> str:
    """`lr 0.001, betas 0.9 and 0.999 (…), eps 1e-08`, and where a value comes from that the block does not give."""
    first, second = optimizer.betas
    absent = optimizer.params_left_out
    default = f" ({' and '.join(absent)}: torch's default, which the optimizer block leaves out)" if absent else ""
    return f"lr {optimizer.peak_lr:g}, betas {first:g} and {second:g}, eps {optimizer.eps:g}{default}"


def describe_schedule(optimizer: OptimizerConfig, train_iters: int | None) -> str:
    """`linear decay to 0 over 1,000 steps, after 10 steps of warm-up`."""
    schedule = resolved_schedule(optimizer, train_iters)
    shape = "constant"
    if optimizer.lr_decay_style != "constant":
        length = "the run" if schedule["decay_steps"] is None else f"{schedule['decay_steps']:,} steps"
        shape = f"{optimizer.lr_decay_style} decay to {optimizer.min_lr:g} over {length}"
    if not optimizer.warmup:
        return f"{shape}, without warm-up"
    steps = schedule["warmup_steps"]
    share = f"{100 * optimizer.warmup:g}% of the run" if steps is None else f"{steps:,} steps"
    return f"{shape}, after a warm-up over {share}"
