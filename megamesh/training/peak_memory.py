"""The most memory that processes have held: the device allocator's peak, on a CPU the process's largest resident set."""

import resource
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


def peak_memory(device: torch.device) -> PeakMemory:
    """Of all ranks. A collective."""
    peaks = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    peaks[dist.get_rank()] = own_peak_bytes(device)
    dist.all_reduce(peaks)
    return PeakMemory(int(peaks.max()), int(peaks.argmax()), float(peaks.double().mean()))
