"""Batch arithmetic."""

import itertools

import pytest

from megamesh.config.batch import ResolvedBatch, data_parallel_size, resolve_batch
from megamesh.config.keys import BatchConfig, ParallelConfig
from megamesh.errors import ConfigError


def batch(total: int | None, micro: int | None, steps: int | None) -> BatchConfig:
    return BatchConfig(train_batch_size=total, train_micro_batch_size_per_gpu=micro, gradient_accumulation_steps=steps)


def test_the_message_is_a_sentence_about_all_three() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_batch(batch(7, None, None), 2)
    assert str(caught.value) == (
        "train_batch_size=7 cannot be train_micro_batch_size_per_gpu × gradient_accumulation_steps × data-parallel size 2, "
        "which is a multiple of 2; use train_batch_size: 8"
    )
    with pytest.raises(ConfigError) as caught:
        resolve_batch(batch(8, 2, 3), 2)
    assert str(caught.value) == (
        "train_batch_size=8 is not train_micro_batch_size_per_gpu=2 × gradient_accumulation_steps=3 × data-parallel size 2 = 12; "
        "use train_batch_size: 12, or leave it out"
    )


@pytest.mark.parametrize("data_parallel", [1, 2, 3])
def test_any_two_sizes_give_the_third(data_parallel: int) -> None:
    for micro, steps in itertools.product([1, 2, 5], [1, 3]):
        expected = ResolvedBatch(micro * steps * data_parallel, micro, steps, data_parallel)
        for known in (
            batch(expected.train_batch_size, micro, None),
            batch(expected.train_batch_size, None, steps),
            batch(None, micro, steps),
        ):
            assert resolve_batch(known, data_parallel) == expected
        assert resolve_batch(batch(expected.train_batch_size, micro, steps), data_parallel) == expected


def test_one_size_leaves_the_others_at_one() -> None:
    assert resolve_batch(batch(8, None, None), 2) == ResolvedBatch(8, 4, 1, 2)
    assert resolve_batch(batch(None, 3, None), 2) == ResolvedBatch(6, 3, 1, 2)
    assert resolve_batch(batch(None, None, 3), 2) == ResolvedBatch(6, 1, 3, 2)


@pytest.mark.parametrize(
    ("sizes", "mend"),
    [
        ((8, 3, None), "use train_batch_size: 6"),
        ((8, 2, 3), "use train_batch_size: 12"),
        ((1, None, None), "use train_batch_size: 2"),
        ((7, None, 2), "use train_batch_size: 8"),
        ((7, None, None), "use train_batch_size: 8"),
    ],
)
def test_a_contradiction_names_all_sizes_and_the_data_parallel_size(sizes: tuple[int | None, ...], mend: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_batch(batch(*sizes), 2)
    message = str(caught.value)
    assert mend in message and "data-parallel size 2" in message
    for key, value in zip(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), sizes, strict=True
    ):
        assert key in message and (value is None or f"{key}={value}" in message)
    assert "contradict" not in message  # one value alone contradicts nothing


def test_the_mend_of_a_contradiction_resolves() -> None:
    for total, micro, steps, data_parallel in itertools.product([1, 7, 8, 100], [None, 3], [None, 2], [1, 4]):
        try:
            resolve_batch(batch(total, micro, steps), data_parallel)
        except ConfigError as error:
            mended = int(str(error).split("use train_batch_size: ")[1].split(",")[0])
            assert resolve_batch(batch(mended, micro, steps), data_parallel).train_batch_size == mended


def test_data_parallel_size_divides_the_processes() -> None:
    assert data_parallel_size(ParallelConfig(), 6) == 6
    assert data_parallel_size(ParallelConfig(pipe_parallel_size=2, model_parallel_size=3), 12) == 2
    with pytest.raises(ConfigError, match=r"6 processes .* model_parallel_size=4 ranks; start a multiple of 4"):
        data_parallel_size(ParallelConfig(model_parallel_size=4), 6)
