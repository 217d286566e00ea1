"""DeepSpeed, imported without its greetings and its compiler: it speaks at WARNING and above, and builds nothing."""

import logging
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better

import deepspeed

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# On CPUs it would compile a shared-memory collective that nothing here uses; this is the list of what it may build.
deepspeed.ops.__compatible_ops__ = {}

__all__ = ["deepspeed"]
