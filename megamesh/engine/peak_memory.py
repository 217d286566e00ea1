"""The most memory that processes have held: the device allocator's peak, on a CPU the process's largest resident set; and its growth."""

import os
import resource
import threading
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class PeakMemory:
    """Over all ranks, in bytes."""

    largest_bytes: int
    fullest_rank: int
    mean_bytes: float


def own_peak_bytes(device: torch.device) -> int:
    """Of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class ResidentPeak:
    """A context: `extra_bytes` is the most that this process's resident set grew inside, looked at every 2 ms."""

    def __enter__(self) -> "ResidentPeak":
        self.extra_bytes, self._ended, self._before = 0, False, _resident_bytes()
        self._thread = threading.Thread(target=self._watch, name="resident-peak", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended = True
        self._thread.join()

    def _watch(self) -> None:
        while True:
            ended = self._ended
            self.extra_bytes = max(self.extra_bytes, _resident_bytes() - self._before)
            if ended:
                return
            time.sleep(0.002)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device) -> PeakMemory:
    """Of all ranks. A collective."""
    peaks = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    peaks[dist.get_rank()] = own_peak_bytes(device)
    dist.all_reduce(peaks)
    return PeakMemory(int(peaks.max()), int(peaks.argmax()), float(peaks.double().mean()))
