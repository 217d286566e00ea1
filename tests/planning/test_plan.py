"""Plans: what is ruled out and why, bytes on wires as real processes count them, times against what can be worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.benchmark.communication import KindTotal
from megamesh.config.batch import ResolvedBatch, resolve_batch
from megamesh.config.load import load_config
from megamesh.config.sections import RunConfig
from megamesh.errors import ConfigError
from megamesh.model.build import build_model
from megamesh.model.counts import count_parameters
from megamesh.parallel.collectives import count_communication
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import TensorParallel
from megamesh.pipeline.checks import check_micro_batches
from megamesh.pipeline.partition import build_partition
from megamesh.planning.hardware import Cluster
from megamesh.planning.layouts import Layout, RuledOut, layouts
from megamesh.planning.memory import memory_per_rank
from megamesh.planning.report import describe_plan, report_plan
from megamesh.planning.search import Plan, plan
from megamesh.planning.speed import Speed, read_measured, speed_from_flops, speed_from_layer_seconds
from megamesh.planning.straight import straight_pipelines
from megamesh.planning.wires import TensorTraffic, Traffic, data_bytes, tensor_traffic
from tests.distributed import run as run_processes
from tests.planning.test_memory import PADDED_VOCAB, SMALL, VOCAB

SPEED = Speed(block_forward=1e-3, block_backward=2e-3, head=0.0)
FREE = Cluster(num_gpus=4, latency_seconds=0.0, intra_node_gbps=1e12, inter_node_gbps=1e12)
"""GPUs whose wires take no time."""


def config(**keys: Any) -> RunConfig:
    """1+2R3+1 of width 128, 16 samples a step; no micro-batch size of its own."""
    keys = {**SMALL, "recursion": "1+2R3+1", "train_micro_batch_size_per_gpu": None, **keys}
    return load_config([], keys, for_training=False).run


def planned(run: RunConfig, cluster: Cluster = FREE, *, speed: Speed = SPEED, top: int = 100, **only: Any) -> Plan:
    return plan(run, VOCAB, cluster, speed, top=top, **only)


def reasons(found: list[RuledOut], kind: str) -> dict[str, str]:
    return {entry.what: entry.reason for entry in found if entry.kind == kind}


def test_every_layout_uses_all_gpus_and_the_whole_batch() -> None:
    found = [entry for entry in layouts(config(), 8, VOCAB) if isinstance(entry, Layout)]
    assert {entry.sizes for entry in found} == {
        (tp, pp, 8 // tp // pp) for tp in (1, 2, 4) for pp in (1, 2) if tp * pp <= 8
    }
    assert all(entry.batch().train_batch_size == 16 for entry in found)
    assert all(entry.zero_stage < 2 for entry in found if entry.pp > 1)
    assert {entry.zero_stage for entry in found if entry.pp == 1 and entry.dp > 1} == {0, 1, 2, 3}
    assert all(entry.zero_stage == 0 for entry in found if entry.dp == 1)
    assert all(entry.sequence_parallel == (entry.tp > 1) for entry in found)
    assert len(set(found)) == len(found)


def test_what_is_ruled_out_says_why() -> None:
    out = [entry for entry in layouts(config(), 8, VOCAB) if isinstance(entry, RuledOut)]
    assert reasons(out, "divisibility") == {
        "tp 8": "heads, MLP, sequence and vocabulary divide by 1, 2, 4",
        "tp 1 pp 4 dp 2": "no part of the model has more than 2 layers",
        "tp 1 pp 8 dp 1": "no part of the model has more than 2 layers",
        "tp 2 pp 4 dp 1": "no part of the model has more than 2 layers",
    }
    assert reasons(out, "ZeRO") == dict.fromkeys(
        ("tp 1 pp 2 dp 4", "tp 2 pp 2 dp 2"), "stages 2 and 3 do not work with a pipeline"
    )
    odd = [entry for entry in layouts(config(train_batch_size=15), 2, VOCAB) if isinstance(entry, RuledOut)]
    assert reasons(odd, "batch") == {
        "tp 1 pp 1 dp 2": "train_batch_size=15 is not divisible by 2 data-parallel ranks",
        "tp 1 pp 2 dp 1": "interleaved_1f1b has no order for 15 micro-batches of 1",
    }


def test_a_layout_without_train_batch_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="train_batch_size is not given"):
        planned(config(train_batch_size=None))


def test_what_does_not_fit_is_ruled_out_with_the_least_that_it_needs() -> None:
    run = config()
    whole = planned(run, Cluster(2))
    needs = {entry.step.layout.sizes: min(step_bytes(run, entry.step.layout.sizes)) for entry in whole.best}
    most = max(needs, key=lambda sizes: needs[sizes])
    between = sum(sorted(needs.values())[-2:]) / 2 / 2**30
    found = planned(run, Cluster(2, memory_gib=between, usable_memory=1.0))
    assert {entry.step.layout.sizes for entry in found.best} == set(needs) - {most}
    assert most == (1, 1, 2)  # even with ZeRO 3, two data-parallel ranks hold a bucket of the whole model each
    assert reasons(found.ruled_out, "memory") == {
        "tp 1 pp 1 dp 2": f"{needs[most] / 2**30:.1f} GiB at the least (micro-batch 1, ZeRO 3, recomputation per block) of {between:.1f}"
    }
    with pytest.raises(ConfigError, match="no layout on 2 GPUs is possible"):
        planned(run, Cluster(2, memory_gib=1e-4))


def step_bytes(run: RunConfig, sizes: tuple[int, int, int]) -> list[int]:
    """Of all variants of a layout."""
    return [entry.step.fullest.total for entry in planned(run, Cluster(2), only=sizes).best]


def test_plans_keep_the_fastest_variant_of_every_layout_in_order() -> None:
    run = config()
    found = planned(run)
    seconds = [entry.estimate.seconds for entry in found.best]
    assert seconds == sorted(seconds) and len({entry.step.layout.sizes for entry in found.best}) == len(found.best)
    for entry in found.best:
        variants = planned(run, only=entry.step.layout.sizes).best
        assert min(v.estimate.seconds for v in variants) == pytest.approx(entry.estimate.seconds)
    assert planned(run, top=2).best[0].step.layout == found.best[0].step.layout


def test_time_without_wires_is_blocks_and_bubble() -> None:
    """20 ms of work per sequence and rank of data; two pipeline ranks of equal parts add the closed form's bubble."""
    run = config(recursion="2+2R3+2", num_layers=10)
    by_sizes = {
        entry.step.layout.sizes: entry
        for entry in planned(run, Cluster(2, latency_seconds=0, intra_node_gbps=1e12)).best
    }
    assert by_sizes[1, 1, 2].estimate.seconds == pytest.approx(8 * 10 * 3e-3)
    assert by_sizes[2, 1, 1].estimate.seconds == pytest.approx(16 * 10 * 3e-3 / 2)
    ring = by_sizes[1, 2, 1]
    assert ring.step.layout.num_micro_batches == 16
    assert ring.estimate.idle_share == pytest.approx(1 / (5 * 16 + 1))
    assert ring.estimate.seconds == pytest.approx((5 * 16 + 1) * 3e-3)


