"""What was imported starts a run on any layout: masters and weights are the source's bit for bit, and so is the first loss."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.checkpoint.load import load_checkpoint
from megamesh.hf.importing.importing import import_model
from megamesh.hf.importing.pretrained import read_pretrained_weights
from tests.distributed import run
from tests.engine.runs import SEQUENCE, VOCAB, Setup, full_state, global_batch, train, training
from tests.hf.stock_models import saved, stock_model

NEOX: dict[str, Any] = {"gpt_j_residual": True, "rotary_pct": 0.25, "layernorm_epsilon": 1e-4, "rotary_emb_base": 5e3}
LLAMA: dict[str, Any] = {
    "num_kv_heads": 2,
    "norm": "rmsnorm",
    "rms_norm_epsilon": 1e-5,
    "activation": "swiglu",
    "intermediate_size": 48,
    "rotary_pct": 1.0,
    "rotary_emb_base": 5e3,
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
}
SIZES = {"vocab_size": VOCAB, "num_hidden_layers": 4, "max_position_embeddings": SEQUENCE}


def load_and_step(setup: Setup, folder: Path) -> tuple[dict[str, torch.Tensor], int, float]:
    """Masters and moments as loaded, Adam's step count, and the loss of the first step."""
    with training(setup) as engine:
        state = load_checkpoint(folder, engine, weights_only=True)
        loaded, steps = full_state(engine), engine.access.step_count()
        assert (state.step, engine.num_steps) == (0, 0)
        return loaded, steps, train(engine, 0, 1)[0].loss


def their_loss(module: Any) -> float:
    tokens_BS, labels_BS, _ = global_batch(0)
    with torch.no_grad():
        logits_BSV = module(tokens_BS).logits
    return float(torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten()))


@pytest.mark.parametrize(
    ("name", "setup"),
    [
        ("neox-parallel", Setup(scheme=None, model=NEOX, tensor_parallel_size=2, sequence_parallel=True)),
        ("neox-parallel", Setup(1, scheme=None, model=NEOX, pipe_parallel_size=2)),
        ("neox-parallel", Setup(3, scheme=None, model=NEOX)),
        ("llama-tied", Setup(1, scheme=None, model=LLAMA, tied=True, tensor_parallel_size=2)),
        ("llama-tied", Setup(scheme=None, model=LLAMA, tied=True, pipe_parallel_size=2)),
        ("llama", Setup(3, scheme=None, model=LLAMA)),
    ],
    ids=["neox tp2", "neox pp2", "neox dp2 ZeRO 3", "llama tp2", "llama pp2", "llama dp2 ZeRO 3"],
)
def test_every_layout_begins_with_the_imported_weights(name: str, setup, tmp_path: Path) -> None:
    sizes = SIZES if name.startswith("llama") else SIZES | {"intermediate_size": 128}
    module = stock_model(name, **sizes)
    folder = saved(module, tmp_path / "theirs")
    import_model(folder, tmp_path / "run", check="none")
    answers = run(2, load_and_step, setup, tmp_path / "run")
    found = {key: tensor for state, _, _ in answers for key, tensor in state.items()}
    expected = {f"fp32.{name}": tensor for name, tensor in read_pretrained_weights(folder)}
    assert {key for key in found if key.startswith("fp32.")} == expected.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, expected.get(key, torch.zeros_like(tensor))), key
    assert {steps for _, steps, _ in answers} == {0}
    for _, _, loss in answers:
        assert loss == pytest.approx(their_loss(module), rel=1e-6)
