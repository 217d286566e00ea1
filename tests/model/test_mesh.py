"""The unrolled form of MeSH equals a buffer of slots, and costs next to no memory."""

import pytest
import torch
from torch import nn

from megamesh.config.keys import RecursionConfig
from megamesh.model.recursion.highway import Highway
from megamesh.model.recursion.scheme import Scheme, build_routers, build_scheme
from tests.model.slot_oracle import run_mesh

B, S, D = 2, 3, 5


def _recursion(loops: int, slots: int, transition: str = "h_emb") -> RecursionConfig:
    return RecursionConfig(recursion=f"1+1R{loops}+1", mesh_num_slots=slots, mesh_transition_input=transition)


def _unrolled(scheme: Scheme, h_emb, h_pre, core, loops: int) -> list[torch.Tensor]:
    highway = Highway()
    reads = [scheme.enter(highway, h_emb, h_pre)]
    for t in range(loops):
        reads.append(scheme.advance(highway, t, core(reads[-1])))
    return reads


@pytest.mark.parametrize("transition", ["h_emb", "prelude"])
@pytest.mark.parametrize(("loops", "slots"), [(k, n) for k in (1, 2, 3, 4) for n in range(1, k + 5)])
def test_unrolled_form_equals_the_slot_form(loops: int, slots: int, transition: str) -> None:
    torch.manual_seed(loops * 10 + slots)
    recursion = _recursion(loops, slots, transition)
    assert recursion.layout is not None
    routers = build_routers(recursion, D).double()
    core = nn.Sequential(nn.Linear(D, D), nn.Tanh()).double()
    inputs = [torch.randn(B, S, D, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    cotangents = [torch.randn(B, S, D, dtype=torch.float64) for _ in range(loops + 1)]
    leaves = [*inputs, *routers.parameters(), *core.parameters()]

    def outputs_and_gradients(reads: list[torch.Tensor]) -> list[torch.Tensor]:
        objective = sum((read * cotangent).sum() for read, cotangent in zip(reads, cotangents, strict=True))
        return [*reads, *torch.autograd.grad(objective, leaves)]

    scheme = build_scheme(recursion, routers)
    ours = outputs_and_gradients(_unrolled(scheme, *inputs, core, loops))
    oracle = outputs_and_gradients(run_mesh(*inputs, core, routers, slots, transition))
    for mine, expected in zip(ours, oracle, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_router_weights_are_fp32_in_a_bf16_model() -> None:
    torch.manual_seed(0)
    recursion = _recursion(2, 5)
    assert recursion.layout is not None
    routers = build_routers(recursion, 64).bfloat16()
    h = torch.randn(2, 4, 64, dtype=torch.bfloat16)
    write, read = routers[0](h)
    assert write.dtype == read.dtype == torch.float32
    exact = torch.softmax(h.double() @ routers[0].write.weight.double().T + routers[0].write.bias.double(), -1)
    torch.testing.assert_close(write.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_mixing_scalars_are_fp32_in_a_bf16_model(scheme: str) -> None:
    recursion = RecursionConfig(recursion="1+1R2+1", recursion_scheme=scheme)
    assert recursion.layout is not None
    mixer = build_routers(recursion, 64).bfloat16()[0]
    nn.init.normal_(mixer.weight)
    h = torch.randn(2, 4, 64, dtype=torch.bfloat16)
    exact = mixer.weight if scheme == "static" else h.double() @ mixer.weight.double().T + mixer.bias.double()
    found = mixer(h)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact.double(), rtol=1e-5, atol=1e-5)


def test_slot_init_approaches_plain_recursion() -> None:
    """As β grows, every state has a slot of its own and is the one that is read next: h(0) = h_pre, h(t+1) = h_m."""
    loops, beta = 3, 60.0
    recursion = _recursion(loops, loops + 2)
    assert recursion.layout is not None
    routers = build_routers(recursion, D).double()
    for step, router in enumerate(routers):
        for linear in (router.write, router.read):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            linear.bias.data[step + 1] = beta
    core = nn.Sequential(nn.Linear(D, D), nn.Tanh()).double()
    h_emb, h_pre = torch.randn(B, S, D, dtype=torch.float64), torch.randn(B, S, D, dtype=torch.float64)
    reads = _unrolled(build_scheme(recursion, routers), h_emb, h_pre, core, loops)
    expected = [h_pre]
    for _ in range(loops):
        expected.append(core(expected[-1]))
    for mine, plain in zip(reads, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-9)
