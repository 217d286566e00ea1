"""Memory of pipeline ranks: parameters exactly, the highway as the real one keeps it, what the order of actions says."""

from typing import Any

import pytest
import torch

from megamesh.config.batch import ResolvedBatch, resolve_batch
from megamesh.config.load import load_config
from megamesh.config.sections import RunConfig
from megamesh.model.build import empty_model
from megamesh.model.counts import count_parameters
from megamesh.model.recursion.scheme import build_routers, build_scheme
from megamesh.parallel.tensor import SINGLE, TensorParallel
from megamesh.pipeline.highway import RingHighway
from megamesh.pipeline.partition import build_partition
from megamesh.planning.memory import block_elements, loss_bytes, memory_per_rank
from megamesh.planning.pipeline_memory import RankMemory, memory_of_ranks, parameters_of_ranks
from tests.planning.test_memory import PADDED_VOCAB, SMALL, VOCAB
from tests.schemes import SCHEMES

PIPELINE = {"recursion": "1+2R3+1", "pipe_parallel_size": 2, "train_micro_batch_size_per_gpu": 2}
BLOCKS = {"pipe_partition_method": "1,0+1,1+0,1"}


def config(**keys: Any) -> RunConfig:
    return load_config([], {**SMALL, **PIPELINE, **keys}, for_training=False).run


def estimate(run: RunConfig, num_micro_batches: int = 8) -> list[RankMemory]:
    partition = build_partition(run.model, run.recursion, run.parallel, PADDED_VOCAB)
    return memory_of_ranks(run, batch_of(run), PADDED_VOCAB, partition, num_micro_batches)


def batch_of(run: RunConfig) -> ResolvedBatch:
    return resolve_batch(run.batch, 1)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"no_weight_tying": False, "pos_emb": "learned", "recursion_scheme": "dynamic"},
        {"recursion": "1+2+2+2+1", "recursion_scheme": "mesh"},
        {"recursion": None, "pipe_num_passes": 2},
        {"recursion": "2+2R2+2", "pipe_partition_method": "parameters", "recursion_scheme": "residual+anchor"},
    ],
    ids=["mesh", "tied, learned, dynamic", "unshared", "plain, two passes", "by parameters"],
)
def test_every_parameter_is_on_one_rank(keys: dict[str, Any], num_ranks: int) -> None:
    run = config(**{**keys, "pipe_parallel_size": num_ranks})
    partition = build_partition(run.model, run.recursion, run.parallel, PADDED_VOCAB)
    per_rank = parameters_of_ranks(run, PADDED_VOCAB, partition)
    assert sum(per_rank) == count_parameters(run.model, run.recursion, PADDED_VOCAB).total
    assert [memory.num_parameters for memory in estimate(run)] == per_rank


@pytest.mark.parametrize("size", [1, 2])
def test_parameters_of_a_rank_are_those_of_its_part_of_the_model(size: int) -> None:
    run = config(model_parallel_size=size)
    partition = build_partition(run.model, run.recursion, run.parallel, PADDED_VOCAB)
    for rank, expected in enumerate(parameters_of_ranks(run, PADDED_VOCAB, partition)):
        part = empty_model(
            run.model,
            run.recursion,
            VOCAB,
            device="meta",
            padded_vocab_size=PADDED_VOCAB,
            tp=TensorParallel(size, 0),
            holds=lambda name, rank=rank: partition.holds(rank, name),
        )
        assert sum(parameter.numel() for parameter in part.parameters()) == expected


