"""The ring computes what one process computes: loss and every gradient of all stages and micro-batches, in float64.

Two and four ranks, uneven cuts, every scheme, K = 1, 2, 3. Dealt out over schemes that keep states: empty slices, odd numbers of
micro-batches, both schedules, tied heads, kinds of block, recomputation, the tensor axis. The cases of a world size share one call of its
processes, so that the comparison, not the start, is what takes the time.
"""

from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from megamesh.config.schemes import names
from megamesh.parallel.collectives import Kind, count_communication
from megamesh.pipeline import highway as highway_module
from megamesh.pipeline import ring as ring_module
from megamesh.pipeline.highway import RingHighway
from megamesh.pipeline.traffic import p2p_bytes_per_step
from tests.distributed import run
from tests.model.sharded import join_shards
from tests.pipeline.cases import BATCH, HIDDEN, SEQUENCE, Case

SCHEMES = [*names(), "residual+anchor+anchor*"]
LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "activation": "swiglu",
    "intermediate_size": 24,
    "num_kv_heads": 2,
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
    "gpt_j_residual": True,
}
LEARNED: dict[str, Any] = {
    "pos_emb": "learned",
    "use_qk_layernorm": True,
    "scale_embeddings": True,
    "no_weight_tying": False,
}
PER_BLOCK: dict[str, Any] = {"checkpoint_activations": True}
PER_LOOP = PER_BLOCK | {"checkpoint_activations_per": "loop"}

TWO = [Case(f"2+3R{loops}+1", scheme) for scheme in SCHEMES for loops in (1, 2, 3)] + [
    Case("1+2R1+1", "anchor*", partition="1,0+0,2+0,1"),
    Case("1+2R1+1", "mesh", partition="0,1+2,0+1,0", num_micro_batches=1),
    Case("0+3R3+0", "mesh", partition="0,0+1,2+0,0", num_micro_batches=6),
    Case("1+2R3+1", "residual", partition="0,1+0,2+1,0", model=LEARNED),
    Case("1+2R3+1", "mesh", model=LEARNED, training=PER_BLOCK),
    Case("1+4R3+1", "mesh", model=LLAMA, training=PER_LOOP, recursion_keys={"mesh_transition_input": "prelude"}),
    Case("2+2R2+2", "dynamic", schedule="looped_bfs", training=PER_LOOP),
    Case("1+2+2+1", "mesh", num_micro_batches=5, schedule="looped_bfs", recursion_keys={"mesh_router_init": "slot"}),
    Case("1+2+2+1", "anchor"),
    Case(None, num_passes=1),
    Case(None, num_passes=2, num_micro_batches=6),
    Case(None, num_passes=2, partition="1,0+2,3", model=LEARNED),
]
FOUR = [
    *(Case(f"3+5R{loops}+2", scheme, num_ranks=4) for scheme in SCHEMES for loops in (1, 2, 3)),
    Case("1+4R3+2", "mesh", num_ranks=4, partition="0,1,0,0+0,2,1,1+2,0,0,0", num_micro_batches=8),
    Case("2+4R1+2", "mesh", num_ranks=4, num_micro_batches=3, training=PER_BLOCK, model=LEARNED),
    Case(None, num_ranks=4, num_passes=1),
    Case(None, num_ranks=4, num_passes=2, partition="1,1,0,1+1,0,1,1"),
    Case("2+2R2+2", "mesh", tensor_parallel_size=2),
    Case("2+2R2+2", "mesh", tensor_parallel_size=2, sequence_parallel=True, model=LLAMA, training=PER_LOOP),
    Case("2+2R2+2", "static", tensor_parallel_size=2),
    Case("2+2R3+2", "anchor*", tensor_parallel_size=2, sequence_parallel=True),
    Case("2+2R2+2", "residual", tensor_parallel_size=2, model=LEARNED),
]


class Trained(NamedTuple):
    """What one rank found."""

    loss: Tensor
    gradients: dict[str, Tensor]  # of the global parameters
    bytes_sent: dict[str, int]  # by direction
    peak_receive_bytes: int


def _train(cases: list[Case]) -> list[Trained]:
    return [_train_one(case) for case in cases]


