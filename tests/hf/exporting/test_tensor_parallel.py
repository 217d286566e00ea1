"""A run divided over the tensor axis exports with the logits that its processes compute together."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megamesh.checkpoint.inference import open_checkpoint
from megamesh.checkpoint.meta import RunState
from megamesh.checkpoint.save import save_checkpoint
from megamesh.config.batch import ResolvedBatch
from megamesh.config.keys import ModelConfig, OptimizerConfig, PrecisionConfig, RecursionConfig, TrainingConfig
from megamesh.engine.engine import TrainingEngine
from megamesh.hf.exporting.export import export_model
from megamesh.hf.exporting.source import checkpoint_source
from megamesh.model.build import build_model
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import TensorParallel
from tests.distributed import run
from tests.generation.checkpoints import run_config
from tests.hf.small_models import KNOWN, MESH, PLAIN, llama_config, load, model_config, tokenizer_file, tokens

CASES = {
    "mesh": (model_config(), MESH, False),
    "mesh, GQA, gated": (llama_config(use_qk_layernorm=True), MESH, True),
    "dynamic, tied head": (
        model_config(no_weight_tying=False, scale_embeddings=True, pos_emb="learned", gpt_j_tied=True),
        RecursionConfig(recursion="1+1R2+1", recursion_scheme="dynamic"),
        True,
    ),
    "gpt_neox": (model_config(vocab_size=64), PLAIN, True),
    "llama": (llama_config(), PLAIN, False),
}


def _train_and_save(
    folder: Path, model: ModelConfig, recursion: RecursionConfig, sequence_parallel: bool, stage: int
) -> torch.Tensor:
    """A few steps on all processes, a checkpoint, and the logits [B, S, V] of the model as it is then."""
    mesh = ProcessMesh.build("cpu", tensor_parallel_size=dist.get_world_size())
    module = build_model(
        model,
        recursion,
        TrainingConfig(seed=3),
        model.vocab_size or KNOWN,
        padded_vocab_size=80,
        tp=TensorParallel.on(mesh, sequence_parallel=sequence_parallel),
    )
    optimizer: dict[str, Any] = {"type": "AdamW", "params": {"lr": 0.02}}
    engine = TrainingEngine(
        module,
        optimizer=OptimizerConfig(optimizer=optimizer, zero_optimization={"stage": stage}, warmup=0.0),
        precision=PrecisionConfig(precision="fp32"),
        batch=ResolvedBatch(4, 4, 1, 1),
        mesh=mesh,
        train_iters=10,
        device=torch.device("cpu"),
        shards=module.shards(),
    )
    for step in range(3):
        ids = tokens(size=4, length=21, seed=step)
        engine.train_step([(ids[:, :-1], ids[:, 1:], torch.ones(4, 20))])
    config = run_config(model, recursion, folder / "characters.json").model_dump(mode="json")
    save_checkpoint(folder / "save", engine, RunState(3, 12, 3), config=config, sources={})
    with torch.no_grad():
        logits = module.eval().logits(tokens())
    engine.close()
    return logits


@pytest.mark.parametrize("name", CASES)
def test_the_export_gives_the_logits_of_the_live_model(name: str, tmp_path: Path) -> None:
    tokenizer_file(tmp_path)
    ranks = run(2, _train_and_save, tmp_path, *CASES[name], 1 if name == "mesh" else 0)
    opened = open_checkpoint(tmp_path / "save")
    report = export_model(checkpoint_source(opened), opened.tokenizer, tmp_path / "export")
    theirs = load(report.output)
    with torch.no_grad():
        logits = theirs(tokens()).logits
    assert theirs.config.vocab_size == logits.shape[-1] == (CASES[name][0].vocab_size or KNOWN)
    for live in ranks:
        torch.testing.assert_close(logits, live, rtol=0, atol=1e-5 * max(1.0, live.abs().max().item()))
    assert live.std() > 0.1, "weights that move nothing would show nothing"
