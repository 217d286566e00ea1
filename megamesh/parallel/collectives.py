"""Collectives over the tensor axis, as named autograd functions on [tokens, …] tensors.

    name                  forward                           backward
    sum_shares            all-reduce of every rank's share  identity
    sum_shares_to_tokens  reduce-scatter over tokens        all-gather
    share_states          identity                          all-reduce
    gather_tokens         all-gather                        reduce-scatter
    split_tokens          this rank's tokens                all-gather, one for all tensors
    join_tokens           all-gather                        this rank's tokens
    gather_columns        all-gather, joined in last dim    none
    column_linear         (all-gather,) x·Wᵀ                g·W summed over ranks while gᵀ·x is computed

All but gather_columns act on dim 0, contiguous, so nothing is transposed for the wire: between blocks a token's place does not matter,
and a rank may hold any contiguous part of the B·S tokens. The number of tokens must be divisible by the number of ranks.

Every call is counted where `count_communication` asks for it. Byte counts are those of the whole tensor: what an all-reduce sums, an
all-gather returns, a reduce-scatter receives. On the wire of each of n ranks a ring moves 2(n−1)/n of it for an all-reduce and
(n−1)/n for the others.

What blocks call is not compiled: torch.compile ends its graph there. (`not_compiled` is torch.compiler.disable, loaded at the first call.)
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo as not_compiled
from torch.autograd.function import once_differentiable

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]
Direction = Literal["forward", "backward", "step"]


class Kind(NamedTuple):
    """Who communicates, when, and how."""

    name: str
    direction: Direction
    operation: Operation


@dataclass
class Communication:
    """Calls and bytes of each kind, on this rank."""

    calls: Counter[Kind] = field(default_factory=Counter)
    num_bytes: Counter[Kind] = field(default_factory=Counter)


_counting: list[Communication] = []


@contextmanager
def count_communication() -> Iterator[Communication]:
    """Count this process's tensor-parallel collectives inside the block."""
    counter = Communication()
    _counting.append(counter)
    try:
        yield counter
    finally:
        _counting.pop()  # the innermost; `remove` would take the first that has counted the same


class Running(NamedTuple):
    """A collective under way: `result` is complete after `wait`."""

    result: Tensor
    work: Any

    def wait(self) -> Tensor:
        self.work.wait()
        return self.result


Start = Callable[[Tensor, dist.ProcessGroup, str, Direction], Running]


def start_all_reduce(x: Tensor, group: dist.ProcessGroup, name: str, direction: Direction) -> Running:
    """Begin to sum `x`, in place, over the ranks."""
    count_call(Kind(name, direction, "all_reduce"), x)
    return Running(x, dist.all_reduce(x, group=group, async_op=True))


def start_all_gather(x: Tensor, group: dist.ProcessGroup, name: str, direction: Direction) -> Running:
    """Begin to join [n, …] of every rank, in the order of the ranks, into [size·n, …]."""
    whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    count_call(Kind(name, direction, "all_gather"), whole)
    return Running(whole, dist.all_gather_single(whole, x.contiguous(), group=group, async_op=True))


def start_reduce_scatter(x: Tensor, group: dist.ProcessGroup, name: str, direction: Direction) -> Running:
    """Begin to sum [size·n, …] over the ranks and keep this rank's [n, …] of it."""
    own = x.new_empty(_own_length(x, group), *x.shape[1:])
    count_call(Kind(name, direction, "reduce_scatter"), x)
    return Running(own, dist.reduce_scatter_single(own, x.contiguous(), group=group, async_op=True))


def own_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's part of the tokens: a view."""
    length = _own_length(x, group)
    return x.narrow(0, group.rank() * length, length)


