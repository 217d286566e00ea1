"""The learning rate as a pure function of the step: nothing to save, nothing to restore.

    rate
    peak ┤    ╱‾‾‾╲              step counts optimizer steps done before, from 0
         │   ╱      ╲            warm-up: linear from 0 over warmup · decay_iters steps
     min ┤  ╱         ╲_____     decay: to lr_decay_iters, then constant at min_lr
         └──┬───────┬──────▶ step

The curves are GPT-NeoX's: the very first step of a warm-up has rate 0, and `linear` falls towards 0 and is cut at min_lr.
"""

import math

from megamesh.config.keys import OptimizerConfig


def learning_rate(step: int, optimizer: OptimizerConfig, train_iters: int) -> float:
    """Rate of the optimizer step that follows `step` others (skipped ones counted)."""
    peak = optimizer.peak_lr
    end = optimizer.lr_decay_iters or train_iters
    warmup = optimizer.warmup * end
    if warmup > 0 and step <= warmup:
        return peak * step / warmup
    if optimizer.lr_decay_style == "constant":
        return max(peak, optimizer.min_lr)
    if step >= end:
        return optimizer.min_lr
    progress = (step - warmup) / (end - warmup)
    if optimizer.lr_decay_style == "linear":
        return max(peak * (1 - progress), optimizer.min_lr)
    return max(optimizer.min_lr + (peak - optimizer.min_lr) / 2 * (math.cos(math.pi * progress) + 1), optimizer.min_lr)
