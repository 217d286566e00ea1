"""Numbers of micro-batches that a schedule has no order for: refused, with the nearest that have one."""

import pytest

from megamesh.config.batch import resolve_batch
from megamesh.config.keys import BatchConfig, ParallelConfig
from megamesh.errors import ConfigError
from megamesh.pipeline.checks import check_micro_batches
from megamesh.pipeline.order import Schedule, training_order


def parallel(size: int, schedule: Schedule = "interleaved_1f1b") -> ParallelConfig:
    return ParallelConfig(pipe_parallel_size=size, pipe_schedule=schedule)


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("num_passes", [1, 2])
def test_what_is_accepted_has_an_order_and_what_is_refused_has_none(
    size: int, schedule: Schedule, num_passes: int
) -> None:
    for number in range(1, 14):
        try:
            training_order(schedule, size, num_passes, number)
        except ValueError:
            with pytest.raises(ConfigError):
                check_micro_batches(parallel(size, schedule), num_passes, number)
        else:
            check_micro_batches(parallel(size, schedule), num_passes, number)


def test_the_message_names_the_keys_and_numbers_that_are_accepted() -> None:
    with pytest.raises(ConfigError) as caught:
        check_micro_batches(parallel(4), 3, 9)
    assert str(caught.value) == (
        "pipe_schedule=interleaved_1f1b with pipe_parallel_size=4 has no order for gradient_accumulation_steps=9: it runs micro-batches "
        "in rounds of equal length; use gradient_accumulation_steps: 8 or 10, or pipe_schedule: looped_bfs, which takes any number"
    )
    for number in (8, 10):
        check_micro_batches(parallel(4), 3, number)
    check_micro_batches(parallel(4, "looped_bfs"), 3, 9)


def test_where_the_train_batch_is_given_the_mend_names_the_one_that_goes_with_it() -> None:
    given = BatchConfig(train_batch_size=36, train_micro_batch_size_per_gpu=2)
    batch = resolve_batch(given, 2)
    with pytest.raises(ConfigError) as caught:
        check_micro_batches(parallel(4), 3, batch.gradient_accumulation_steps, batch.samples_per_step(given))
    assert "use gradient_accumulation_steps: 8 or 10 (with train_batch_size: 32 or 40), or pipe" in str(caught.value)
    for steps, total in ((8, 32), (10, 40)):
        mended = given.model_copy(update={"gradient_accumulation_steps": steps, "train_batch_size": total})
        assert resolve_batch(mended, 2).gradient_accumulation_steps == steps
    assert batch.samples_per_step(BatchConfig(gradient_accumulation_steps=9)) is None


def test_no_pipeline_takes_any_number() -> None:
    for size in (0, 1):
        check_micro_batches(parallel(size), 3, 7)
