"""What only a GPU can show: flash attention in bf16, the model in bf16 beside fp32, and a whole run over NCCL on one rank."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from megamesh.checkpoint.reader import read_weights
from megamesh.config.keys import RecursionConfig, TrainingConfig
from megamesh.kernels.highway import highway_read
from megamesh.model.build import build_model
from megamesh.parallel.cross_entropy import vocab_parallel_cross_entropy
from tests.model.test_transformer import VOCAB, batch, small_model
from tests.training.tiny import launch, losses, write_config, write_corpus

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = torch.device("cuda")


def test_bf16_attention_runs_on_the_flash_kernel_and_agrees_with_the_exact_one() -> None:
    recursion = RecursionConfig(recursion="1+1R2+1")
    model = build_model(
        small_model(hidden_size=128, init_method_std=0.02),
        recursion,
        TrainingConfig(),
        VOCAB,
        device=CUDA,
        dtype=torch.bfloat16,
    )
    tokens = batch()[0].to(CUDA)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = model.logits(tokens)
    with sdpa_kernel(SDPBackend.MATH):
        exact = model.float().logits(tokens)
    assert (flash.float() - exact).norm() < 2e-2 * exact.norm()


@pytest.mark.parametrize("scheme", ["base", "mesh"])
def test_loss_and_gradients_equal_the_cpu(scheme: str) -> None:
    def on(device: torch.device) -> list[torch.Tensor]:
        recursion = RecursionConfig(recursion="1+1R2+1", recursion_scheme=scheme)
        model = build_model(small_model(), recursion, TrainingConfig(), VOCAB, device=device, dtype=torch.float64)
        loss = model(*(tensor.to(device) for tensor in batch()))
        return [loss.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(loss, list(model.parameters())))]

    for cpu, cuda in zip(on(torch.device("cpu")), on(CUDA), strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-9, atol=1e-11)


def test_kernels_in_bf16_are_near_float64() -> None:
    generator = torch.Generator(CUDA).manual_seed(0)
    read, write = (torch.rand(4, 64, 5, device=CUDA, generator=generator).softmax(-1) for _ in range(2))
    sources = [torch.randn(4, 64, 256, device=CUDA, generator=generator).bfloat16() for _ in range(2)]
    exact = highway_read(read.double(), [write.double()], [source.double() for source in sources])
    assert (highway_read(read, [write], sources).double() - exact).norm() < 5e-3 * exact.norm()
    h, weight = (torch.randn(*shape, device=CUDA, generator=generator).bfloat16() for shape in ((256, 64), (1000, 64)))
    labels, mask = torch.randint(0, 1000, (256,), device=CUDA, generator=generator), torch.ones(256, device=CUDA)
    keys = dict(chunk_tokens=100, num_real_rows=990)
    loss = vocab_parallel_cross_entropy(h, weight, labels % 990, mask, **keys)
    exact_loss = vocab_parallel_cross_entropy(h.double(), weight.double(), labels % 990, mask, **keys)
    assert abs(loss / exact_loss - 1) < 1e-2


@pytest.mark.parametrize(
    ("stage", "precision", "compile_blocks"),
    [(1, "bfloat16", False), (3, "bfloat16", False), (1, "fp16", False), (1, "bfloat16", True)],
)
def test_a_run_over_nccl_learns_and_continues(tmp_path: Path, stage: int, precision: str, compile_blocks: bool) -> None:
    write_corpus(tmp_path / "corpus")
    keys = dict(precision=precision, compile=compile_blocks, zero_optimization={"stage": stage}, lr_decay_iters=20)
    launch(write_config(tmp_path, "straight", **keys), CUDA_VISIBLE_DEVICES="0")
    for last in (10, 20):
        launch(write_config(tmp_path, "halves", train_iters=last, **keys), CUDA_VISIBLE_DEVICES="0")
    straight, halves = losses(tmp_path / "straight"), losses(tmp_path / "halves")
    assert straight[20] < 0.9 * straight[1]
    assert all(abs(halves[step] / straight[step] - 1) < 1e-3 for step in straight)


def test_a_save_beside_training_copies_from_the_gpu_before_the_next_step(tmp_path: Path) -> None:
    """Half way's weights are those of a run that ends there, and not of the steps that went on while they were written."""
    write_corpus(tmp_path / "corpus")
    keys = dict(precision="bfloat16", lr_decay_iters=20, checkpoint_factor=10)
    launch(write_config(tmp_path, "beside", async_save=True, **keys), CUDA_VISIBLE_DEVICES="0")
    launch(write_config(tmp_path, "half", train_iters=10, **keys), CUDA_VISIBLE_DEVICES="0")
    beside, half, end = (
        dict(read_weights(tmp_path / path)) for path in ("beside/global_step10", "half", "beside/global_step20")
    )
    for name, expected in half.items():
        moved = (end[name] - expected).norm()
        assert (beside[name] - expected).norm() <= 1e-3 * (expected.norm() + moved), name
