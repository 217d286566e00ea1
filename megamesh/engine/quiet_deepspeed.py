"""DeepSpeed, imported without its greetings: from here on it speaks at WARNING and above, on the device that torch has."""

import logging
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better

import deepspeed

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

__all__ = ["deepspeed"]
