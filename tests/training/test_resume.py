"""What a run may change before it continues from a checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from megamesh.config.batch import resolve_batch
from megamesh.config.keys import ModelConfig, ParallelConfig, RecursionConfig
from megamesh.config.load import load_config
from megamesh.errors import CheckpointError
from megamesh.training.resume import changed_order_keys, check_architecture
from tests.generation.checkpoints import run_config
from tests.hf.small_models import MESH, model_config
from tests.training.tiny import write_config


def saved_and_now(model: ModelConfig, recursion: RecursionConfig = MESH, **parallel):
    run = run_config(model, recursion, Path("vocabulary.json"))
    return run.model_dump(mode="json"), run.model_copy(update={"parallel": ParallelConfig(**parallel)})


def test_how_the_model_is_divided_does_not_matter() -> None:
    saved, _ = saved_and_now(model_config(make_vocab_size_divisible_by=128))
    _, now = saved_and_now(model_config(make_vocab_size_divisible_by=1), model_parallel_size=4, sequence_parallel=True)
    check_architecture(saved, now, Path("save"))


def test_what_the_weights_mean_does() -> None:
    saved, _ = saved_and_now(model_config())
    _, now = saved_and_now(model_config(rotary_pct=1.0))
    with pytest.raises(CheckpointError, match=r"rotary_pct was 0\.5, is 1\.0"):
        check_architecture(saved, now, Path("save"))


def test_longer_sequences_are_no_other_architecture_unless_positions_are_learned(tmp_path: Path) -> None:
    """So that a run from before the two keys were compared can follow the mend, max_position_embeddings = seq_length."""
    saved, _ = saved_and_now(model_config(seq_length=96))
    _, now = saved_and_now(model_config(seq_length=96, max_position_embeddings=96))
    check_architecture(saved, now, Path("save"))
    saved, _ = saved_and_now(model_config(pos_emb="learned"))
    _, now = saved_and_now(model_config(pos_emb="learned", max_position_embeddings=96))
    with pytest.raises(CheckpointError, match=r"max_position_embeddings was 64, is 96"):
        check_architecture(saved, now, Path("save"))
    config = load_config([write_config(tmp_path)]).run
    batch = resolve_batch(config.batch, 1)

    def changed(**model: int) -> list[str]:
        model_now = config.model.model_copy(update=model)
        meta = SimpleNamespace(config=config.model_dump(mode="json"), layout={"dp_size": 1})
        return [
            key
            for key, *_ in changed_order_keys(meta, config.model_copy(update={"model": model_now}), batch, 20)  # type: ignore[arg-type]
        ]

    assert changed(seq_length=16, max_position_embeddings=32) == [] and changed(max_position_embeddings=32) == [
        "seq_length"
    ]


def test_a_change_of_how_samples_are_made_is_told(tmp_path: Path) -> None:
    """Also against a checkpoint from before the key was there, which has its default."""
    before = load_config([write_config(tmp_path, "before")]).run
    now = load_config([write_config(tmp_path, "now", pack_impl="unpacked", data_cache_path="elsewhere")]).run
    batch = resolve_batch(now.batch, 1)
    saved = before.model_dump(mode="json")
    del saved["data"]["pack_impl"], saved["data"]["allow_chopped"]
    meta = SimpleNamespace(config=saved, layout={"dp_size": 1})
    assert changed_order_keys(meta, now, batch, 20) == [("pack_impl", "packed", "unpacked")]  # type: ignore[arg-type]
    assert changed_order_keys(meta, before, batch, 20) == []  # type: ignore[arg-type]
    by_passes = now.model_copy(update={"training": now.training.model_copy(update={"train_epochs": 2})})
    meta.config["data"] = now.model_dump(mode="json")["data"]
    assert changed_order_keys(meta, by_passes, batch, 20) == [("train_epochs", None, 2)]  # type: ignore[arg-type]
