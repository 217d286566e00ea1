"""AdamW over two groups of parameters: decayed and not.

torch's fused AdamW on every device. ZeRO hands the optimizer one flat tensor per group, so kernels that join many tensors
(apex, DeepSpeed's FusedAdam) have nothing to join; apex moreover counts steps per group, which ZeRO 3 calls several times
per step.
"""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from megamesh.config.keys import OptimizerConfig
from megamesh.config.resolved import describe_optimizer

log = logging.getLogger(__name__)
EMBEDDINGS = frozenset({"embedding", "position_embedding"})


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies by default: matrices do, norms, biases, learned scalars and embeddings do not."""
    return parameter.ndim >= 2 and name.split(".", 1)[0] not in EMBEDDINGS


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, *, decay_all: bool
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, the decayed first, each in model order; an empty group is left out."""
    named = list(named_parameters)
    decayed = [parameter for name, parameter in named if decay_all or is_decayed(name, parameter)]
    others = [parameter for name, parameter in named if not (decay_all or is_decayed(name, parameter))]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW for all parameters of the module, at the configured peak rate; the choice is said in one log line."""
    groups = parameter_groups(module.named_parameters(), config.weight_decay, decay_all=config.weight_decay_all)
    optimizer = torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, eps=config.eps, fused=True)
    counts = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    listed = ", ".join(
        f"{count:,} parameters with decay {group['weight_decay']:g}"
        for count, group in zip(counts, groups, strict=True)
    )
    log.info("optimizer: torch AdamW (fused), %s; %s", describe_optimizer(config), listed)
    return optimizer
