"""Every counted token of a global batch has the same part in a step, whatever the micro-batch size and the layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megamesh.data.samples.batch import make_batch
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.writer import IndexedWriter
from megamesh.parallel.cross_entropy import vocab_parallel_cross_entropy
from megamesh.parallel.mesh import ProcessMesh
from megamesh.training.hooks.metrics_file import read_metrics
from megamesh.training.token_weights import weigh_tokens
from tests.distributed import run
from tests.training.test_layouts import KEYS, whole_run
from tests.training.tiny import VOCAB, write_corpus

SAMPLES, S, D = 8, 5, 3


def sample(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels; of sample 3 nothing is counted, of the others more or less."""
    generator = np.random.default_rng(number)
    tokens = generator.integers(0, VOCAB, S + 1)
    return tokens, np.where(generator.random(S + 1) < (0 if number == 3 else number / SAMPLES), tokens, -100)


def head() -> tuple[torch.Tensor, torch.Tensor]:
    """States of every token of the vocabulary [VOCAB, D], and the head's weight [VOCAB, D]."""
    generator = torch.Generator().manual_seed(1)
    h, weight = (torch.randn(VOCAB, D, generator=generator, dtype=torch.float64) for _ in range(2))
    return h, weight.requires_grad_()


def mean_over_micro_batches(micro: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient as a step finds them: the mean over micro-batches and ranks."""
    mesh = ProcessMesh.build("cpu")
    h, weight = head()
    ids = np.arange(SAMPLES).reshape(-1, mesh.size("dp"), micro)[:, mesh.rank("dp")]
    batches = [make_batch(*zip(*map(sample, rows), strict=True)) for rows in ids]  # type: ignore[arg-type]
    losses = [
        vocab_parallel_cross_entropy(
            h[batch.tokens_BS.flatten()], weight, batch.labels_BS.flatten(), batch.loss_mask_BS.flatten(), chunk_tokens=4,
            num_real_rows=VOCAB,
        )
        for batch in weigh_tokens(batches, mesh, torch.device("cpu"))
    ]  # fmt: skip
    loss = torch.stack(losses).mean() / mesh.size("dp")
    loss.backward()
    assert weight.grad is not None
    found = torch.cat((loss.detach()[None], weight.grad.flatten()))
    torch.distributed.all_reduce(found, group=mesh.group("dp"))
    return found[0].item(), found[1:]


@pytest.mark.parametrize(("num_ranks", "micro"), [(1, 8), (1, 1), (2, 1), (2, 4), (4, 2)])
def test_loss_and_gradient_are_the_mean_over_counted_tokens(num_ranks: int, micro: int) -> None:
    h, weight = head()
    tokens, labels = (torch.from_numpy(np.stack(rows)) for rows in zip(*map(sample, range(SAMPLES)), strict=True))
    logits = h[tokens[:, :-1].flatten()] @ weight.T
    expected = F.cross_entropy(logits, labels[:, 1:].flatten())  # -100 is not counted
    expected.backward()
    assert weight.grad is not None
    for loss, gradient in run(num_ranks, mean_over_micro_batches, micro):
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(gradient, weight.grad.flatten(), rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with labels of which whole stretches are not counted."""
    folder = tmp_path_factory.mktemp("labelled")
    write_corpus(folder / "corpus")
    tokens, generator = IndexedDataset(folder / "corpus"), np.random.default_rng(4)
    with IndexedWriter(folder / "labels", np.int32) as writer:
        for number in range(len(tokens)):
            counted = np.repeat(generator.random(20) < 0.4, 10)[: len(tokens[number])]
            writer.add_document(np.where(counted, tokens[number].astype(np.int32), -100))
    return folder


LABELLED: dict[str, Any] = {
    "data_path": None, "split": None, "eval_interval": 100, "eval_iters": 0, "hidden_dropout": 0.0,
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {
    "whole batches": {"num_processes": 1, "train_micro_batch_size_per_gpu": 4},
    "data parallel": {"num_processes": 2, "train_micro_batch_size_per_gpu": 1},
    "ring": {"num_processes": 2, "pipe_parallel_size": 2, "train_micro_batch_size_per_gpu": 1},
}


@pytest.mark.parametrize("kind", ["labels", "unpacked"])
def test_a_run_does_not_depend_on_the_micro_batch(folder: Path, kind: str) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    for name, layout in LAYOUTS.items():
        keys = LABELLED | {"train_data_paths": [str(folder / "corpus")]}
        keys |= {"train_label_data_paths": [str(folder / "labels")]} if kind == "labels" else {"pack_impl": "unpacked"}
        save = whole_run(folder, f"{kind} {name}", **layout, **keys)
        rows = [row for row in read_metrics(save / "metrics.jsonl") if row["kind"] == "train"]
        found[name] = {key: [row[key] for row in rows] for key in ("loss", "grad_norm")}
    assert len(found["ring"]["loss"]) == KEYS["train_iters"]
    for name in LAYOUTS:
        for key in ("loss", "grad_norm"):
            assert found[name][key] == pytest.approx(found["whole batches"][key], rel=2e-5), (name, key)
