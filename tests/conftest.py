"""Settings for the whole suite: one thread per process (several run at once), and worker processes that end with it."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests import distributed

torch.set_num_threads(1)


LONGEST_FIRST = ("training", "model", "engine", "checkpoint")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with the longest tests first, so that files that are run side by side end together."""
    folders = [*LONGEST_FIRST, *sorted({item.path.parent.name for item in items} - {*LONGEST_FIRST})]
    items.sort(key=lambda item: folders.index(item.path.parent.name))


@pytest.fixture(scope="session", autouse=True)
def _worker_processes() -> Iterator[None]:
    yield
    distributed.stop_all()
