"""Every collective does, forward and backward, what its line in the module says: compared with the same sums on whole tensors."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megamesh.parallel import collectives as c
from megamesh.parallel.collectives import Kind, Running, count_communication
from tests.distributed import run

T, D, SIZE = 6, 3, 2


def of_rank(rank: int, *shape: int, seed: int = 0) -> Tensor:
    """What a rank holds; every process can draw every rank's."""
    generator = torch.Generator().manual_seed(100 * seed + rank)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def group() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def _apply(name: str, shape: tuple[int, ...], grad_shape: tuple[int, ...]) -> tuple[Tensor, Tensor, list[tuple]]:
    rank = dist.get_rank()
    x = of_rank(rank, *shape).requires_grad_()
    function: Callable[[Tensor, dist.ProcessGroup], Tensor] = getattr(c, name)
    incoming = of_rank(rank, *grad_shape, seed=1)
    with count_communication() as counted:
        y = function(x * 1, group())  # a leaf could not be summed in place
        (gradient,) = torch.autograd.grad(y, x, incoming)
    assert torch.equal(incoming, of_rank(rank, *grad_shape, seed=1)), "others may hold the incoming gradient"
    return y.detach(), gradient, [(*kind, calls, counted.num_bytes[kind]) for kind, calls in counted.calls.items()]


WHOLE, OWN = (T, D), (T // SIZE, D)
WHOLE_BYTES = T * D * 8


@pytest.mark.parametrize(
    ("name", "shape", "grad_shape", "forward", "backward", "operations"),
    [
        ("sum_shares", WHOLE, WHOLE, "sum", "own", ["all_reduce", None]),
        ("sum_shares_to_tokens", WHOLE, OWN, "sum, own tokens", "all tokens", ["reduce_scatter", "all_gather"]),
        ("share_states", WHOLE, WHOLE, "own", "sum", [None, "all_reduce"]),
        ("gather_tokens", OWN, WHOLE, "all tokens", "sum, own tokens", ["all_gather", "reduce_scatter"]),
    ],
)
def test_forward_and_backward(name: str, shape, grad_shape, forward: str, backward: str, operations) -> None:
    answers = run(SIZE, _apply, name, shape, grad_shape)
    inputs = [of_rank(rank, *shape) for rank in range(SIZE)]
    grads = [of_rank(rank, *grad_shape, seed=1) for rank in range(SIZE)]
    for rank, (y, gradient, counted) in enumerate(answers):
        torch.testing.assert_close(y, _expected(forward, inputs, rank), rtol=0, atol=1e-15)
        torch.testing.assert_close(gradient, _expected(backward, grads, rank), rtol=0, atol=1e-15)
        expected = [
            (name, direction, operation, 1, WHOLE_BYTES)
            for direction, operation in zip(("forward", "backward"), operations, strict=True)
            if operation
        ]
        assert counted == expected


def _expected(rule: str, tensors: list[Tensor], rank: int) -> Tensor:
    if rule == "all tokens":
        return torch.cat(tensors)
    total = sum(tensors, torch.zeros_like(tensors[0])) if rule.startswith("sum") else tensors[rank]
    return total.chunk(SIZE)[rank] if rule.endswith("own tokens") else total


def _split(num_views: int) -> tuple[list[Tensor], list[bool], tuple[Tensor, ...], int]:
    states = [of_rank(0, T, D).requires_grad_(), of_rank(0, T, 2 * D)[:, ::2].requires_grad_()]
    with count_communication() as counted:
        parts = c.split_tokens(group(), *states, num_views=num_views)
        grads = torch.autograd.grad(parts, states, [of_rank(dist.get_rank(), *OWN, seed=seed) for seed in (1, 2)])
    lets_go = [part.untyped_storage().nbytes() == part.numel() * 8 for part in parts]
    return (
        [part.detach() for part in parts],
        lets_go,
        grads,
        counted.calls[Kind("split_tokens", "backward", "all_gather")],
    )


def _count_in_a_count() -> tuple[int, int]:
    with count_communication() as outer:
        with count_communication() as inner:
            c.start_all_reduce(torch.ones(1), group(), "inside", "step").wait()
        c.start_all_reduce(torch.ones(1), group(), "outside", "step").wait()
    return outer.calls.total(), inner.calls.total()


def test_a_count_inside_another_ends_by_itself() -> None:
    assert run(SIZE, _count_in_a_count) == [(2, 1)] * SIZE


@pytest.mark.parametrize("num_views", [0, 1, 2])
def test_split_tokens_gives_views_and_copies_and_gathers_all_gradients_at_once(num_views: int) -> None:
    states = [of_rank(0, T, D), of_rank(0, T, 2 * D)[:, ::2]]
    for rank, (parts, lets_go, grads, num_gathers) in enumerate(run(SIZE, _split, num_views)):
        assert all(torch.equal(part, state.chunk(SIZE)[rank]) for part, state in zip(parts, states, strict=True))
        assert lets_go == [index >= num_views for index in range(2)], (
            "a view keeps the whole state alive, a copy does not"
        )
        for seed, grad in zip((1, 2), grads, strict=True):
            assert torch.equal(grad, torch.cat([of_rank(other, *OWN, seed=seed) for other in range(SIZE)]))
        assert num_gathers == 1


def _join(use_whole: bool, use_view: bool) -> tuple[Tensor, Tensor, bool, Tensor, list[tuple]]:
    own = of_rank(dist.get_rank(), *OWN).requires_grad_()
    with count_communication() as counted:
        whole, view = c.join_tokens(own * 1, group())
        used = [(whole, of_rank(0, *WHOLE, seed=1))] * use_whole + [
            (view, of_rank(dist.get_rank(), *OWN, seed=2))
        ] * use_view
        (grad,) = torch.autograd.grad([output for output, _ in used], own, [gradient for _, gradient in used])
    same_memory = whole.untyped_storage().data_ptr() == view.untyped_storage().data_ptr()
    return whole.detach(), view.detach().clone(), same_memory, grad, list(counted.calls.items())


@pytest.mark.parametrize(("use_whole", "use_view"), [(True, True), (True, False), (False, True)])
def test_join_tokens_gathers_and_shows_its_part_in_the_same_memory(use_whole: bool, use_view: bool) -> None:
    """The gradient of the whole is the same on all ranks, so each takes its tokens of it; that of the view is the rank's own."""
    for rank, (whole, view, same_memory, grad, calls) in enumerate(run(SIZE, _join, use_whole, use_view)):
        assert torch.equal(whole, torch.cat([of_rank(other, *OWN) for other in range(SIZE)]))
        assert torch.equal(view, of_rank(rank, *OWN)) and same_memory
        expected = use_whole * of_rank(0, *WHOLE, seed=1).chunk(SIZE)[rank] + use_view * of_rank(rank, *OWN, seed=2)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-15)
        assert calls == [(Kind("join_tokens", "forward", "all_gather"), 1)]


