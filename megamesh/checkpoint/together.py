"""Ranks that succeed or fail together: one rank's error becomes the same CheckpointError on all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megamesh.errors import CheckpointError

Result = TypeVar("Result")


def on_rank_zero(action: Callable[[], Result], doing: str, group: dist.ProcessGroup | None = None) -> Result:
    """Run on rank 0 only; every rank of `group` (None: all) gets the (pickled) result, or CheckpointError. A collective."""
    outcome: list[object] = [None]
    cause: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome = [action()]
        except CheckpointError as error:
            outcome = [error]
        except Exception as error:  # the other ranks wait: whatever it is, they must hear of it
            outcome = [CheckpointError(f"could not {doing}: {error or type(error).__name__}")]
            cause = error
    dist.broadcast_object_list(outcome, src=0, group=group)
    if isinstance(outcome[0], CheckpointError):
        raise outcome[0] from cause
    return outcome[0]  # type: ignore[return-value]


def on_every_rank(action: Callable[[], Result], group: dist.ProcessGroup | None) -> Result:
    """Run on every rank of `group` (None: here alone); where any raises CheckpointError, all raise the first one. A collective."""
    if group is None:
        return action()
    error: CheckpointError | None = None
    try:
        result = action()
    except CheckpointError as raised:
        error = raised
    errors: list[CheckpointError | None] = [None] * group.size()
    dist.all_gather_object(errors, error, group=group)
    first = next((found for found in errors if found is not None), None)
    if first is not None:
        raise first from error
    return result


@contextmanager
def as_checkpoint_error(doing: str, path: Path, mend: str) -> Iterator[None]:
    """Turn what torch.distributed.checkpoint raises, on all ranks alike, into one CheckpointError."""
    try:
        yield
    except CheckpointException as failure:
        rank, (cause, _) = min(failure.failures.items())
        if isinstance(cause, CheckpointError):
            raise CheckpointError(str(cause)) from None
        if not isinstance(cause, Exception):  # KeyboardInterrupt and the like are no matter of checkpoints
            raise cause from failure
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise CheckpointError(f"could not {doing} {path} (rank {rank}: {reason}); {mend}") from failure
