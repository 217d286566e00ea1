"""What the state buffer costs in activation memory, at the shape of the quickstart."""

from pathlib import Path

import pytest
import torch

from megamesh.config.keys import RecursionConfig, TrainingConfig
from megamesh.config.load import load_config
from megamesh.model.build import build_model
from tests.model.test_transformer import batch, saved_bytes

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart"
VOCAB = 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mesh_keeps_at_most_3_percent_more_than_plain_recursion(dtype: torch.dtype) -> None:
    run = load_config([QUICKSTART / "common.yml", QUICKSTART / "mesh.yml"], for_training=False).run

    def kept(scheme: str) -> int:
        recursion = RecursionConfig(recursion=run.recursion.recursion, recursion_scheme=scheme)
        model = build_model(run.model, recursion, TrainingConfig(), VOCAB, dtype=dtype)
        return saved_bytes(model, batch(length=run.model.sequence_length))

    base, mesh = kept("base"), kept("mesh")
    print(f"{dtype}: base {base:,} bytes, mesh {mesh:,} bytes, ratio {mesh / base:.4f}")
    assert base < mesh <= 1.03 * base