def _train_one(case: Case) -> Trained:
    ring = case.ring()
    ring.model.train()
    with count_communication() as counted:
        loss = ring.train(case.micro_batches(), case.num_micro_batches, 1.0)
    specs, tp_group = ring.model.shards(), case.mesh().group("tp")
    gradients = {
        name: join_shards(parameter.grad, specs[name], tp_group, partial=specs[name].partial_gradient)
        for name, parameter in ring.model.named_parameters()
        if parameter.grad is not None
    }
    sent = {way: counted.num_bytes[Kind("states", way, "send")] for way in ("forward", "backward")}
    return Trained(loss, gradients, sent, ring.peak_receive_bytes)


def _assert_that_of_one_process(case: Case, by_rank: list[Trained]) -> None:
    loss, gradients = case.whole()
    by_pipeline_rank = by_rank[:: case.tensor_parallel_size]
    torch.testing.assert_close(sum(own.loss for own in by_pipeline_rank), loss, rtol=1e-12, atol=0)
    names = [name for own in by_pipeline_rank for name in own.gradients]
    assert sorted(names) == sorted(gradients), "every parameter is on one pipeline rank"
    for own in by_rank:
        for name, gradient in own.gradients.items():
            error = (gradient - gradients[name]).norm()
            assert error <= 1e-11 * gradients[name].norm() + 1e-15, f"gradient of {name}: {error:g}"


@pytest.fixture(scope="module")
def on_two() -> list[list[Trained]]:
    return run(2, _train, TWO)


@pytest.fixture(scope="module")
def on_four() -> list[list[Trained]]:
    return run(4, _train, FOUR)


@pytest.mark.parametrize("index", range(len(TWO)), ids=map(str, TWO))
def test_on_two_ranks_loss_and_gradients_are_those_of_one_process(index, on_two: list[list[Trained]]) -> None:
    _assert_that_of_one_process(TWO[index], [answer[index] for answer in on_two])


@pytest.mark.parametrize("index", range(len(FOUR)), ids=map(str, FOUR))
def test_on_four_ranks_loss_and_gradients_are_those_of_one_process(index, on_four: list[list[Trained]]) -> None:
    _assert_that_of_one_process(FOUR[index], [answer[index] for answer in on_four])


def _forget_gradients(_self: RingHighway, pass_index: int) -> None:
    _self._passes.pop(pass_index)


def _train_forgetting(case: Case) -> Trained:
    original = RingHighway.leave_gradients
    highway_module.RingHighway.leave_gradients = _forget_gradients  # type: ignore[method-assign]
    try:
        return _train_one(case)
    finally:
        highway_module.RingHighway.leave_gradients = original  # type: ignore[method-assign]


def test_the_comparison_sees_gradients_that_do_not_reach_the_pass_that_kept_a_state() -> None:
    case = Case("1+2R3+1", "mesh")
    with pytest.raises(AssertionError, match="gradient of"):
        _assert_that_of_one_process(case, run(2, _train_forgetting, case))


