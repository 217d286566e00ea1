"""Linear layers and the embedding, divided over the tensor axis; plain layers at size 1.

    h_TD ──ColumnParallelLinear──▶ [T, F/size] ──RowParallelLinear──▶ this rank's share of [T, D] ──tp.reduce──▶ h_TD

Megatron's pair (Shoeybi et al. 2019): columns first, then rows, and one sum at the end. The sum is left to the block, so that shares of
attention and MLP can be added before they are summed. Each layer says how its parameters sit in the global ones (`place`);
weights are unset until `model/init.py` draws them.

Letters: T tokens, D hidden size, F columns, V padded vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.parallel.collectives import column_linear
from megamesh.parallel.shards import Block, ShardSpec
from megamesh.parallel.tensor import SINGLE, TensorParallel


class ColumnParallelLinear(nn.Linear):
    """x·Wᵀ + b for this rank's rows of W. `num_parts`: W holds that many matrices (gate and value), each divided by itself."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, tp: TensorParallel = SINGLE, num_parts: int = 1
    ):
        super().__init__(in_features, tp.share(out_features), bias=bias)
        self.tp, self.num_parts, self.total = tp, num_parts, out_features

    def forward(self, x_TD: Tensor) -> Tensor:
        """States [T, D] (this rank's tokens under sequence parallelism) → [T, F/size] for all tokens."""
        if self.tp.group is None:
            return F.linear(x_TD, self.weight, self.bias)
        sequence_parallel = self.tp.sequence_parallel
        return column_linear(x_TD, self.weight, self.bias, self.tp.group, sequence_parallel=sequence_parallel)

    def place(self, name: str, parameter: str) -> ShardSpec:
        """How `weight` or `bias` sits in the global parameter `name`: each part's rows are cut by themselves."""
        rows, own = self.total // self.num_parts, self.out_features // self.num_parts
        blocks = tuple(Block(part * own, part * rows + self.tp.rank * own, own) for part in range(self.num_parts))
        shape = (self.total, self.in_features) if parameter == "weight" else (self.total,)
        return ShardSpec(name, shape, 0, blocks)


class RowParallelLinear(nn.Linear):
    """This rank's share of x·Wᵀ + b: its columns of W; the bias is in the first rank's share, so that the sum has it once."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, tp: TensorParallel = SINGLE):
        super().__init__(tp.share(in_features), out_features, bias=bias)
        self.tp, self.total = tp, in_features

    def forward(self, x: Tensor) -> Tensor:
        """[T, F/size] → a share [T, D], to be summed by `TensorParallel.reduce`."""
        # Zero times the bias, not none: its gradient must exist on every rank.
        bias = self.bias if self.bias is None or self.tp.rank == 0 else self.bias * 0
        return F.linear(x, self.weight, bias)

    def place(self, name: str, parameter: str) -> ShardSpec:
        """How `weight` or `bias` sits in the global parameter `name`. Only the first rank's gradient of the bias is not zero."""
        if parameter == "bias":
            return ShardSpec(name, (self.out_features,), writes=self.tp.rank == 0, partial_gradient=True)
        block = Block(0, self.tp.rank * self.in_features, self.in_features)
        return ShardSpec(name, (self.out_features, self.total), 1, (block,))


class VocabParallelEmbedding(nn.Embedding):
    """This rank's share of an embedding: zero for the tokens whose rows other ranks hold.

    `num_rows` is the padded vocabulary; rows from `vocab_size` on are padding: zero, never looked up, in no checkpoint.
    """

    def __init__(self, vocab_size: int, num_rows: int, hidden_size: int, tp: TensorParallel = SINGLE):
        super().__init__(tp.share(num_rows), hidden_size)
        self.tp, self.vocab_size = tp, vocab_size

    def forward(self, tokens_T: Tensor) -> Tensor:
        """Token ids [T] → a share [T, D], to be summed by `TensorParallel.reduce`."""
        if self.tp.group is None:
            return super().forward(tokens_T)
        row_T = tokens_T - self.tp.rank * self.num_embeddings
        elsewhere_T = (row_T < 0) | (row_T >= self.num_embeddings)
        h_TD = super().forward(row_T.masked_fill(elsewhere_T, 0))
        return h_TD.masked_fill(elsewhere_T[..., None], 0)

    def place(self, name: str, _parameter: str) -> ShardSpec:
        """How the weight sits in the global parameter `name`."""
        return place_vocabulary(name, self.weight, self.vocab_size, self.tp)


def place_vocabulary(name: str, weight: Tensor, vocab_size: int, tp: TensorParallel) -> ShardSpec:
    """The place of a weight [V/size, D] whose rows are token ids, without its padding."""
    first = tp.rank * weight.shape[0]
    block = Block(0, first, num_real_rows(weight.shape[0], vocab_size, tp))
    return ShardSpec(name, (vocab_size, weight.shape[1]), 0, (block,))


def num_real_rows(num_rows: int, vocab_size: int, tp: TensorParallel) -> int:
    """How many of this rank's `num_rows` rows of the vocabulary belong to token ids."""
    real = min(num_rows, vocab_size - tp.rank * num_rows)
    assert real > 0, f"tensor rank {tp.rank} holds padding only; the configuration should have been refused"
    return real


def shard_specs(module: nn.Module, *, tp: TensorParallel, partial: set[str]) -> dict[str, ShardSpec]:
    """The place of every parameter by its global name.

    Layers above speak for themselves; all other parameters are replicated, and those named in `partial` have gradients that cover
    only part of the tokens or heads on each rank.
    """
    specs: dict[str, ShardSpec] = {}
    for name, parameter in module.named_parameters():
        path, _, kind = name.rpartition(".")
        place = getattr(module.get_submodule(path), "place", None)
        specs[name] = (
            place(name, kind)
            if place is not None
            else ShardSpec(name, tuple(parameter.shape), writes=tp.rank == 0, partial_gradient=name in partial)
        )
    return specs
