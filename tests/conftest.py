"""Settings for the whole suite: one thread per process (several run at once), and worker processes that end with it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests import distributed, fast

torch.set_num_threads(1)

LONGEST_FIRST = ("training", "model", "engine", "checkpoint", "benchmark", "tools", "pipeline", "hf", "evaluation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="without slow files, but with a run of each axis: tests/fast.py"
    )
    parser.addoption("--thorough", action="store_true", help="what is done at random is done more often")


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(autouse=True)
def _log_as_at_first() -> Iterator[None]:
    """What a tool's main() did to the log in one test is not there in the next."""
    log = logging.getLogger("megamesh")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _worker_processes() -> Iterator[None]:
    yield
    distributed.stop_all()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    left_out = config.getoption("--fast") and collection_path.suffix == ".py" and not fast.needs(collection_path)
    return True if left_out else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Folders whose files take minutes come first, so that two processes that share the files end at the same time."""
    if config.getoption("--fast"):
        left_out = [item for item in items if not fast.keeps(item)]
        items[:] = [item for item in items if fast.keeps(item)]
        config.hook.pytest_deselected(items=left_out)
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(fast.TESTS).parts[0], len(places)))