def _column(sequence_parallel: bool, bias: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    rank = dist.get_rank()
    x = (of_rank(rank, *OWN) if sequence_parallel else of_rank(0, *WHOLE)).requires_grad_()
    inputs = [x, of_rank(rank, 4, D, seed=1).requires_grad_()] + (
        [of_rank(rank, 4, seed=2).requires_grad_()] if bias else []
    )
    y = c.column_linear(inputs[0], inputs[1], inputs[2] if bias else None, group(), sequence_parallel=sequence_parallel)
    return y.detach(), torch.autograd.grad(y, inputs, of_rank(rank, T, 4, seed=3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_column_linear_is_the_linear_of_all_rows(sequence_parallel: bool, bias: bool) -> None:
    answers = run(SIZE, _column, sequence_parallel, bias)
    x = torch.cat([of_rank(rank, *OWN) for rank in range(SIZE)]) if sequence_parallel else of_rank(0, *WHOLE)
    weight = torch.cat([of_rank(rank, 4, D, seed=1) for rank in range(SIZE)])
    rows = torch.cat([of_rank(rank, 4, seed=2) for rank in range(SIZE)])
    inputs = [tensor.requires_grad_() for tensor in ([x, weight, rows] if bias else [x, weight])]
    y = torch.nn.functional.linear(x, weight, rows if bias else None)
    grads = torch.autograd.grad(y, inputs, torch.cat([of_rank(rank, T, 4, seed=3) for rank in range(SIZE)], dim=1))
    for rank, (found, (grad_x, *found_grads)) in enumerate(answers):
        torch.testing.assert_close(found, y.detach().chunk(SIZE, 1)[rank], rtol=1e-13, atol=1e-14)
        own = grads[0].chunk(SIZE)[rank] if sequence_parallel else grads[0]
        torch.testing.assert_close(grad_x, own, rtol=1e-13, atol=1e-14)
        for mine, oracle in zip(found_grads, grads[1:], strict=True):
            torch.testing.assert_close(mine, oracle.chunk(SIZE)[rank], rtol=1e-13, atol=1e-14)


class _Log(TorchDispatchMode):
    """The order in which matrix products run and collectives begin and end."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.events.append("product")
        return func(*args, **(kwargs or {}))

    def watch(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        start, events = getattr(c, name), self.events

        def watched(*arguments) -> Running:
            events.append(name)
            running = start(*arguments)

            class Work:
                def wait(self) -> None:
                    events.append("wait")
                    running.work.wait()

            return Running(running.result, Work())

        monkeypatch.setattr(c, name, watched)


def _backward_events(sequence_parallel: bool) -> list[str]:
    x = of_rank(0, *(OWN if sequence_parallel else WHOLE)).requires_grad_()
    weight = of_rank(dist.get_rank(), 4, D, seed=1).requires_grad_()
    y = c.column_linear(x, weight, None, group(), sequence_parallel=sequence_parallel)
    with pytest.MonkeyPatch.context() as monkeypatch, _Log() as log:
        for name in ("start_all_reduce", "start_all_gather", "start_reduce_scatter"):
            log.watch(monkeypatch, name)
        y.backward(torch.ones_like(y))
    return log.events


@pytest.mark.parametrize(
    ("sequence_parallel", "events"),
    [
        (False, ["product", "start_all_reduce", "product", "wait"]),
        (True, ["start_all_gather", "product", "wait", "start_reduce_scatter", "product", "wait"]),
    ],
)
def test_sums_and_gathers_run_beside_the_matrix_products(sequence_parallel: bool, events: list[str]) -> None:
    """The gradient of x is on its way while that of the weight is computed; x is gathered again meanwhile."""
    assert run(SIZE, _backward_events, sequence_parallel) == [events] * SIZE
