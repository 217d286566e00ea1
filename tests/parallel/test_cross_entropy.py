"""The chunked head-and-loss equals torch's cross entropy on all logits, without ever holding them."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from megamesh.parallel.cross_entropy import vocab_parallel_cross_entropy

T, D, V = 23, 3, 17


def _inputs(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(T, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (T,), generator=generator)
    draws = torch.rand(T, generator=generator)
    return h, weight, labels, torch.where(draws > 0.3, 3 * draws, 0)


def _loss(h, weight, labels, weights, chunk):
    return vocab_parallel_cross_entropy(h, weight, labels, weights, chunk_tokens=chunk, num_real_rows=V)


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
def test_loss_and_gradients_equal_the_plain_form(chunk: int) -> None:
    h, weight, labels, weights = _inputs()
    loss = _loss(h, weight, labels, weights, chunk)
    expected = (F.cross_entropy(h @ weight.T, labels, reduction="none") * weights).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for mine, oracle in zip(
        torch.autograd.grad(3 * loss, (h, weight)), torch.autograd.grad(3 * expected, (h, weight)), strict=True
    ):
        torch.testing.assert_close(mine, oracle, rtol=1e-12, atol=1e-14)


def test_bf16_loss_and_sum_over_chunks_are_fp32() -> None:
    h, weight, labels, weights = _inputs(torch.bfloat16)
    loss = _loss(h, weight, labels, weights, 1)
    exact_h, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (h, weight))
    rounded_logits = (exact_h @ exact_weight.T).bfloat16().double()
    expected = (F.cross_entropy(rounded_logits, labels, reduction="none") * weights).mean()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected.item()) < 1e-6 * expected.item()
    found, exact = (
        torch.autograd.grad(loss, (h, weight)),
        torch.autograd.grad(expected, (exact_h, exact_weight)),
    )
    for mine, oracle in zip(found, exact, strict=True):
        # one rounding to bf16 is 2e-3; summing the weight's gradient over the chunks in bf16 gives 5e-3
        assert torch.linalg.norm(mine.double() - oracle) < 3.5e-3 * torch.linalg.norm(oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_takes_no_second_gradient_of_the_states(dtype: torch.dtype) -> None:
    """It begins when all activations are alive: the peak of memory."""
    kept = []
    h, weight, labels, weights = _inputs(dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss = _loss(h, weight, labels, weights, 5)
    (grad,) = torch.autograd.grad(loss, h)
    assert grad.data_ptr() in {tensor.data_ptr() for tensor in kept}


def test_weights_of_zero_give_zero() -> None:
    h, weight, labels, _ = _inputs()
    loss = _loss(h, weight, labels, torch.zeros(T), 5)
    grads = torch.autograd.grad(loss, (h, weight))
    assert loss.item() == 0.0 and all(grad.abs().max().item() == 0.0 for grad in grads)


def test_evaluation_spends_nothing_on_gradients() -> None:
    h, weight, labels, weights = _inputs()
    with FlopCounterMode(display=False) as training:
        _loss(h, weight, labels, weights, 4).backward()
    with FlopCounterMode(display=False) as evaluation, torch.no_grad():
        _loss(h, weight, labels, weights, 4)
    assert evaluation.get_total_flops() == 2 * T * D * V and training.get_total_flops() == 6 * T * D * V


def test_full_logits_never_exist() -> None:
    class LargestTensor(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == V:
                    self.rows = max(self.rows, tensor.shape[0])
            return out

    h, weight, labels, weights = _inputs()
    with LargestTensor() as seen:
        _loss(h, weight, labels, weights, 4).backward()
    assert seen.rows == 4
