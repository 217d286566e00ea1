"""Where layers go: every parameter on one rank, as balanced as the method says."""

import math
import re
from itertools import combinations_with_replacement, product
from random import Random

import pytest
import torch

from megamesh.config.keys import ModelConfig, ParallelConfig, RecursionConfig
from megamesh.config.pipeline import reach_every_rank
from megamesh.errors import ConfigError
from megamesh.model.build import empty_model
from megamesh.model.counts import parameter_shapes
from megamesh.model.recursion.highway import Highway
from megamesh.model.recursion.scheme import build_routers, build_scheme
from megamesh.pipeline.partition import build_partition, forward_costs
from megamesh.pipeline.simulator import simulate_step
from megamesh.pipeline.stages import ENTER, Costs, Partition
from tests.schemes import SCHEMES

VOCAB = 512


def configs(recursion: str | None = "4+8R2+4", scheme: str = "mesh", **keys) -> tuple[ModelConfig, RecursionConfig]:
    recur = RecursionConfig(recursion=recursion, recursion_scheme=scheme) if recursion else RecursionConfig()
    depth = recur.layout.compute_depth if recur.layout else 8
    options = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "no_weight_tying": True,
    } | keys
    return ModelConfig(num_layers=depth, **options), recur


def layers(partition: Partition) -> list[list[int]]:
    """Layers per pass and rank."""
    counts = [stage.num_blocks for stage in partition.stages]
    return [counts[first : first + partition.num_ranks] for first in range(0, len(counts), partition.num_ranks)]