def test_recomputation_takes_the_forward_once_more() -> None:
    variants = planned(config(), only=(1, 1, 4)).best
    by_kind = {entry.step.layout.recompute: entry.estimate.seconds for entry in variants}
    assert by_kind["block"] == by_kind["loop"] == pytest.approx(by_kind["none"] * 4 / 3)


@pytest.mark.parametrize("rounds", [8, 20])
def test_a_few_rounds_continued_are_all_of_them(rounds: int) -> None:
    """The estimate that layouts are sorted by, beside every micro-batch simulated."""
    run = config(train_batch_size=rounds * 2, recursion="1+2R3+1")
    for entry in planned(run, Cluster(2), speed=Speed(1e-3, 2e-3, 3e-3, 1e-5, 2e-5), only=(1, 2, 1)).best:
        assert entry.step.estimate.seconds == pytest.approx(entry.estimate.seconds, rel=1e-3)
        assert entry.step.estimate.idle_share == pytest.approx(entry.estimate.idle_share, abs=2e-3)


def test_layouts_apply_to_the_configuration_as_their_keys_say() -> None:
    run = config()
    for entry in planned(run).best:
        layout, laid_out = entry.step.layout, entry.step.run
        keys = {**SMALL, "recursion": "1+2R3+1", "train_micro_batch_size_per_gpu": None}
        written = load_config([], keys | _nested(layout.keys(run)), for_training=False).run
        assert written.parallel == laid_out.parallel and written.training == laid_out.training
        assert resolve_batch(written.batch, layout.dp) == layout.batch()
        if layout.pp == 1:
            memory = memory_per_rank(written, layout.batch(), entry.step.padded_vocab_size)
            assert memory["total"] == entry.step.fullest.total


