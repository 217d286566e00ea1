"""The highway's read equals its formula; in a bf16 model everything but the rounding of states to bf16 happens in fp32."""

import pytest
import torch
from torch import Tensor

from megamesh.kernels.highway import highway_read

B, S, D, N, SOURCES = 2, 3, 64, 5, 4
ROUNDED_ONCE = dict(rtol=2**-8, atol=1e-4)  # sums in bf16 are several times as far off
FP32 = dict(rtol=1e-5, atol=1e-5)


def plain(read_BSN: Tensor, writes_BSN: list[Tensor], sources_BSD: list[Tensor]) -> Tensor:
    first_BSN = torch.zeros_like(read_BSN)
    first_BSN[..., 0] = 1
    written = zip([first_BSN, *writes_BSN], sources_BSD, strict=True)
    return sum(torch.einsum("bsn,bsn,bsd->bsd", read_BSN, write_BSN, source_BSD) for write_BSN, source_BSD in written)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_value_and_gradients(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    scalars = torch.promote_types(dtype, torch.float32)
    routes = [torch.randn(B, S, N, generator=draw).softmax(-1).to(scalars) for _ in range(SOURCES)]
    sources = [torch.randn(B, S, D, generator=draw).to(dtype) for _ in range(SOURCES)]
    grad_BSD = torch.randn(B, S, D, generator=draw).to(dtype)

    def run(function, leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
        read, *writes = leaves[:SOURCES]
        out = function(read, writes, leaves[SOURCES:])
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    mine = run(highway_read, [tensor.clone().requires_grad_() for tensor in (*routes, *sources)], grad_BSD)
    exact = run(plain, [tensor.double().requires_grad_() for tensor in (*routes, *sources)], grad_BSD.double())
    for found, expected in zip(mine, exact, strict=True):
        assert found.dtype == (scalars if found.shape[-1] == N else dtype)
        if dtype == torch.float64:
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        else:
            tolerance = FP32 if found.shape[-1] == N else ROUNDED_ONCE
            torch.testing.assert_close(found.double(), expected, **tolerance)
