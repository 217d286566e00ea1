"""The fp32 linear equals torch's in float64 and keeps no fp32 copy of a bf16 input."""

import torch
import torch.nn.functional as F

from megamesh.kernels.linear_fp32 import linear_fp32


def test_value_and_gradients_in_float64() -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 7), (4, 7), (4,))
    )
    cotangent = torch.randn(2, 3, 4, dtype=torch.float64)
    mine, oracle = linear_fp32(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(mine, oracle, rtol=1e-14, atol=0)
    for a, b in zip(
        torch.autograd.grad(mine, (x, weight, bias), cotangent),
        torch.autograd.grad(oracle, (x, weight, bias), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_bf16_input_gives_fp32_output_and_is_kept_as_it_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = (torch.randn(*s, dtype=torch.bfloat16, requires_grad=True) for s in ((4, 64), (4,)))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = linear_fp32(x, weight, bias)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), F.linear(x.double(), weight.double(), bias.double()), rtol=1e-5, atol=1e-5)
    assert {t.untyped_storage().data_ptr() for t in kept} == {
        x.untyped_storage().data_ptr(),
        weight.untyped_storage().data_ptr(),
    }
    grads = torch.autograd.grad(out.sum(), (x, weight, bias))
    assert [g.dtype for g in grads] == [torch.bfloat16] * 3
