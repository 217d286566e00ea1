"""Keys of the pipeline: what contradicts itself is refused before anything starts, and every mend loads."""

import re
from typing import Any

import pytest

from .conftest import Load, Problems
from .test_tensor_parallel import without_lines

RECURSIVE: dict[str, Any] = {"num_layers": 8, "recursion": "2+2R2+2", "pipe_parallel_size": 2}

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"pipe_parallel_size": 2, "zero_optimization": {"stage": 2}},
        "zero_optimization={stage: 2} (run.yml) cannot be combined with pipe_parallel_size=2 (run.yml): gradients are reduced once per "
        "step there; use stage: 0 or 1, or pipe_parallel_size: 1",
    ),
    (
        RECURSIVE | {"pipe_num_passes": 2},
        "pipe_num_passes=2 (run.yml): with recursion=2+2R2+2 (run.yml) a micro-batch goes round once for the prelude, each loop and "
        "the coda; remove pipe_num_passes",
    ),
    (
        RECURSIVE | {"pipe_partition_method": "1,2+1,1+1,1"},
        "pipe_partition_method=1,2+1,1+1,1 (run.yml) does not place every layer once on 2 ranks; write it like 1,1+1,1+1,1",
    ),
    (
        RECURSIVE | {"pipe_partition_method": "2+2+2"},
        "pipe_partition_method=2+2+2 (run.yml) does not place every layer once on 2 ranks; write it like 1,1+1,1+1,1",
    ),
    (
        {"pipe_parallel_size": 2, "pipe_num_passes": 2, "pipe_partition_method": "1,1+2,1"},
        "pipe_partition_method=1,1+2,1 (run.yml) does not place every layer once on 2 ranks; write it like 1,1+1,1",
    ),
    (
        {"pipe_parallel_size": 3, "pipe_partition_method": "type:mlp"},
        "pipe_partition_method=type:mlp (run.yml) is not known; use cost, uniform, parameters, or layers per rank such as 2,1,1",
    ),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=[str(keys) for keys, _ in REFUSED])
def test_what_cannot_be_is_one_message(problems: Problems, keys: dict[str, Any], message: str) -> None:
    (problem,) = problems(**keys)
    assert without_lines(problem) == message


@pytest.mark.parametrize("keys", [keys for keys, message in REFUSED if "like" in message or "such as" in message])
def test_the_partition_that_a_message_suggests_loads(problems: Problems, load: Load, keys: dict[str, Any]) -> None:
    (problem,) = problems(**keys)
    suggested = re.split("like |such as ", problem)[-1]
    assert load(**keys | {"pipe_partition_method": suggested}).run.parallel.pipe_partition_method == suggested


def test_neox_spellings_load(load: Load) -> None:
    loaded = load(**{"pipe-parallel-size": 2, "pipe_partition_method": "type:transformer|mlp"})
    assert loaded.run.parallel.pipe_parallel_size == 2
    assert not loaded.ignored_keys
