"""What a pipeline asks of the batch: a number of micro-batches that its schedule has an order for."""

from collections.abc import Iterator
from itertools import count

from megamesh.config.keys import ParallelConfig
from megamesh.errors import ConfigError
from megamesh.pipeline.order import micro_batches_fit


def check_micro_batches(
    parallel: ParallelConfig, num_passes: int, num_micro_batches: int, samples_per_step: int | None = None
) -> None:
    """ConfigError where the pipeline's schedule cannot run so many micro-batches per optimizer step, in so many passes.

    Where the train batch is given, `samples_per_step` are its samples for each of them, and the mend says the batches that go with it.
    """
    num_ranks = parallel.pipe_parallel_size
    if num_ranks < 2 or (num_micro_batches >= 1 and _fits(parallel, num_passes, num_micro_batches)):
        return
    below = [number for number in range(num_micro_batches - 1, 0, -1) if _fits(parallel, num_passes, number)][:1]
    fitting = [*below, next(_above(parallel, num_passes, num_micro_batches))]
    nearest = " or ".join(map(str, fitting))
    if samples_per_step is not None:
        nearest += f" (with train_batch_size: {' or '.join(str(number * samples_per_step) for number in fitting)})"
    other = ", or pipe_schedule: looped_bfs, which takes any number" if num_micro_batches >= 1 else ""
    raise ConfigError(
        f"pipe_schedule={parallel.pipe_schedule} with pipe_parallel_size={num_ranks} has no order for "
        f"gradient_accumulation_steps={num_micro_batches}: it runs micro-batches in rounds of equal length; "
        f"use gradient_accumulation_steps: {nearest}{other}"
    )


def _fits(parallel: ParallelConfig, num_passes: int, number: int) -> bool:
    return micro_batches_fit(parallel.pipe_schedule, parallel.pipe_parallel_size, num_passes, number)


def _above(parallel: ParallelConfig, num_passes: int, number: int) -> Iterator[int]:
    return (larger for larger in count(max(number, 0) + 1) if _fits(parallel, num_passes, larger))
