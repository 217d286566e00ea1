"""What every fork server imports before its first fork (tests/processes.py), so that no process of a test imports it again."""

import gc

import pytest  # noqa: F401
import torch
import torch._dynamo
import torch._inductor.compile_fx

import megamesh.training.run  # noqa: F401
import tests.engine.runs  # noqa: F401

torch.set_num_threads(1)
gc.collect()
gc.freeze()  # the pages of what was imported stay shared, and no collection in a child looks at it
