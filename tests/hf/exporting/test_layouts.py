"""The export of a checkpoint is the same to the last byte, whatever layout wrote the checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint.inference import open_checkpoint
from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.meta import RunState
from megamesh.checkpoint.reader import read_meta
from megamesh.checkpoint.save import save_checkpoint
from megamesh.config.keys import BatchConfig
from megamesh.engine.engine import TrainingEngine
from megamesh.hf.exporting.export import export_model
from megamesh.hf.exporting.source import checkpoint_source
from tests.distributed import run
from tests.engine.runs import GATED, GLOBAL_BATCH, VOCAB, Setup, model_configs, train, training
from tests.generation.checkpoints import run_config
from tests.hf.small_models import load, tokenizer_file, tokens

KEYS = GATED | {"use_qk_layernorm": True, "vocab_size": VOCAB}
WRITER = Setup(tensor_parallel_size=2, pipe_parallel_size=2, sequence_parallel=True, model=KEYS)
SINGLE = Setup(model=KEYS)


def _save(folder: Path, engine: TrainingEngine, vocab_file: Path) -> None:
    step = engine.num_steps
    # No global batch: what a configuration without one means depends on the number of processes.
    config = run_config(*model_configs(SINGLE), vocab_file).model_copy(
        update={"batch": BatchConfig(train_micro_batch_size_per_gpu=1)}
    )
    save_checkpoint(
        folder, engine, RunState(step, step * GLOBAL_BATCH, 7), config=config.model_dump(mode="json"), sources={}
    )


def _train_and_save(folder: Path, vocab_file: Path) -> None:
    with training(WRITER) as engine:
        train(engine, 0, 2)
        _save(folder, engine, vocab_file)


def _load_and_save(source: Path, folder: Path, vocab_file: Path) -> torch.Tensor:
    """One process takes over; its model's logits."""
    with training(SINGLE) as engine:
        state = load_checkpoint(source, engine)
        assert state.step == 2
        _save(folder, engine, vocab_file)
        with torch.no_grad():
            return engine.module.eval().logits(tokens())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("layouts")
    vocab_file = tokenizer_file(folder)
    run(4, _train_and_save, folder / "divided", vocab_file)
    (logits,) = run(1, _load_and_save, folder / "divided", folder / "single", vocab_file)
    return folder / "divided", folder / "single", logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_export_of_tp2_pp2_is_that_of_one_process_byte_for_byte(
    checkpoints: tuple[Path, Path, torch.Tensor], dtype: str, tmp_path: Path
) -> None:
    divided, single, logits = checkpoints
    assert read_meta(divided).layout == {"pp_size": 2, "dp_size": 1, "tp_size": 2, "zero_stage": 0}
    assert set(read_meta(single).layout.values()) == {0, 1}
    exported = []
    for number, checkpoint in enumerate((divided, single)):
        opened = open_checkpoint(checkpoint)
        output = tmp_path / str(number) / "model"
        export_model(checkpoint_source(opened), opened.tokenizer, output, dtype=dtype, max_shard_bytes=30_000)
        exported.append({file.name: file.read_bytes() for file in output.iterdir()})
    first, second = exported
    assert first.keys() == second.keys() and len([name for name in first if name.endswith(".safetensors")]) > 2
    assert [name for name in first if first[name] != second[name]] == []
    card = first["README.md"].decode()
    assert "| tokens seen | 128 (8 sequences of 16) |" in card and "| batch | 64 tokens (4 sequences) |" in card
    assert str(divided.parent) not in card and json.loads(first["config.json"])["vocab_size"] == VOCAB
    with torch.no_grad():
        theirs = load(tmp_path / "0" / "model")(tokens()).logits
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    torch.testing.assert_close(theirs, logits, rtol=0, atol=tolerance * logits.abs().max().item())
