"""The memory estimate, against what a real model holds: its parameters exactly, its activations nearly."""

from typing import Any

import pytest
import torch

from megamesh.config.batch import resolve_batch
from megamesh.config.load import load_config
from megamesh.config.sections import RunConfig
from megamesh.model.build import build_model, empty_model
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import SINGLE, TensorParallel
from megamesh.planning.memory import memory_per_rank, parameters_per_rank
from tests.distributed import run as run_processes
from tests.model.test_transformer import saved_bytes
from tests.schemes import DIVIDED, SCHEMES

SMALL = {
    "num_layers": 8,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pos_emb": "rotary",
    "rotary_pct": 0.25,
    "no_weight_tying": True,
    "gpt_j_residual": True,
    "vocab_size": 120,
    "make_vocab_size_divisible_by": 32,
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 2,
    "precision": "fp32",
}
VOCAB, PADDED_VOCAB = 120, 128
GATED = {"gpt_j_residual": False, "activation": "swiglu", "intermediate_size": 344, "num_kv_heads": 2}
MESH = {"recursion": "1+2R3+1", "recursion_scheme": "mesh"}


def config(**keys: Any) -> RunConfig:
    return load_config([], {**SMALL, **keys}, for_training=False).run


def estimate(run: RunConfig, data_parallel_size: int = 1) -> dict[str, int]:
    return memory_per_rank(run, resolve_batch(run.batch, data_parallel_size), PADDED_VOCAB)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    ("precision", "stage", "weights", "gradients", "optimizer", "buckets"),
    [  # bytes per parameter at 8 data-parallel ranks
        ("fp32", 0, 4, 4, 8, 0),
        ("fp32", 1, 4, 4, 12 / 8, 8),
        ("bfloat16", 0, 2, 4, 12 / 8, 0),
        ("bfloat16", 1, 2, 4, 12 / 8, 0),
        ("bfloat16", 2, 2, 4 / 8, 12 / 8, 4),
        ("bfloat16", 3, 2 / 8, 4 / 8, 12 / 8, 4),
        ("fp16", 0, 2, 4, 12 / 8, 8),
        ("fp16", 3, 2 / 8, 4 / 8, 12 / 8, 4),
    ],
)
def test_memory_by_zero_stage(
    precision: str, stage: int, weights: float, gradients: float, optimizer: float, buckets: int, size: int
) -> None:
    zero = {"stage": stage, "overlap_comm": True}
    run = config(precision=precision, zero_optimization=zero, model_parallel_size=size)
    memory, total = estimate(run, data_parallel_size=8), parameters_per_rank(run, PADDED_VOCAB)
    for part, per_parameter in (
        ("weights", weights),
        ("gradients", gradients),
        ("optimizer", optimizer),
        ("buckets", buckets),
    ):
        assert memory[part] == int(per_parameter * total)
    assert memory["total"] == sum(value for part, value in memory.items() if part != "total")


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"pos_emb": "learned", "no_weight_tying": False, "use_qk_layernorm": True, **MESH},
        GATED | {"num_kv_heads": 4, "norm": "rmsnorm", "use_bias_in_attn_linear": False, "use_bias_in_mlp": False},
    ],
    ids=["NeoX", "learned, tied, mesh", "Llama"],
)
def test_parameters_of_a_rank_are_those_of_its_part_of_the_model(keys: dict[str, Any], size: int) -> None:
    run = config(model_parallel_size=size, **keys)
    for rank in range(size):
        part = empty_model(
            run.model,
            run.recursion,
            VOCAB,
            device="meta",
            padded_vocab_size=PADDED_VOCAB,
            tp=TensorParallel(size, rank),
        )
        assert parameters_per_rank(run, PADDED_VOCAB) == sum(parameter.numel() for parameter in part.parameters())


def test_recomputation_keeps_fewer_activations() -> None:
    kept, per_block, per_loop = (
        estimate(config(**MESH, **keys))["activations"]
        for keys in (
            {},
            {"checkpoint_activations": True},
            {"checkpoint_activations": True, "checkpoint_activations_per": "loop"},
        )
    )
    assert per_block < per_loop < kept / 2