@pytest.mark.parametrize("index", range(len(FOUR)), ids=map(str, FOUR))
def test_bytes_sent_are_those_of_the_formula(index, on_four: list[list[Trained]]) -> None:
    case = FOUR[index]
    tokens = BATCH * SEQUENCE // (case.tensor_parallel_size if case.sequence_parallel else 1)
    expected = p2p_bytes_per_step(case.stages, tokens, HIDDEN, 8, case.num_micro_batches)
    for rank, answer in enumerate(on_four):
        assert sum(answer[index].bytes_sent.values()) == expected[rank // case.tensor_parallel_size]


def test_only_embeddings_of_pass_0_are_sent_beside_the_state() -> None:
    plain, mesh = (Case("4+5R2+3", scheme, num_ranks=4).stages for scheme in ("base", "mesh"))
    sent = [sum(p2p_bytes_per_step(stages, 1, 1, 1, 1)) for stages in (plain, mesh)]
    assert sent == [2 * (4 * 4 - 1), 2 * (4 * 4 - 1) + 2 * (4 - 1)]


def test_receive_buffers_do_not_grow_with_the_number_of_micro_batches() -> None:
    cases = [Case(num_micro_batches=number) for number in (4, 8, 16, 32)]
    peaks = [[trained.peak_receive_bytes for trained in answer] for answer in run(2, _train, cases)]
    state = BATCH * SEQUENCE * HIDDEN * 8
    for by_case in peaks:
        assert len(set(by_case[1:])) == 1
        assert 0 < by_case[-1] <= 8 * state


class Counting(ring_module._Step):
    """A step that tells the most it ever held, and what it holds at the end."""

    most: ClassVar[Counter[str]] = Counter()

    def _do(self, action) -> None:
        super()._do(action)
        held = {name: len(getattr(self, name)) for name in HELD} | {
            "states": sum(highway.num_states for highway in self.highways.values()),
            "gradients": sum(highway.num_gradients for highway in self.highways.values()),
        }
        self.most |= Counter(held)

    def run(self, actions) -> None:
        Counting.most = Counter()
        super().run(actions)
        self.sending.clear()
        assert not any(getattr(self, name) for name in HELD), "something is held after the step"


HELD = ("graphs", "highways", "arriving", "leaving")


def _most_held(case: Case) -> tuple[Counter[str], Counter[str]]:
    """In training, and in an evaluation."""
    original = ring_module._Step
    ring_module._Step = Counting  # type: ignore[misc]
    try:
        ring = case.ring()
        ring.train(case.micro_batches(), case.num_micro_batches, 1.0)
        in_training = Counting.most
        ring.evaluate(case.micro_batches())
        return in_training, Counting.most
    finally:
        ring_module._Step = original  # type: ignore[misc]


def test_what_is_held_does_not_grow_with_the_number_of_micro_batches() -> None:
    few, many = (run(2, _most_held, Case("1+2R2+1", "mesh", num_micro_batches=number)) for number in (8, 32))
    assert few == many
    (training, evaluation) = few[1]
    assert training["highways"] == 4 and evaluation["highways"] == 2
    assert evaluation["graphs"] == 0 and evaluation["gradients"] == 0


def _gradients_left(case: Case) -> list[tuple[int, int]]:
    """After every backward that ends at a loop boundary: its pass, and the gradients that wait on the highway."""
    found, seen = [], []

    class Watched(RingHighway):
        def __init__(self, tp) -> None:
            super().__init__(tp)
            seen.append(self)

        def leave_gradients(self, pass_index) -> None:
            super().leave_gradients(pass_index)
            found.append((pass_index, self.num_gradients))

    ring_module.RingHighway = Watched  # type: ignore[misc]
    try:
        case.ring().train(case.micro_batches(), case.num_micro_batches, 1.0)
    finally:
        ring_module.RingHighway = RingHighway  # type: ignore[misc]
    return found


def test_gradients_are_let_go_with_the_backward_of_the_pass_that_kept_the_state() -> None:
    """K = 3. The last pass leaves gradients of 4 sources, 3 writes and its control; each one before consumes three of them."""
    found = run(2, _gradients_left, Case("1+2R3+1", "mesh", num_micro_batches=1))[1]
    assert found == [(3, 8), (2, 6), (1, 4), (0, 0)]


def _evaluate(case: Case) -> tuple[Tensor, Tensor]:
    ring = case.ring()
    ring.model.eval()
    micro_batches = case.micro_batches()
    return ring.evaluate(micro_batches), ring.evaluate(micro_batches[:1])


@pytest.mark.parametrize(
    "case",
    [Case(num_micro_batches=3), Case("1+2R3+1", "anchor*", model=LEARNED), Case(None, num_passes=2)],
    ids=str,
)
def test_losses_of_an_evaluation_are_those_of_one_process_on_every_rank(case) -> None:
    module = case.build()
    expected = torch.stack([module(*inputs).detach() for inputs in case.micro_batches()]).float()
    for several, one in run(2, _evaluate, case):
        torch.testing.assert_close(several, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(one, expected[:1], rtol=1e-6, atol=0)


def _states_alive(case: Case) -> list[tuple[str, int, list[int]]]:
    """After every action that has a loop boundary: its kind, its pass, and the kept states of each micro-batch's highway."""
    found = []
    ring, seen = case.ring(), []

    class Watched(RingHighway):
        def __init__(self, tp) -> None:
            super().__init__(tp)
            seen.append(self)

    def watch(action, _start, _end) -> None:
        stage = case.stages.stages[action.stage]
        if action.kind in ("forward", "backward") and stage.boundary is not None:
            found.append((action.kind, stage.pass_index, [each.num_states for each in seen]))

    ring.watch = watch
    ring_module.RingHighway = Watched  # type: ignore[misc]
    try:
        ring.train(case.micro_batches(), case.num_micro_batches, 1.0)
    finally:
        ring_module.RingHighway = RingHighway  # type: ignore[misc]
    return found


def test_states_are_let_go_with_the_backward_of_their_last_reader() -> None:
    """4 sources and 3 writes are recalled at K = 3, and each control state once; backward frees what no earlier pass reads."""
    found = run(2, _states_alive, Case("1+2R3+1", "mesh", num_micro_batches=1))[1]
    assert found == [
        ("forward", 0, [4]),  # sources 0 and 1, write 1, control h
        ("forward", 1, [7]),  # and a source, a write, the next control; the old one is a leaf of this pass now
        ("forward", 2, [10]),
        ("forward", 3, [10]),  # nothing recalls what the last pass kept
        ("backward", 3, [7]),
        ("backward", 2, [4]),
        ("backward", 1, [0]),
        ("backward", 0, [0]),
    ]


@pytest.mark.parametrize("scheme", ["anchor", "residual", "dynamic"])
def test_no_state_is_left_after_a_step(scheme: str) -> None:
    case = Case("1+2R2+1", scheme, num_micro_batches=4)
    found = run(2, _states_alive, case)[1]
    assert max(sum(alive) for _, _, alive in found) > 1
    assert found[-1][-1] == [0] * 4


def _seeds(case: Case) -> list[int]:
    """Seeds that stages draw their dropout from."""
    found: list[int] = []
    original = torch.manual_seed

    def inputs():
        for index, micro_batch in enumerate(case.micro_batches()):
            original(index)
            yield micro_batch

    ring = case.ring()
    ring.model.train()
    ring_module.torch.manual_seed = lambda seed: (found.append(seed), original(seed))  # type: ignore[attr-defined]
    try:
        ring.train(inputs(), case.num_micro_batches, 1.0)
    finally:
        ring_module.torch.manual_seed = original  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("kind", ["hidden_dropout", "attention_dropout"])
def test_every_stage_and_micro_batch_draws_from_a_stream_of_its_own(kind: str) -> None:
    case = Case("1+2R2+1", "mesh", model={kind: 0.1})
    by_rank = run(2, _seeds, case)
    assert [len(seeds) for seeds in by_rank] == [4 * case.num_micro_batches] * 2
    assert len({seed for seeds in by_rank for seed in seeds}) == 8 * case.num_micro_batches


def _dropout_twice(case: Case) -> list[dict[str, bytes]]:
    found = []
    for micro_batches_seed in (0, 0, 1):
        ring = case.ring()
        ring.model.train()

        def inputs(seed: int = micro_batches_seed):
            for index, micro_batch in enumerate(case.micro_batches()):
                torch.manual_seed(100 * seed + index)
                yield micro_batch

        ring.train(inputs(), case.num_micro_batches, 1.0)
        found.append(
            {name: p.grad.numpy().tobytes() for name, p in ring.model.named_parameters() if p.grad is not None}
        )
    return found


@pytest.mark.parametrize("training", [{}, PER_LOOP], ids=["kept", "recomputed"])
def test_dropout_repeats_itself_with_the_stream_of_the_micro_batch(training) -> None:
    case = replace(Case("1+2R2+1", "mesh", model={"hidden_dropout": 0.3, "attention_dropout": 0.3}), training=training)
    for first, again, other in run(2, _dropout_twice, case):
        assert first == again
        assert first != other


def test_recomputation_drops_what_the_first_computation_dropped() -> None:
    case = Case("1+2R2+1", "mesh", model={"hidden_dropout": 0.3, "attention_dropout": 0.3})
    kept, recomputed = (run(2, _dropout_twice, replace(case, training=training)) for training in ({}, PER_LOOP))
    assert [found[0] for found in kept] == [found[0] for found in recomputed]