@not_compiled
def sum_shares(shares: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Forward: the sum of every rank's tensor, in place. Backward: identity."""
    result: Tensor = _SumShares.apply(shares, group)
    return result


@not_compiled
def sum_shares_to_tokens(shares: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Forward: this rank's tokens of the sum of every rank's tensor. Backward: all-gather."""
    result: Tensor = _Exchange.apply(shares, group, "sum_shares_to_tokens", start_reduce_scatter, start_all_gather)
    return result


def share_states(states: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Forward: identity. Backward: the sum of every rank's gradient."""
    result: Tensor = _ShareStates.apply(states, group)
    return result


def gather_tokens(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Forward: all ranks' tokens. Backward: this rank's tokens of the sum of every rank's gradient."""
    result: Tensor = _Exchange.apply(own, group, "gather_tokens", start_all_gather, start_reduce_scatter)
    return result


def split_tokens(group: dist.ProcessGroup, *states: Tensor, num_views: int = 0) -> tuple[Tensor, ...]:
    """Forward: this rank's tokens of states that all ranks hold. Backward: one all-gather.

    The first `num_views` are views, for states that something else keeps whole anyway; the others are copies that let go of the rest.
    """
    result: tuple[Tensor, ...] = _SplitTokens.apply(group, num_views, *states)
    return result


def join_tokens(own: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Forward: all ranks' tokens, and this rank's again as a view of them. Backward: this rank's tokens of a gradient that is the same
    on all ranks, plus the view's, which is this rank's own."""
    result: tuple[Tensor, Tensor] = _JoinTokens.apply(own, group)
    return result


def gather_columns(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Forward: […, n] of every rank, joined to […, size·n]. Backward: none, the result needs no gradient."""
    whole = start_all_gather(own.detach()[None], group, "gather_columns", "forward").wait()
    return whole.movedim(0, -2).flatten(-2)


@not_compiled
def column_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup, *, sequence_parallel: bool
) -> Tensor:
    """Forward: x·Wᵀ + b for this rank's rows of W and all tokens. Backward: the gradient of x summed over ranks.

    x [T, D] with the gradient [T, D]; under sequence parallelism [T/size, D], gathered here, and again in backward instead of being
    kept (Korthikanti et al. 2022, section 4.2.2). The sum runs while the weight's gradient is computed.
    """
    result: Tensor = _ColumnLinear.apply(x, weight, bias, group, sequence_parallel)
    return result


class _SumShares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shares: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.mark_dirty(shares)
        return start_all_reduce(shares, group, "sum_shares", "forward").wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Exchange(torch.autograd.Function):
    """Forward: a collective. Backward: its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, name: str, start: Start, transpose: Start) -> Tensor:
        ctx.group, ctx.name, ctx.start_transpose = group, name, transpose
        return start(x, group, name, "forward").wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.start_transpose(grad, ctx.group, ctx.name, "backward").wait(), None, None, None, None


class _ShareStates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return states.view_as(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)  # others may hold the incoming gradient
        return start_all_reduce(total, ctx.group, "share_states", "backward").wait(), None


class _SplitTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, num_views: int, *states: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        own = [own_tokens(state, group) for state in states]
        return (*own[:num_views], *(state.clone() for state in own[num_views:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        together = torch.stack(grads, dim=1)  # [n, states, …]: one collective, and still tokens first
        whole = start_all_gather(together, ctx.group, "split_tokens", "backward").wait()
        return None, None, *(grad.contiguous() for grad in whole.unbind(1))


class _JoinTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        ctx.group = group
        ctx.set_materialize_grads(False)
        whole = start_all_gather(own, group, "join_tokens", "forward").wait()
        return whole, own_tokens(whole, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_view: Tensor | None) -> tuple[Tensor | None, None]:
        own = None if grad is None else own_tokens(grad, ctx.group)
        return (grad_view if own is None else own if grad_view is None else own + grad_view), None


class _ColumnLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        group: dist.ProcessGroup,
        sequence_parallel: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.sequence_parallel, ctx.has_bias = group, sequence_parallel, bias is not None
        if sequence_parallel:
            x = start_all_gather(x, group, "column_linear", "forward").wait()
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if ctx.sequence_parallel:
            gathering = start_all_gather(x, ctx.group, "column_linear", "backward")
            share = grad @ weight
            x = gathering.wait()
            summing = start_reduce_scatter(share, ctx.group, "column_linear", "backward")
        else:
            summing = start_all_reduce(grad @ weight, ctx.group, "column_linear", "backward")
        grad_weight = grad.T @ x
        grad_bias = grad.sum(0) if ctx.has_bias else None
        return summing.wait(), grad_weight, grad_bias, None, None


def _own_length(x: Tensor, group: dist.ProcessGroup) -> int:
    assert x.shape[0] % group.size() == 0, f"{x.shape[0]} tokens for {group.size()} tensor-parallel ranks"
    return x.shape[0] // group.size()


def count_call(kind: Kind, x: Tensor) -> None:
    for counter in _counting:
        counter.calls[kind] += 1
        counter.num_bytes[kind] += x.numel() * x.element_size()
