"""Speed in units that compare: tokens/s, TFLOP/s and MFU, all at compute depth.

Model FLOPs are counted for every block a token passes through, so a core run K times counts K times; what activation
checkpointing computes again does not count (that would be hardware FLOPs). MFU divides by the device's dense peak for its
matrix type.
"""

from dataclasses import dataclass

import torch

# Dense bf16 tensor-core peaks in TFLOP/s, from the vendors' data sheets; matched against the start of the device's name.
PEAK_TFLOPS = {
    "NVIDIA B200": 2250.0,
    "NVIDIA H200": 989.0,
    "NVIDIA H100 80GB": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L4": 121.0,
}


def device_peak_tflops(device: torch.device) -> float | None:
    """The known dense bf16 peak of a GPU, or None (CPUs, unknown devices)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for start, peak in PEAK_TFLOPS.items() if name.startswith(start)), None)


@dataclass(frozen=True)
class Throughput:
    """What one optimizer step processes, and how many devices share it."""

    sequence_length: int
    samples_per_step: int
    flops_per_token: float
    num_devices: int
    peak_tflops: float | None

    def rates(self, seconds_per_step: float) -> dict[str, float]:
        """tokens_per_second over all devices, tflops per device, and mfu (0 to 1) where the peak is known."""
        tokens_per_second = self.sequence_length * self.samples_per_step / seconds_per_step
        tflops = tokens_per_second * self.flops_per_token / self.num_devices / 1e12
        rates = {"tokens_per_second": tokens_per_second, "tflops_per_device": tflops}
        return rates | ({"mfu": tflops / self.peak_tflops} if self.peak_tflops else {})
