"""Norms and means that are those of the whole model, or of the whole batch, on every layout: for hooks that measure.

    weights, moments    cut over tp, pp and (ZeRO) dp   norms_of_state      of every parameter of the model
    tensors like them   cut over tp and pp              norms_of_shards     of every parameter of the model
    gradients           reduced and cut as the weights  StepResult.grad_norms: every step has them
    activations, …      other tokens on other ranks     global_means        of named sums and counts

Every function is a collective of all ranks: all call it, in the same steps, also those that have nothing to tell. All get the same result.
"""

import math
from collections.abc import Iterable, Mapping

import torch.distributed as dist
from torch import Tensor

from megamesh.engine.engine import TrainingEngine
from megamesh.engine.zero_access import StateKey


def norms_of_state(engine: TrainingEngine, key: StateKey = "fp32") -> dict[str, float]:
    """L2 norm of every parameter's fp32 weights ("fp32"), or of its first or second moment ("exp_avg", "exp_avg_sq").

    Summed over tp (what ranks hold alike counts once), pp, and the ranges that ZeRO leaves to each data-parallel rank: right at every
    stage, 3 too, where a module's own weights are empty between steps.
    """
    if key != "fp32":
        engine.access.prepare_state()
    fragments = {name: engine.access.fragment(parameter, key) for name, parameter in engine.named_parameters()}
    pieces = {name: fragment.values for name, fragment in fragments.items() if fragment is not None}
    return engine.norms(pieces, alike_over_data_parallel=engine.access.replicated)


def norms_of_shards(engine: TrainingEngine, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """L2 norm of tensors that are cut as the parameters of these names are, and the same on all data-parallel ranks.

    Summed over tp (what ranks hold alike counts once) and pp; 0 for parameters that no rank names. Differences of weights are such
    tensors; gradients inside a step are not: they differ between data-parallel ranks until they are reduced (StepResult.grad_norms).
    """
    return engine.norms({name: tensor.detach() for name, tensor in tensors.items()}, alike_over_data_parallel=True)


def combined_norm(norms: Iterable[float]) -> float:
    """The norm of several tensors as one: √(Σ norm²). No collective."""
    return math.sqrt(sum(norm**2 for norm in norms))


def global_means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Mean of each named number over all ranks that have it, from each rank's (sum, count): Σ sum / Σ count.

    Over dp and, where states are split by tokens (sequence_parallel), over tp every rank has other elements: all count. Ranks that hold
    the same elements all report them, which changes no mean. Of pipeline ranks those report that have the layer. A root mean square is
    the root of the mean of squares, so give this function squares. A name whose counts are all 0 has no mean and is left out. Look at
    the outputs of blocks and norms: those of attention and MLP are, under tensor parallelism, a rank's share of a sum.
    """
    everyones: list[Mapping[str, tuple[float, float]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyones, {name: (float(total), float(count)) for name, (total, count) in sums.items()})
    names = dict.fromkeys(name for own in everyones for name in own)
    totals = {name: [own[name] for own in everyones if name in own] for name in names}
    counts = {name: sum(count for _, count in found) for name, found in totals.items()}
    return {name: sum(total for total, _ in totals[name]) / count for name, count in counts.items() if count}
