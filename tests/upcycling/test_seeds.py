"""Which layers seed a recursive model, and how near its routers start to plain recursion."""

import itertools

import pytest
import torch

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.recursion import parse_recursion
from megamesh.errors import ConfigError
from megamesh.model.init import initial_value, plain_value
from megamesh.model.recursion.highway import Highway
from megamesh.model.recursion.scheme import build_routers, build_scheme
from megamesh.model.recursion.schemes.mesh_start import (
    bias_for,
    deviation,
    read_coefficients,
    unchosen_weight,
)
from megamesh.upcycling.seeds import CORE_RULES, Seeds, average, choose_seeds, lower, stepwise, upper

MODEL = ModelConfig(num_layers=4, hidden_size=32, num_attention_heads=4, max_position_embeddings=16)


def seeds(notation: str, num_layers: int, core_from: str) -> Seeds:
    return choose_seeds(parse_recursion(notation), num_layers, core_from)


def test_rules_as_written_by_hand() -> None:
    assert stepwise(16, 8) == [(0,), (2,), (4,), (6,), (9,), (11,), (13,), (15,)]
    assert stepwise(6, 4) == [(0,), (2,), (3,), (5,)]
    assert stepwise(4, 2) == [(0,), (3,)] and stepwise(5, 1) == [(0,)]
    assert average(6, 2) == [(0, 2, 4), (1, 3, 5)]
    assert lower(6, 2) == [(0,), (1,)] and upper(6, 2) == [(4,), (5,)]


@pytest.mark.parametrize("rule", CORE_RULES)
def test_blocks_keep_the_order_of_the_middle(rule: str) -> None:
    for num_middle, num_blocks in itertools.product(range(1, 25), range(1, 25)):
        if num_blocks > num_middle or (rule == "average" and num_middle % num_blocks):
            continue
        chosen = CORE_RULES[rule](num_middle, num_blocks)
        assert len(chosen) == num_blocks
        assert all(one < other for one, other in itertools.pairwise(chosen))
        layers = sorted(layer for sources in chosen for layer in sources)
        assert set(layers) <= set(range(num_middle))
        if num_blocks == num_middle:
            assert chosen == [(layer,) for layer in range(num_middle)]
        if rule == "average":
            assert layers == list(range(num_middle))
        if rule == "stepwise" and num_blocks > 1:
            assert (layers[0], layers[-1]) == (0, num_middle - 1)
            gaps = {other - one for one, other in itertools.pairwise(layers)}
            assert max(gaps) - min(gaps) <= 1


def test_prelude_and_coda_are_the_ends_and_the_core_is_from_between() -> None:
    found = seeds("2+2R3+1", 9, "average")
    assert list(found.blocks()) == [
        ("prelude.0", (0,)), ("prelude.1", (1,)), ("core.0", (2, 4, 6)), ("core.1", (3, 5, 7)), ("coda.0", (8,)),
    ]  # fmt: skip
    assert found.source_names("core.1.mlp.up.weight") == [f"prelude.{i}.mlp.up.weight" for i in (3, 5, 7)]
    assert found.source_names("coda.0.attention.qkv.bias") == ["prelude.8.attention.qkv.bias"]
    assert found.source_names("embedding.weight") == ["embedding.weight"]
    assert found.source_names("routers.1.read.bias") == []


def test_layers_may_be_listed() -> None:
    assert seeds("1+3R2+1", 8, " 6, 2,2 ").core == ((6,), (2,), (2,))
    assert seeds("3+2R2+3", 7, "3,3").core == ((3,), (3,))  # the rules would need two layers between


def test_the_same_layers_in_the_same_order_are_known() -> None:
    assert all(seeds("1+2+2+1", 6, rule).same_layers and seeds("1+4R1+1", 6, rule).same_layers for rule in CORE_RULES)
    assert not any(seeds("1+2R2+1", 6, rule).same_layers for rule in CORE_RULES)
    assert not any(seeds("1+2+2+1", 8, rule).same_layers for rule in CORE_RULES if rule != "average")
    assert not seeds("1+2+2+1", 6, "1,2,4,3").same_layers