def saved_here(run: RunConfig) -> int:
    """Bytes that one micro-batch keeps for backward on this rank."""
    size, tp = run.parallel.model_parallel_size, SINGLE
    if size > 1:
        mesh = ProcessMesh.build("cpu", tensor_parallel_size=size)
        tp = TensorParallel.on(mesh, sequence_parallel=run.parallel.sequence_parallel)
    model = build_model(run.model, run.recursion, run.training, VOCAB, padded_vocab_size=PADDED_VOCAB, tp=tp)
    tokens_BS = torch.zeros(2, run.model.sequence_length, dtype=torch.long)
    return saved_bytes(model, (tokens_BS, tokens_BS, torch.ones(tokens_BS.shape)))


LAYOUTS = [(1, False), (2, False), (2, True)]


def saved_on_every_rank(run: RunConfig) -> list[int]:
    size = run.parallel.model_parallel_size
    return run_processes(size, saved_here, run) if size > 1 else [saved_here(run)]


@pytest.mark.parametrize(("size", "sequence_parallel"), LAYOUTS)
@pytest.mark.parametrize("keys", [{}, GATED, MESH], ids=["NeoX", "gated", "mesh"])
def test_activations_are_about_what_torch_saves_for_backward(
    keys: dict[str, Any], size: int, sequence_parallel: bool
) -> None:
    """The estimate leaves out small things (rotary halves, norms' statistics), so it may be up to a sixth low, and never high.

    Not RMSNorm: on a CPU, torch composes it of operations that keep one state more than the fused one of a GPU does.
    """
    run = config(model_parallel_size=size, sequence_parallel=sequence_parallel, **keys)
    memory = estimate(run)
    for saved in saved_on_every_rank(run):
        assert 5 / 6 < (memory["activations"] + memory["highway"]) / saved < 1


@pytest.mark.parametrize(("size", "sequence_parallel"), LAYOUTS)
@pytest.mark.parametrize("scheme", DIVIDED)
def test_what_a_highway_costs_over_plain_recursion_is_exact(scheme: str, size: int, sequence_parallel: bool) -> None:
    def measured_and_estimated(scheme: str) -> tuple[int, int]:
        keys = {**MESH, "recursion_scheme": scheme}
        run = config(model_parallel_size=size, sequence_parallel=sequence_parallel, **keys)
        memory = estimate(run)
        return saved_on_every_rank(run)[0], memory["activations"] + memory["highway"]

    (measured, estimated), (measured_base, estimated_base) = map(measured_and_estimated, (scheme, "base"))
    assert measured - measured_base == estimated - estimated_base


@pytest.mark.parametrize("scheme", DIVIDED)
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_highway_is_divided_over_tensor_ranks_in_both_modes(scheme: str, sequence_parallel: bool) -> None:
    whole = estimate(config(**{**MESH, "recursion_scheme": scheme}))["highway"]
    keys = {**MESH, "recursion_scheme": scheme, "model_parallel_size": 4, "sequence_parallel": sequence_parallel}
    assert whole > 0 and estimate(config(**keys))["highway"] * 4 == whole


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in DIVIDED])
def test_sums_keep_nothing_on_a_highway(scheme: str) -> None:
    assert estimate(config(**{**MESH, "recursion_scheme": scheme}))["highway"] == 0


def test_sequence_parallel_divides_what_tensor_parallelism_leaves_whole() -> None:
    one, replicated, split = (
        estimate(config(**keys))["activations"]
        for keys in (
            {},
            {"model_parallel_size": 4},
            {"model_parallel_size": 4, "sequence_parallel": True},
        )
    )
    assert split == one // 4 < replicated < one


def test_the_loss_is_divided_by_vocabulary() -> None:
    """Logits of a chunk and the fp32 gradient of the head's weight; the gradient of its input is whole."""
    one, two = (estimate(config(model_parallel_size=size, loss_chunk_tokens=64))["loss"] for size in (1, 2))
    assert one == 64 * PADDED_VOCAB * 12 + PADDED_VOCAB * 128 * 4 + 256 * 128 * 4
    assert two == (one - 256 * 128 * 4) // 2 + 256 * 128 * 4


def test_sixteen_bits_halve_activations() -> None:
    wide, half, brain = (
        estimate(config(precision=precision))["activations"] for precision in ("fp32", "fp16", "bfloat16")
    )
    assert half == brain == wide // 2
