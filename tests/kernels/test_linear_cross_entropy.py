"""The chunked head-and-loss equals torch's cross entropy on all logits, without ever holding them."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from megamesh.kernels.linear_cross_entropy import linear_cross_entropy

T, D, V = 23, 3, 17


def _inputs(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(T, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (T,), generator=generator)
    mask = (torch.rand(T, generator=generator) > 0.3).float()
    return h, weight, labels, mask


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
def test_loss_and_gradients_equal_the_plain_form(chunk: int) -> None:
    h, weight, labels, mask = _inputs()
    loss = linear_cross_entropy(h, weight, labels, mask, chunk)
    expected = (F.cross_entropy(h @ weight.T, labels, reduction="none") * mask).sum() / mask.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for mine, oracle in zip(
        torch.autograd.grad(3 * loss, (h, weight)), torch.autograd.grad(3 * expected, (h, weight)), strict=True
    ):
        torch.testing.assert_close(mine, oracle, rtol=1e-12, atol=1e-14)


def test_bf16_loss_is_computed_in_fp32() -> None:
    h, weight, labels, mask = _inputs(torch.bfloat16)
    loss = linear_cross_entropy(h, weight, labels, mask, 4)
    logits = F.linear(h, weight).double()
    expected = (F.cross_entropy(logits, labels, reduction="none") * mask).sum() / mask.sum()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected.item()) < 1e-6 * expected.item()
    grad_h, grad_weight = torch.autograd.grad(loss, (h, weight))
    oracle_h, oracle_weight = torch.autograd.grad(expected, (h, weight))
    assert torch.linalg.norm((grad_h - oracle_h).float()) < 2e-2 * torch.linalg.norm(oracle_h.float())
    assert torch.linalg.norm((grad_weight - oracle_weight).float()) < 2e-2 * torch.linalg.norm(oracle_weight.float())


def test_a_mask_that_counts_nothing_gives_zero() -> None:
    h, weight, labels, _ = _inputs()
    loss = linear_cross_entropy(h, weight, labels, torch.zeros(T), 5)
    grads = torch.autograd.grad(loss, (h, weight))
    assert loss.item() == 0.0 and all(grad.abs().max().item() == 0.0 for grad in grads)


def test_full_logits_never_exist() -> None:
    class LargestTensor(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == V:
                    self.rows = max(self.rows, tensor.shape[0])
            return out

    h, weight, labels, mask = _inputs()
    with LargestTensor() as seen:
        linear_cross_entropy(h, weight, labels, mask, 4).backward()
    assert seen.rows == 4