@pytest.mark.parametrize(
    ("notation", "num_layers", "core_from", "text"),
    [
        ("4+2R2+4", 7, "lower", "keep 8 of the source's 7 layers"),
        ("2+4R2+2", 7, "stepwise", "the 3 between them cannot seed a core of 4 blocks"),
        ("1+2R2+1", 7, "average", "the 5 layers between prelude and coda are not a multiple of the core's 2 blocks"),
        ("1+2R2+1", 6, "middle", "use stepwise, average, lower, upper, or list 2 layers"),
        ("1+2R2+1", 6, "2", "lists 1 layers, the core has 2 blocks"),
        ("1+2R2+1", 6, "1 2", "'1 2' is not a rule"),
        ("1+2R2+1", 6, "1 2,3", "'1 2,3' is not a rule"),
        ("1+2R2+1", 6, "1,,2", "'1,,2' is not a rule"),
        ("1+2R2+1", 6, "2,6", "the source's layers are 0 to 5, there is no 6"),
    ],
)
def test_what_cannot_be_is_refused(notation: str, num_layers: int, core_from: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        seeds(notation, num_layers, core_from)


def recursion_of(loops: int, slots: int, bias: float, scheme: str = "mesh") -> RecursionConfig:
    return RecursionConfig(
        recursion=f"1+1R{loops}+1",
        recursion_scheme=scheme,
        mesh_num_slots=slots,
        mesh_router_init="slot",
        mesh_router_slot_bias=bias,
    )


def started(recursion: RecursionConfig, hidden_size: int):
    """The scheme with routers as an upcycled model has them, in float64."""
    routers = build_routers(recursion, hidden_size).double()
    for name, parameter in routers.named_parameters():
        parameter.data = plain_value(f"routers.{name}", tuple(parameter.shape), MODEL, recursion, 1).double()
    return build_scheme(recursion, routers)


@pytest.mark.parametrize(("loops", "slots"), [(k, n) for k in (1, 2, 4) for n in range(1, k + 4)])
def test_coefficients_are_those_of_the_scheme(loops: int, slots: int) -> None:
    """Each state is a unit vector of its own, so that a read shows what it takes of which."""
    scheme, highway = started(recursion_of(loops, slots, bias=1.5), loops + 2), Highway()
    unit = torch.eye(loops + 2, dtype=torch.float64)
    reads = [scheme.enter(highway, unit[:1], unit[1:2])]
    reads += [scheme.advance(highway, t, unit[t + 2 : t + 3]) for t in range(loops)]
    for read, expected in zip(reads, read_coefficients(loops, slots, 1.5), strict=True):
        assert read[0, : len(expected)].tolist() == pytest.approx(
            expected, rel=1e-6
        )  # routers answer in fp32 precision or better
        assert not read[0, len(expected) :].any()


@pytest.mark.parametrize(("loops", "slots"), [(1, 3), (2, 4), (2, 5), (4, 7)])
def test_reads_are_as_close_as_is_said(loops: int, slots: int) -> None:
    for bound in (0.1, 0.01, 1e-4):
        bias = bias_for(loops, slots, bound)
        assert 0.8 * bound < deviation(loops, slots, bias) <= bound
        assert deviation(loops, slots, bias) <= (2 * slots + 2 * loops - 1) * 2.718281828**-bias


def test_with_few_slots_the_first_reads_are_near_and_later_ones_add_the_oldest() -> None:
    coefficients = read_coefficients(num_loops=3, num_slots=3, bias=20.0)
    expected = [[0, 1], [0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 0, 1]]
    assert [[round(value, 6) for value in row] for row in coefficients] == expected
    assert deviation(3, 3, 20.0) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("parameter", ["write.weight", "write.bias", "read.weight", "read.bias"])
def test_mesh_starts_as_the_configuration_says(step: int, parameter: str) -> None:
    """What is recorded, mesh_router_init slot and its bias, is what was done."""
    name, recursion = f"routers.{step}.{parameter}", recursion_of(2, 5, bias=7.2)
    shape = (5, 32) if parameter.endswith("weight") else (5,)
    plain = plain_value(name, shape, MODEL, recursion, 1)
    assert torch.equal(plain, initial_value(name, shape, MODEL, recursion, 1))


def test_static_and_dynamic_start_as_plain_recursion_exactly() -> None:
    h_emb, h_pre, h_m = torch.randn(3, 4, 8, dtype=torch.float64)
    for kind in ("static", "dynamic"):
        scheme, highway = started(recursion_of(2, 5, 4.0, kind), 8), Highway()
        assert torch.equal(scheme.enter(highway, h_emb, h_pre), h_pre)
        assert torch.equal(scheme.advance(highway, 0, h_m), h_m)


def test_gradients_of_routers_shrink_as_is_said_and_no_more() -> None:
    """As the weight of the slots that are not chosen: what a larger bias costs."""
    torch.manual_seed(0)
    slots, states = 5, torch.randn(4, 64, 8, dtype=torch.float64)
    norms, weights = [], []
    for bias in (4.0, 7.2, 10.0):
        scheme, highway = started(recursion_of(1, slots, bias), 8), Highway()
        scheme.enter(highway, states[0], states[1])
        h = scheme.advance(highway, 0, states[2])
        (h * states[3]).mean().backward()
        norms.append(float(torch.stack([parameter.grad.norm() for parameter in scheme.routers.parameters()]).norm()))
        weights.append(unchosen_weight(slots, bias))
    for (norm, weight), (next_norm, next_weight) in itertools.pairwise(zip(norms, weights, strict=True)):
        assert next_norm / norm == pytest.approx(next_weight / weight, rel=0.3)
