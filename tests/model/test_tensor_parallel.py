"""A model divided over the tensor axis is the same function as the whole one: loss, every gradient, logits, in float64.

Pruned: every scheme runs with one kind of blocks and every kind of blocks with mesh and without recursion, each at 2 and 4 ranks, states
replicated and split. Optimizer steps, ZeRO and reduced precision are in tests/engine/test_tensor_parallel.py.
"""

import pytest
import torch
from torch import Tensor

from megamesh.config.schemes import names
from tests.distributed import run
from tests.model.sharded import BLOCKS, Case, batch, gather, loss_and_gradients

SCHEMES = [None, *names(), "residual+anchor*"]
PAIRS = [(scheme, "MHA, sequential") for scheme in SCHEMES] + [
    (scheme, blocks) for blocks in list(BLOCKS)[1:] for scheme in (None, "mesh")
]


def _divided(case: Case) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
    module = case.build(case.axis())
    specs = module.shards()
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    loss, gradients = loss_and_gradients(module)
    with torch.no_grad():
        logits = module.logits(batch()[0])
    return loss, gather(gradients, specs, gradients=True), gather(weights, specs, gradients=False), logits


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["replicated", "sequence parallel"])
@pytest.mark.parametrize(("scheme", "blocks"), PAIRS)
@pytest.mark.parametrize("size", [2, 4])
def test_loss_gradients_and_logits_are_those_of_one_process(
    size: int, scheme: str, blocks, sequence_parallel: bool
) -> None:
    case = Case(scheme, blocks, sequence_parallel)
    module = case.build()
    expected_loss, expected = loss_and_gradients(module)
    with torch.no_grad():
        expected_logits = module.logits(batch()[0])
    for loss, gradients, weights, logits in run(size, _divided, case):
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-12)
        assert gradients.keys() == weights.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )
            assert torch.equal(weights[name], module.get_parameter(name)), f"{name} did not start from the same weights"