def test_the_keys_of_a_layout_load_over_the_configuration_that_was_planned() -> None:
    """Numbers of layers are those of another pipeline, and compile has no stage 3."""
    keys = SMALL | {"recursion": "1+2R3+1", "train_micro_batch_size_per_gpu": None, "pipe_parallel_size": 2}
    keys |= {"pipe_partition_method": "1,0+1,1+0,1", "compile": True, "vocab_size": VOCAB}
    run = load_config([], keys, for_training=False).run
    plan_of = planned(run)
    assert {entry.step.layout.pp for entry in plan_of.best} == {1, 2}
    every = [entry for entry in layouts(run, 4, VOCAB) if isinstance(entry, Layout)]
    for layout in every:
        written = load_config([], keys | _nested(layout.keys(run)), for_training=False).run
        partition = build_partition(written.model, written.recursion, written.parallel, PADDED_VOCAB)
        check_micro_batches(written.parallel, partition.num_passes, layout.num_micro_batches)
        assert resolve_batch(written.batch, layout.dp) == layout.batch()


def _nested(keys: dict[str, Any]) -> dict[str, Any]:
    return {("zero_optimization" if key == "zero_optimization.stage" else key): ({"stage": value} if "." in key else value)
            for key, value in keys.items()}  # fmt: skip


SIZE = 2


def counted_bytes(run: RunConfig) -> tuple[float, int]:
    """Bytes on this rank's wires, and calls, of a micro-batch's forward and backward."""
    mesh = ProcessMesh.build("cpu", tensor_parallel_size=SIZE)
    tp = TensorParallel.on(mesh, sequence_parallel=run.parallel.sequence_parallel)
    model = build_model(run.model, run.recursion, run.training, VOCAB, padded_vocab_size=PADDED_VOCAB, tp=tp)
    tokens_BS = torch.zeros(2, run.model.sequence_length, dtype=torch.long)
    with count_communication() as counted:
        model(tokens_BS, tokens_BS, torch.ones(tokens_BS.shape)).backward()
    totals = [KindTotal(kind, calls, counted.num_bytes[kind], SIZE) for kind, calls in counted.calls.items()]
    return sum(total.wire_bytes for total in totals), sum(total.calls for total in totals)


def summed(traffic: TensorTraffic, blocks: int, loops: int) -> Traffic:
    total = (traffic.block_forward + traffic.block_backward) * blocks
    ends = (traffic.embedding_forward, traffic.embedding_backward, traffic.head_forward, traffic.head_backward)
    for part in (*ends, traffic.enter, traffic.enter_backward):
        total += part
    return total + (traffic.advance + traffic.advance_backward) * loops


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(
    "keys",
    [{}, {"recursion_scheme": "dynamic"}, {"recursion_scheme": "anchor", "gpt_j_residual": False}],
    ids=["mesh", "dynamic", "anchor, sequential blocks"],
)
def test_bytes_on_the_tensor_axis_are_what_processes_count(keys: dict[str, Any], sequence_parallel: bool) -> None:
    run = config(model_parallel_size=SIZE, sequence_parallel=sequence_parallel, loss_chunk_tokens=64, **keys)
    (num_bytes, calls), *_ = run_processes(SIZE, counted_bytes, run)
    expected = summed(tensor_traffic(run, ResolvedBatch(2, 2, 1, 1)), blocks=8, loops=3)
    assert expected.num_bytes == num_bytes
    assert expected.calls == calls


def test_bytes_over_data_parallel_ranks() -> None:
    """Per parameter, of 4 ranks and 2 micro-batches: three quarters of what the docstring says."""
    batch = ResolvedBatch(16, 2, 2, 4)
    for precision, stage, per_parameter in [
        ("fp32", 0, 2 * 4),
        ("fp32", 1, 4 + 4),
        ("bfloat16", 1, 2 * 4 + 2),
        ("fp32", 2, 2 * 4 + 4),
        ("bfloat16", 3, 2 * (4 + 2 * 2)),
    ]:
        run = config(precision=precision, zero_optimization={"stage": stage})
        assert data_bytes(run, batch, 1000) == 750 * per_parameter
    assert data_bytes(config(), ResolvedBatch(16, 2, 8, 1), 1000) == 0


def test_wires_between_nodes_are_told_from_wires_inside() -> None:
    cluster = Cluster(16, gpus_per_node=4)
    assert cluster.group_within_node(4, 1) and cluster.group_within_node(2, 2) and not cluster.group_within_node(2, 4)
    assert [cluster.wire_within_node(2, rank, rank + 1) for rank in range(3)] == [True, False, True]
    assert not cluster.wire_within_node(1, 3, 0 + 4) and cluster.wire_within_node(1, 0, 3)
    assert cluster.seconds(400e9 / 8, within_node=False) == pytest.approx(1.0, rel=1e-4)
    assert cluster.seconds(3600e9 / 8, within_node=True) == pytest.approx(1.0, rel=1e-4)