@pytest.mark.parametrize("method", ["cost", "uniform", "parameters"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("recursion", "passes"), [("4+8R2+4", None), ("3+2R3+0", None), ("2+3+3+2", None), (None, 1), (None, 3)]
)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_parameter_is_on_exactly_one_rank(
    method: str, tied: bool, recursion: str | None, passes: int | None, num_ranks: int
) -> None:
    model, recur = configs(recursion, no_weight_tying=not tied, pos_emb="learned")
    parallel = ParallelConfig(pipe_parallel_size=num_ranks, pipe_partition_method=method, pipe_num_passes=passes)
    partition = build_partition(model, recur, parallel, VOCAB)
    found: dict[str, tuple[int, ...]] = {}
    for rank in range(num_ranks):
        part = empty_model(
            model, recur, VOCAB, device="meta", holds=lambda name, rank=rank: partition.holds(rank, name)
        )
        own = {name: tuple(parameter.shape) for name, parameter in part.named_parameters()}
        assert not own.keys() & found.keys()
        found |= own
    expected = parameter_shapes(model, recur, VOCAB)
    assert found == expected
    assert sum(math.prod(shape) for shape in found.values()) == sum(math.prod(shape) for shape in expected.values())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("recursion", ["4+8R2+4", "2+3+3+2", None])
def test_a_micro_batch_meets_every_compute_layer_once_and_in_order(tied: bool, recursion: str | None) -> None:
    model, recur = configs(recursion, no_weight_tying=not tied)
    partition = build_partition(model, recur, ParallelConfig(pipe_parallel_size=3), VOCAB)
    visited = [stage.first_layer + index for stage in partition.stages for index in range(stage.num_blocks)]
    assert visited == list(range(model.num_layers))
    assert [stage.index for stage in partition.stages] == list(range(3 * partition.num_passes))
    boundaries = [(stage.rank, stage.boundary) for stage in partition.stages if stage.boundary is not None]
    assert boundaries == ([(2, ENTER), (2, 0), (2, 1)] if recur.layout else [])
    assert [stage.rank for stage in partition.stages if stage.has_head] == [0 if tied else 2]


def test_numbers_that_are_written_down_are_taken() -> None:
    model, recur = configs("3+2R2+4")
    parallel = ParallelConfig(pipe_parallel_size=2, pipe_partition_method="3,0+0,2+1,3")
    assert layers(build_partition(model, recur, parallel, VOCAB)) == [[3, 0], [0, 2], [0, 2], [1, 3]]


def test_uniform_evens_out_layers_pass_by_pass() -> None:
    model, recur = configs("4+8R2+4")
    parallel = ParallelConfig(pipe_parallel_size=4, pipe_partition_method="uniform")
    assert layers(build_partition(model, recur, parallel, 10**6)) == [[1] * 4, [2] * 4, [2] * 4, [1] * 4]


def test_cost_takes_layers_from_the_rank_that_has_the_head() -> None:
    """A head as dear as two layers: the last rank has two layers less, at one and a half times its FLOPs three."""
    model, recur = configs("4+8R2+8")
    block = forward_costs(model, recur, VOCAB).block
    vocab = int(2 * block / (2 * model.hidden_size))
    partition = build_partition(model, recur, ParallelConfig(pipe_parallel_size=2), vocab)
    assert layers(partition)[:3] == [[2, 2], [4, 4], [4, 4]]
    assert layers(partition)[3] in ([5, 3], [6, 2])


def test_parameters_evens_out_weights() -> None:
    """The embedding is worth many layers, so that the first rank has fewer."""
    model, recur = configs(None, hidden_size=64, num_attention_heads=4)
    parallel = ParallelConfig(pipe_parallel_size=2, pipe_partition_method="parameters")
    vocab = 3 * 12 * 64  # embedding and head: three layers' weights each
    assert layers(build_partition(model, recur, parallel, vocab)) == [[4, 4]]
    tied, _ = configs(None, no_weight_tying=False)
    ((first, second), _) = layers(build_partition(tied, recur, parallel, vocab))
    assert first < second


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize("recursion", ["4+8R2+4", "8+24R3+8"])
def test_balanced_passes_are_never_slower_than_equal_numbers_of_layers(recursion: str | None, num_ranks: int) -> None:
    model, recur = configs(recursion, hidden_size=1024, num_attention_heads=16, max_position_embeddings=2048)
    costs = forward_costs(model, recur, 50304)

    def seconds(method: str) -> float:
        parallel = ParallelConfig(pipe_parallel_size=num_ranks, pipe_partition_method=method)
        return simulate_step(build_partition(model, recur, parallel, 50304), costs, 4 * num_ranks).seconds

    assert seconds("cost") <= seconds("uniform")


def test_a_rank_without_layers_is_refused() -> None:
    model, recur = configs("1+1R2+1")
    with pytest.raises(ConfigError) as caught:
        build_partition(model, recur, ParallelConfig(pipe_parallel_size=6), VOCAB)
    assert str(caught.value) == (
        "pipe_parallel_size=6 with pipe_partition_method=cost leaves pipeline rank 3 without a parameter; "
        "3 layers cannot give every rank one; use pipe_parallel_size: 5 or less"
    )


@pytest.mark.parametrize("scheme", ["base", "residual+anchor"])
def test_a_loop_boundary_without_routers_is_no_reason_to_be(scheme: str) -> None:
    """The cut that the message suggests is one."""
    model, recur = configs("1+1R2+1", scheme, no_weight_tying=False)
    parallel = ParallelConfig(pipe_parallel_size=2, pipe_partition_method="1,0+1,0+1,0")
    with pytest.raises(ConfigError, match="leaves pipeline rank 1 without a parameter") as caught:
        build_partition(model, recur, parallel, VOCAB)
    suggested = ParallelConfig(pipe_parallel_size=2, pipe_partition_method=str(caught.value).rpartition("like ")[2])
    build_partition(model, recur, suggested, VOCAB)
    mesh = configs("1+1R2+1", "mesh", no_weight_tying=False)
    assert build_partition(*mesh, parallel, VOCAB).holds(1, "routers")


@pytest.mark.parametrize("method", ["cost", "uniform", "parameters"])
def test_few_layers_reach_every_rank(method: str) -> None:
    """Tied, without routers: three layers for the three ranks that have nothing else, of any part."""
    model, recur = configs("1+1R1+1", "base", no_weight_tying=False)
    partition = build_partition(model, recur, ParallelConfig(pipe_parallel_size=4, pipe_partition_method=method), VOCAB)
    assert [sum(counts) for counts in zip(*layers(partition), strict=True)] == [0, 1, 1, 1]


def test_what_a_rank_lacks_is_moved_to_it_where_it_delays_a_micro_batch_least() -> None:
    moved = reach_every_rank(((2, 2, 2), (1, 0, 0)), range(1, 3), lambda counts: 0.0)
    assert moved == ((2, 2, 2), (1, 0, 0))  # nobody lacks any
    slowest = reach_every_rank(((3, 2, 0), (1, 0, 0)), range(1, 3), lambda counts: sum(map(max, counts)))
    assert slowest == ((2, 2, 1), (1, 0, 0))  # of the rank that the others wait for


def test_a_written_cut_that_leaves_a_rank_empty_is_told_one_that_does_not() -> None:
    model, recur = configs("1+1R1+1", "base", no_weight_tying=False)
    parallel = ParallelConfig(pipe_parallel_size=4, pipe_partition_method="0,0,1,0+0,1,0,0+0,1,0,0")
    assert refusal(model, recur, parallel) == (
        "pipe_parallel_size=4 with pipe_partition_method=0,0,1,0+0,1,0,0+0,1,0,0 leaves pipeline rank 3 without a parameter; use "
        "pipe_partition_method: cost, uniform, parameters, or place the layers like 0,1,0,0+0,0,0,1+0,0,1,0"
    )
    assert refusal(model, recur, written(parallel, 4, "0,1,0,0+0,0,1,0+0,0,0,1")) is None


def random_case(random: Random) -> tuple[ModelConfig, RecursionConfig, ParallelConfig]:
    """A small model, a small pipeline, and any method or written cut, which mostly does not fit."""
    loops, tied, num_ranks = random.randint(1, 2), random.random() < 0.5, random.randint(2, 5)
    prelude, core, coda = random.randint(0, 2), random.randint(1, 2), random.randint(0, 2)
    shared = random.random() < 0.7
    notation = f"{prelude}+{core}R{loops}+{coda}" if shared else "+".join(map(str, [prelude, *[core] * loops, coda]))
    recursion = None if random.random() < 0.25 else notation
    scheme = random.choice(["base", "residual+anchor", "mesh", "static"])
    model, recur = configs(recursion, scheme, no_weight_tying=not tied)
    passes = None if recursion else random.randint(1, 2)
    if recursion is None:
        model = model.model_copy(update={"num_layers": random.randint(1, 5)})
    sizes = [prelude, core, coda] if recursion else [model.num_layers, 0][:passes]
    cuts = [[random.randrange(num_ranks) for _ in range(size)] for size in sizes]
    written = "+".join(",".join(str(cut.count(rank)) for rank in range(num_ranks)) for cut in cuts)
    method = random.choice(["cost", "uniform", "parameters", written, written, "1,1", "type:mlp"])
    return (
        model,
        recur,
        ParallelConfig(pipe_parallel_size=num_ranks, pipe_partition_method=method, pipe_num_passes=passes),
    )


def possible(model: ModelConfig, recur: RecursionConfig, parallel: ParallelConfig) -> bool:
    """Whether any cut at all leaves no rank without a parameter: all of them are tried."""
    num_ranks, layout = parallel.pipe_parallel_size, recur.layout
    sizes = [layout.num_prelude, layout.num_core, layout.num_coda] if layout else [model.num_layers]
    ways = [combinations_with_replacement(range(num_ranks), size) for size in sizes]
    for cut in product(*ways):
        parts = [",".join(str(part.count(rank)) for rank in range(num_ranks)) for part in cut]
        parts += ["0" + ",0" * (num_ranks - 1)] * ((parallel.pipe_num_passes or 1) - 1)
        if refusal(model, recur, written(parallel, num_ranks, "+".join(parts))) is None:
            return True
    return False


def written(parallel: ParallelConfig, num_ranks: int, method: str) -> ParallelConfig:
    return parallel.model_copy(update={"pipe_parallel_size": num_ranks, "pipe_partition_method": method})


def refusal(model: ModelConfig, recur: RecursionConfig, parallel: ParallelConfig) -> str | None:
    try:
        build_partition(model, recur, parallel, VOCAB)
    except ConfigError as error:
        return str(error)
    return None


def test_methods_find_a_cut_wherever_there_is_one_and_every_mend_is_accepted() -> None:
    random, seen = Random(0), dict.fromkeys(("like", "such as", "or less"), 0)
    for _ in range(400):
        model, recur, parallel = random_case(random)
        message, num_ranks = refusal(model, recur, parallel), parallel.pipe_parallel_size
        if message is None:
            continue
        fits = possible(model, recur, parallel)
        for kind in seen:
            seen[kind] += kind in message
        if not fits:
            assert "such as" not in message and "like" not in message
            (most,) = re.findall(r"pipe_parallel_size: (\d+) or less", message)
            assert refusal(model, recur, written(parallel, int(most) + 1, "cost"))
            suggested = [(fewer, "cost") for fewer in range(2, int(most) + 1)]
        else:
            assert parallel.pipe_partition_method not in ("cost", "uniform", "parameters"), message
            (cut,) = re.findall(r"(?:like|such as) ([\d,+]+)$", message)
            suggested = [(num_ranks, method) for method in (cut, "cost", "uniform", "parameters")]
        for size, method in suggested:
            assert refusal(model, recur, written(parallel, size, method)) is None, message
    assert min(seen.values()) > 10, seen


def test_costs_of_a_stage_are_those_of_what_it_holds() -> None:
    model, recur = configs("2+2R1+2")
    stages = build_partition(
        model, recur, ParallelConfig(pipe_parallel_size=2, pipe_partition_method="uniform"), VOCAB
    ).stages
    costs = Costs(block=1.0, head=10.0, boundary=0.5, embedding=0.25)
    assert [stage.cost(costs) for stage in stages] == [1.25, 1.5, 1.0, 1.5, 1.0, 11.0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_embeddings_are_carried_to_schemes_that_read_them(scheme: str) -> None:
    """What is not a number in h_emb is found in the core's inputs, or is never looked at."""
    model, recur = configs("1+1R1+1", scheme)
    assert recur.layout is not None
    routers = build_routers(recur, model.hidden_size)
    for parameter in routers.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    states, highway = torch.ones(3, model.hidden_size), Highway()
    acting = build_scheme(recur, routers)
    first = acting.enter(highway, torch.full_like(states, math.nan), states)
    reads = bool((first + acting.advance(highway, 0, states)).isnan().any())
    stages = build_partition(model, recur, ParallelConfig(pipe_parallel_size=2), VOCAB).stages
    assert [stage.sends_embeddings for stage in stages] == [reads, *[False] * 5]
