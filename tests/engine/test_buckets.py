"""The buckets that a real DeepSpeed engine holds, against what is counted; and what cutting one leaves as it was: every bit."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from megamesh.config.deepspeed import reduction_buckets
from megamesh.config.keys import PrecisionConfig
from megamesh.engine import engine as engine_module
from tests.distributed import run
from tests.engine.runs import VOCAB, Setup, fingerprint, full_state, train, training

WIDTH, NUM_PARAMETERS = 32, 2 * 64 * 32 + 64
HUGE, MEDIUM, SMALL = 10**7, 3000, 2000
"""Elements of a bucket: more than all parameters; enough for each, not for two; too few for a matrix."""
BLOCKS: list[dict[str, Any]] = [
    {"reduce_bucket_size": HUGE},
    {"reduce_bucket_size": MEDIUM, "overlap_comm": True},
    {"reduce_bucket_size": SMALL},
    {"reduce_bucket_size": HUGE, "contiguous_gradients": False},
]
"""More keys of the ZeRO block."""
EXPECTED = {  # bytes of one element, over the buckets that overlap_comm and its absence give
    ("fp32", 1): (4, 8),
    ("fp32", 2): (4, 8),
    ("bfloat16", 1): (0, 0),
    ("bfloat16", 2): (2, 4),
    ("bfloat16", 3): (4, 4),
    ("fp16", 0): (4, 8),
    ("fp16", 1): (4, 8),
    ("fp16", 2): (2, 4),
}


class Bigrams(nn.Module):
    """Two matrices and a bias: the smallest model whose gradients go through buckets in turn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor, mask_BS: Tensor) -> Tensor:
        logits_TV = self.head(self.embedding(tokens_BS)).flatten(0, 1).float()
        return nn.functional.cross_entropy(logits_TV, labels_BS.flatten())


def buffers(wrapper: Any) -> list[Tensor]:
    """Of all of the wrapper's buckets at this moment."""
    found: list[Tensor] = []
    for bucket in getattr(wrapper, "ipg_buckets", {}).values():
        found += bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
    return [buffer for buffer in found if buffer is not None]


def most_bytes_held(setup: Setup) -> int:
    """The most bytes of buckets that a step holds at a time, of all moments when a gradient arrives."""
    most = 0
    module = None if setup.pipe_parallel_size > 1 else Bigrams()
    with training(setup, module) as engine:

        def look(_: Any) -> None:
            nonlocal most
            storages = {buffer.untyped_storage().data_ptr(): buffer.nbytes for buffer in buffers(engine.access.wrapper)}
            most = max(most, sum(storages.values()))

        for parameter in engine.module.parameters():
            parameter.register_post_accumulate_grad_hook(look)
        train(engine, 0, 1)
    return most


def most_bytes_of_all(setups: Sequence[Setup]) -> list[int]:
    return [most_bytes_held(setup) for setup in setups]


def counted(setup: Setup, num_parameters: int) -> int:
    precision = PrecisionConfig(precision=setup.precision)
    on_ring = setup.pipe_parallel_size > 1
    return reduction_buckets(setup.optimizer(), precision, num_parameters, on_ring=on_ring).num_bytes


@pytest.mark.parametrize(("precision", "stage"), EXPECTED)
def test_what_deepspeed_holds_is_what_is_counted(precision: str, stage: int) -> None:
    one, overlapped = EXPECTED[precision, stage]
    setups = [Setup(stage, precision, zero=block) for block in BLOCKS]
    for held in run(2, most_bytes_of_all, setups):
        assert held == [NUM_PARAMETERS * one, MEDIUM * overlapped, SMALL * one, 0]
        assert held == [counted(setup, NUM_PARAMETERS) for setup in setups]


def test_on_a_pipeline_nothing_overlaps_and_every_rank_cuts_to_its_own_part() -> None:
    setup = Setup(1, zero={"reduce_bucket_size": HUGE, "overlap_comm": True}, pipe_parallel_size=2)
    parts = run(2, bytes_and_parameters, setup)
    assert [held for held, _ in parts] == [4 * num_parameters for _, num_parameters in parts]
    assert [held for held, _ in parts] == [counted(setup, num_parameters) for _, num_parameters in parts]
    assert len({num_parameters for _, num_parameters in parts}) == 2


def bytes_and_parameters(setup: Setup) -> tuple[int, int]:
    with training(setup) as engine:
        num_parameters = sum(parameter.numel() for parameter in engine.module.parameters())
    return most_bytes_held(setup), num_parameters


def states_cut_and_not(setup: Setup) -> tuple[dict[str, bytes], dict[str, bytes], list[int]]:
    """State after two steps with the bucket cut and as written, and the bucket's elements in both."""
    with training(setup, Bigrams()) as engine:
        train(engine, 0, 2)
        cut, size = fingerprint(full_state(engine)), engine.access.wrapper.reduce_bucket_size
    as_written = patch.object(engine_module, "fit_to_rank", lambda config, *_, **__: config)
    with as_written, training(setup, Bigrams()) as engine:
        train(engine, 0, 2)
        return cut, fingerprint(full_state(engine)), [size, engine.access.wrapper.reduce_bucket_size]


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 1), ("bfloat16", 2), ("fp16", 1), ("fp32", 3)])
def test_a_bucket_cut_to_the_model_changes_no_bit(precision: str, stage: int) -> None:
    setup = Setup(stage, precision, zero={"reduce_bucket_size": HUGE, "overlap_comm": True})
    for cut, as_written, sizes in run(2, states_cut_and_not, setup):
        assert sizes == [NUM_PARAMETERS, HUGE]
        assert cut == as_written