def kept_by_the_real_highway(run: RunConfig) -> int:
    """Bytes on the last rank after all forward passes of one micro-batch, blocks and sent states left out."""
    tokens, hidden = batch_of(run).micro_batch_size * run.model.sequence_length, run.model.hidden_size
    layout = run.recursion.layout
    assert layout is not None
    routers = build_routers(run.recursion, hidden)
    scheme, highway = build_scheme(run.recursion, routers), RingHighway(SINGLE)
    weights = {parameter.untyped_storage().data_ptr() for parameter in routers.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}
    graphs = []

    def state() -> torch.Tensor:
        return torch.randn(tokens, hidden).requires_grad_() * 1  # as blocks give it: no leaf

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    for parameter in routers.parameters():
        torch.nn.init.normal_(parameter)
    for boundary in range(-1, layout.num_loops):
        given = [state() for _ in range(2 if boundary < 0 else 1)]
        highway.start(boundary + 1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            graphs.append(scheme.enter(highway, *given) if boundary < 0 else scheme.advance(highway, boundary, *given))
        highway.finish(is_last=boundary == layout.num_loops - 1)
    for alive in highway._alive().values():
        keep(alive)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("loops", [1, 2, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_highway_of_one_micro_batch_is_what_the_real_one_keeps(scheme: str, loops: int) -> None:
    """With one micro-batch the last rank is fullest when all forwards are done, if its activations are many: the head's logits."""
    run = config(recursion=f"1+2R{loops}+1", num_layers=2 + 2 * loops, recursion_scheme=scheme, **BLOCKS)
    last = estimate(run, num_micro_batches=1)[-1]
    small = 64  # mixers' scalars, counted per token by neither
    assert abs(last.parts["highway"] - kept_by_the_real_highway(run)) <= small


def test_the_highway_lives_on_the_last_rank_only() -> None:
    first, *middle, last = (memory.parts["highway"] for memory in estimate(config(pipe_parallel_size=3)))
    assert first == 0 and middle == [0] and last > 0


def test_nothing_is_left_when_the_step_is_over() -> None:
    """What actions take they free: twice as many rounds need no more, of every part."""
    for keys in ({}, {"recursion_scheme": "dynamic"}, {"recursion_scheme": "residual+anchor"}):
        run = config(**keys)
        assert [rank.parts for rank in estimate(run, 12)] == [rank.parts for rank in estimate(run, 24)]


def test_activations_follow_the_micro_batches_in_flight() -> None:
    """One layer on each rank, one pass: the first rank keeps most of them in flight, the last one's head has one at a time."""
    run = config(recursion=None, num_layers=2, pipe_num_passes=1, pipe_partition_method="1,1")
    states, parts = block_elements(run.model)
    per_micro_batch = 2 * run.model.sequence_length * (states + parts) * 4
    first, last = estimate(run)
    assert first.parts["activations"] % per_micro_batch == 0 and first.parts["activations"] > per_micro_batch
    assert last.parts["activations"] == per_micro_batch
    assert last.parts["loss"] == sum(loss_bytes(run, batch_of(run), PADDED_VOCAB)) and first.parts["loss"] == 0
    bfs = config(recursion=None, num_layers=2, pipe_partition_method="1,1", pipe_schedule="looped_bfs")
    assert estimate(bfs)[0].parts["activations"] == 8 * per_micro_batch


def test_receive_buffers_do_not_grow_with_the_number_of_micro_batches() -> None:
    run = config(pipe_parallel_size=4, recursion="4+4R2+4", num_layers=16)
    few, many = estimate(run, 16), estimate(run, 64)
    state = 2 * run.model.sequence_length * run.model.hidden_size * 4
    for rank_few, rank_many in zip(few, many, strict=True):
        assert rank_few.parts["receiving"] == rank_many.parts["receiving"] <= 6 * state


def test_recomputation_keeps_inputs_only() -> None:
    kept, per_block, per_loop = (
        [memory.parts["activations"] for memory in estimate(config(**keys))]
        for keys in (
            {},
            {"checkpoint_activations": True},
            {"checkpoint_activations": True, "checkpoint_activations_per": "loop"},
        )
    )
    assert all(block < whole / 2 for block, whole in zip(per_block, kept, strict=True))
    assert max(per_block) <= max(per_loop) < max(kept) / 2


def test_tensor_parallelism_divides_the_highway_and_what_is_split_of_activations() -> None:
    keys = {"model_parallel_size": 4, "sequence_parallel": True}
    whole, split = estimate(config()), estimate(config(**keys))
    for one, four in zip(whole, split, strict=True):
        assert four.parts["highway"] * 4 == one.parts["highway"]
        assert four.parts["activations"] * 4 == pytest.approx(one.parts["activations"], abs=64)
        assert four.parts["receiving"] * 4 == one.parts["receiving"]


def test_a_pipeline_of_one_rank_keeps_what_one_rank_keeps() -> None:
    """The ring's own accounting beside memory.py's, where there is nothing to send: the same blocks, the same loss."""
    run = config(pipe_parallel_size=1, recursion=None)
    (ring,) = estimate(run, num_micro_batches=1)
    one = memory_per_rank(run, batch_of(run), PADDED_VOCAB)
    assert ring.report() == {**one, "receiving": 0, "total": one["total"]}