def test_slow_wires_between_nodes_change_the_order() -> None:
    """Two nodes: tensor parallelism over them is the last choice."""
    fast, slow = (
        {
            entry.step.layout.sizes: entry.estimate.seconds
            for entry in planned(config(), Cluster(2, nodes, inter_node_gbps=0.1)).best
        }
        for nodes in (2, 1)
    )
    assert set(fast) == set(slow) == {(1, 1, 2), (1, 2, 1), (2, 1, 1)}
    assert max(slow, key=lambda sizes: slow[sizes]) == (2, 1, 1) and slow[2, 1, 1] > 5 * fast[2, 1, 1]


def test_speeds_agree_however_they_are_given(tmp_path: Path) -> None:
    run = config()
    by_flops = speed_from_flops(run, PADDED_VOCAB, peak_tflops=10.0, efficiency=0.5)
    given = speed_from_layer_seconds(run, PADDED_VOCAB, by_flops.block_forward, by_flops.block_backward)
    assert list(vars(given).values()) == pytest.approx(list(vars(by_flops).values()))
    (tmp_path / "m.json").write_text(json.dumps(vars(by_flops)))
    assert read_measured(tmp_path / "m.json") == by_flops
    for text in (
        '{"block_forward": 1}',
        '{"block_forward": 1, "block_backward": 2, "head": "fast"}',
        "[1]",
        "{",
        '{"x": 1}',
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.json is not a JSON object of seconds"):
            read_measured(tmp_path / "bad.json")


def straight_of(run: RunConfig, sizes: tuple[int, int, int] = (1, 2, 1)) -> list[Any]:
    (entry,) = planned(run, Cluster(sizes[0] * sizes[1] * sizes[2]), top=1, only=sizes).best
    return straight_pipelines(entry.step)


def test_a_straight_pipeline_holds_copies_of_the_core() -> None:
    """1+2R3+1 on two ranks is cut in the middle of its second loop: both ranks hold both core layers."""
    run = config()
    counts = count_parameters(run.model, run.recursion, PADDED_VOCAB)
    first = straight_of(run)[0]
    assert first.num_passes == 1 and first.num_copied_parameters == counts.core
    assert sum(first.num_parameters) == counts.total + counts.core
    assert first.tie_bytes == 2 * 4 * counts.core / 2
    vanilla = config(recursion="1+2+2+2+1")
    assert straight_of(vanilla)[0].num_copied_parameters == 0 == straight_of(vanilla)[0].tie_bytes


@pytest.mark.parametrize(
    ("scheme", "num_states", "num_weights"),
    [
        ("base", 0, 0),
        ("residual", 1, 0),
        ("anchor", 1, 0),
        ("residual+anchor*", 2, 0),
        ("static", 2, 0),
        ("dynamic", 3, 0),
        ("mesh", 4, 12),
    ],
)
def test_states_that_would_travel_with_a_straight_pipeline(scheme: str, num_states: int, num_weights: int) -> None:
    """Cut after layer 4 of 1+2R3+1, in the middle of the second loop: mesh has three sources, h(1), and two write weights of 6 slots."""
    run = config(recursion_scheme=scheme, pipe_partition_method="uniform")
    first = straight_of(run)[0]
    per_token = num_states * 128 * 4 + num_weights * 4
    assert first.highway_bytes == 2 * per_token * 128 * 16


def test_the_report_is_json_and_its_text_holds_it() -> None:
    run = config()
    cluster = Cluster(4)
    found = planned(run, cluster)
    report = report_plan(run, found, cluster, SPEED, "as given")
    read = json.loads(json.dumps(report))
    assert (
        read["layouts"] == report["layouts"] and read["ruled_out"] == report["ruled_out"] and set(read) == set(report)
    )
    best = report["layouts"][0]
    assert best["tokens_per_second"] * best["seconds_per_step"] == pytest.approx(16 * 128)
    total = count_parameters(run.model, run.recursion, PADDED_VOCAB).total
    assert report["model"]["parameters"] == total and report["num_possible"] == found.num_possible
    text = describe_plan(report)
    assert f"{total:,} parameters" in text and "a block: 1 ms forward, 2 ms backward per sequence, as given" in text
    assert "straight, 1F1B" in text and "ruled out" in text and "stages 2 and 3 do not work with a pipeline" in text
    assert text.count("\n") < 40 and max(map(len, text.splitlines())) < 300
