"""Which samples a data-parallel rank reads. The whole state is the number of consumed samples.

    global batch of step n = samples [n·B, (n+1)·B)
    micro-step a of it     = samples n·B + a·micro·dp … + micro·dp, of which rank r takes the r-th slice of micro samples

The order of samples over all ranks is the plain order 0, 1, 2, … at every micro-batch size and number of ranks, so a run continues on
another layout with the same global batches.
"""

from collections.abc import Iterator


def micro_batch_ids(
    consumed_samples: int, total_samples: int, micro_batch_size: int, dp_rank: int, dp_size: int
) -> Iterator[range]:
    """The sample numbers of each micro-batch of a rank, from `consumed_samples` on.

    A remainder of fewer than micro_batch_size·dp_size samples at the end is left out, on every rank alike.
    """
    assert 0 <= dp_rank < dp_size and micro_batch_size > 0 and consumed_samples >= 0
    stride = micro_batch_size * dp_size
    for start in range(consumed_samples, total_samples - stride + 1, stride):
        first = start + dp_rank * micro_batch_size
        yield range(first, first + micro_batch_size)
