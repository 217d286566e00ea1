"""DeepSpeed, imported without its greetings and its compiler: it speaks at WARNING and above, and builds nothing."""

import logging
import os
import warnings

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better

import deepspeed
from deepspeed.runtime import bf16_optimizer

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed 0.19 calls collectives by names that torch 2.13 is about to drop: nothing that a user could mend.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
# On CPUs it would compile a shared-memory collective that nothing here uses; this is the list of what it may build.
deepspeed.ops.__compatible_ops__ = {}

# BF16_Optimizer prints the memory in use at every stage of its construction, whatever the level.
bf16_optimizer.see_memory_usage = lambda message, force=False: None

__all__ = ["deepspeed"]
