"""Speed in units that compare: tokens/s, TFLOP/s and MFU, all at compute depth.

Model FLOPs are counted for every block a token passes through, so a core run K times counts K times; what activation
checkpointing computes again does not count (that would be hardware FLOPs). MFU divides by the device's dense peak for its
matrix type.
"""

import re
from dataclasses import dataclass

import torch

from megamesh.config.keys import PrecisionConfig

# Dense bf16 and fp16 tensor-core peaks in TFLOP/s, from the vendors' data sheets; the device's name must match as a whole.
PEAK_TFLOPS = {
    r"NVIDIA B200": 2250.0,
    r"NVIDIA H200": 989.0,
    r"NVIDIA H200 NVL": 835.0,
    r"NVIDIA H100 80GB HBM3": 989.0,
    r"NVIDIA H100 NVL": 835.0,
    r"NVIDIA H100 PCIe": 756.0,
    r"NVIDIA A100[ -](SXM4-|PCIE-|PCIe-)?\d+GB( PCIe)?": 312.0,
    r"NVIDIA L40S": 362.0,
    r"NVIDIA L4": 121.0,
}


def device_peak_tflops(device: torch.device, precision: PrecisionConfig) -> float | None:
    """The known dense peak of a GPU that trains in bfloat16 or fp16; None for CPUs, unknown devices and fp32."""
    if device.type != "cuda" or precision.precision == "fp32":
        return None
    return known_peak_tflops(torch.cuda.get_device_name(device))


def known_peak_tflops(name: str) -> float | None:
    """The dense bf16 and fp16 peak of the GPU with this name; None where it is not known, as for a part (MIG) of a GPU."""
    return next((peak for pattern, peak in PEAK_TFLOPS.items() if re.fullmatch(pattern, name)), None)


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
