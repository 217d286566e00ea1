"""DeepSpeed, imported without its greetings and its compiler: it speaks at WARNING and above, and builds nothing.

On CPUs it also trains in fp16, which DeepSpeed 0.19 refuses where the processor has no fast kernels for it: torch has slow ones, good
enough to try things out.
"""

import logging
import os
import warnings

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.fp16 import loss_scaler

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed 0.19 calls collectives by names that torch 2.13 is about to drop: nothing that a user could mend.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
# On CPUs it would compile a shared-memory collective that nothing here uses; this is the list of what it may build.
deepspeed.ops.__compatible_ops__ = {}

# BF16_Optimizer prints the memory in use at every stage of its construction, whatever the level.
bf16_optimizer.see_memory_usage = lambda message, force=False: None
# A constant scale announces every skipped step; training/hooks/nonfinite.py does, and knows why.
loss_scaler.LossScalerBase.update_scale = lambda scaler, overflow: None

if not torch.cuda.is_available():
    get_accelerator().is_fp16_supported = lambda: True

__all__ = ["deepspeed"]
