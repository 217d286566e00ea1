"""When a save by time is due: so many minutes after the last save, as rank 0's clock has it."""

import time

import torch.distributed as dist

SECONDS_PER_MINUTE = 60.0


class SaveClock:
    """Runs from the start of training, and anew from every save; None minutes are never over."""

    def __init__(self, minutes: float | None):
        self.minutes = minutes
        self.restart()

    def restart(self) -> None:
        """Training begins, or goes on after a save."""
        self._started = time.monotonic()

    def is_due(self) -> bool:
        """Whether the minutes are over; False on all ranks but the first, whose word counts."""
        if self.minutes is None or dist.get_rank() != 0:
            return False
        return time.monotonic() - self._started >= self.minutes * SECONDS_PER_MINUTE
