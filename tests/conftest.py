"""Settings for the whole suite: one thread per process (several run at once), and worker processes that end with it."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests import distributed

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _worker_processes() -> Iterator[None]:
    yield
    distributed.stop_all()
