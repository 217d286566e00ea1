"""The machines that a plan is made for, and how fast things travel between their GPUs.

    rank = (pipeline · dp + data) · tp + tensor       tensor ranks are neighbours, then data, then pipeline (parallel/mesh.py)
    node = rank // gpus_per_node                      inside a node one bandwidth, between nodes another

A group of ranks talks at the speed of its slowest wire.
"""

from dataclasses import dataclass

GIGABIT = 1e9 / 8
"""Bytes."""


@dataclass(frozen=True)
class Cluster:
    """GPUs and wires. Bandwidths are of one GPU, in one direction, in Gbit/s; `latency_seconds` is that of any message or collective."""

    num_gpus: int
    gpus_per_node: int = 8
    memory_gib: float = 80.0
    usable_memory: float = 0.9
    intra_node_gbps: float = 3600.0
    inter_node_gbps: float = 400.0
    latency_seconds: float = 10e-6

    @property
    def usable_bytes(self) -> float:
        """What a plan may fill of a GPU; the rest is for what the estimates leave out."""
        return self.memory_gib * self.usable_memory * 2**30

    def seconds(self, num_bytes: float, *, within_node: bool, messages: int = 1) -> float:
        """What a rank needs to send so many bytes."""
        gbps = self.intra_node_gbps if within_node else self.inter_node_gbps
        return num_bytes / (gbps * GIGABIT) + messages * self.latency_seconds

    def group_within_node(self, size: int, stride: int) -> bool:
        """Whether every group of `size` ranks, `stride` apart, whose places are aligned to size · stride, lies in one node."""
        return self._one_node or self.gpus_per_node % (size * stride) == 0

    def wire_within_node(self, stride: int, rank: int, to_rank: int) -> bool:
        """Whether every wire from one pipeline rank to another lies in a node; pipeline ranks are `stride` apart."""
        nodes = self.gpus_per_node
        return all((rank * stride + place) // nodes == (to_rank * stride + place) // nodes for place in range(stride))

    @property
    def _one_node(self) -> bool:
        return self.num_gpus <= self.gpus_per_node
