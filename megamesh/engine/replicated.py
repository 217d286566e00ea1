"""Gradients of parameters that every tensor-parallel rank holds whole: made the same on all of them, in one collective per step.

    fragments of all replicated parameters ──× 1, or 1/size──▶ one flat buffer ──all-reduce over tp──▶ back into the fragments

A rank's gradient of such a parameter is either whole (it met all tokens and heads: the mean is taken, which also evens out what kernels
round differently) or partial (routers, row biases, norms under sequence parallelism: the sum is taken). Afterwards the fragments are
bit-identical over the axis, and so the weights stay. Tensor ranks divide their state alike, so fragments cover the same ranges; where
a data-parallel rank's range holds nothing replicated, there is nothing to sum.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megamesh.parallel.collectives import start_all_reduce
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.shards import ShardSpec


@torch.no_grad()
def sum_replicated(gradients: Sequence[Tensor | None], specs: Sequence[ShardSpec], mesh: ProcessMesh) -> None:
    """Replace the gradient fragments of replicated parameters by their total over the tensor axis. A collective."""
    size = mesh.size("tp")
    pairs = [(gradient, spec) for gradient, spec in zip(gradients, specs, strict=True) if gradient is not None]
    found = [(gradient, spec.partial_gradient) for gradient, spec in pairs if spec.dim is None]
    if size == 1 or not found:
        return
    own = [gradient for gradient, _ in found]
    weights = [1.0 if partial else 1.0 / size for _, partial in found]
    flat = torch.cat(torch._foreach_mul(own, weights))
    start_all_reduce(flat, mesh.group("tp"), "replicated_gradients", "step").wait()
    torch._foreach_copy_(own, flat.split([gradient.numel() for gradient in own]))
