"""Settings for the whole suite: one thread per process (several run at once), and worker processes that end with it."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests import distributed

torch.set_num_threads(1)

LONGEST_FIRST = ("training", "model", "engine", "checkpoint", "benchmark", "tools", "pipeline", "hf", "evaluation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="what is done at random is done more often")


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(scope="session", autouse=True)
def _worker_processes() -> Iterator[None]:
    yield
    distributed.stop_all()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders whose files take minutes come first, so that two processes that share the files end at the same time."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(Path(__file__).parent).parts[0], len(places)))
