"""A checkpoint folder suffices to load a model, and what does not fit is named."""

import json
from pathlib import Path

import pytest
import torch

import megamesh
from megamesh.checkpoint.inference import load_for_inference, open_checkpoint
from megamesh.checkpoint.meta import CheckpointMeta, RunState
from megamesh.config.batch import resolve_batch
from megamesh.config.keys import BatchConfig, CheckpointConfig
from megamesh.config.sections import RunConfig
from megamesh.errors import CheckpointError, DataError
from megamesh.training.resume import find_start
from tests.generation.checkpoints import rewrite_meta, run_config, write_checkpoint
from tests.hf.small_models import MESH, PLAIN, build, llama_config, model_config, tokenizer_file, tokens


def test_the_folder_alone_gives_model_configuration_and_tokenizer(tmp_path: Path) -> None:
    ours = build(llama_config(no_weight_tying=False))
    folder = write_checkpoint(tmp_path / "save", ours, MESH, tokenizer_file(tmp_path))
    for path in (folder, tmp_path / "save"):
        model, run, tokenizer = load_for_inference(path)
        assert run.model == ours.config and run.recursion == MESH and tokenizer.vocab_size == 57
        assert not model.training and model.head.weight is model.embedding.weight
        with torch.no_grad():
            assert torch.equal(model.logits(tokens()), ours.logits(tokens()))
    half, _, _ = load_for_inference(folder, dtype=torch.bfloat16)
    assert torch.equal(half.embedding.weight, ours.embedding.weight.bfloat16())


def test_a_tokenizer_that_moved_can_be_named(tmp_path: Path) -> None:
    moved = tokenizer_file(tmp_path)
    folder = write_checkpoint(tmp_path / "save", build(model_config(), PLAIN), PLAIN, tmp_path / "gone.json")
    with pytest.raises(DataError) as caught:
        open_checkpoint(folder)
    gone = tmp_path / "gone.json"
    assert (
        str(caught.value) == f"{gone}: does not exist; where the tokenizer is elsewhere now, name it with --vocab-file"
    )
    assert open_checkpoint(folder, vocab_file=str(moved)).tokenizer.vocab_size == 57


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    vocab = tokenizer_file(tmp_path)
    folder = write_checkpoint(tmp_path / "save", build(model_config()), MESH, vocab)
    meta = json.loads((folder / "meta.json").read_text())

    def with_config(section: str, **changes) -> None:
        config = meta["config"] | {section: meta["config"][section] | changes}
        rewrite_meta(folder, meta | {"config": config})

    with_config("recursion", mesh_num_slots=3)
    with pytest.raises(CheckpointError, match=r"routers\.0\.write\.weight is \(5, 32\).*asks for \(3, 32\)"):
        open_checkpoint(folder)
    with_config("model", activation="tanh")
    with pytest.raises(
        CheckpointError, match=r"model\.activation='tanh', which does not fit MegaMesh .*update MegaMesh"
    ):
        open_checkpoint(folder)
    for vocab_size in (30, 64):
        with_config("model", vocab_size=vocab_size)
        with pytest.raises(DataError, match=r"57 token ids.*57 rows"):
            open_checkpoint(folder)
    for path, text in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "neither")):
        with pytest.raises(CheckpointError, match=text):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (("config", "model"), "holds model.novelty, which"),
        (("config",), "holds novelty, which"),
        (("state",), "holds state.novelty, which"),
        ((), "holds novelty, which"),
    ],
)
def test_a_newer_checkpoint_is_told_by_version_and_key(tmp_path: Path, place: tuple[str, ...], said: str) -> None:
    """By whoever reads it: a run that would go on from it, a tool that would load it."""
    folder = write_checkpoint(tmp_path / "save", build(model_config()), MESH, tokenizer_file(tmp_path))
    meta = json.loads((folder / "meta.json").read_text())
    inner = meta
    for key in place:
        inner = inner[key]
    inner["novelty"] = {"depth": 3}
    rewrite_meta(folder, meta | {"versions": {"megamesh": "9.8.7"}})
    known = RunConfig.model_validate(run_config(model_config(), MESH, tmp_path / "vocabulary.json").model_dump())
    known = known.model_copy(update={"checkpoint": CheckpointConfig(save=str(tmp_path / "save"))})
    for read in (
        lambda: open_checkpoint(folder),
        lambda: find_start(known, resolve_batch(BatchConfig(train_batch_size=8), 1), 10),
    ):
        with pytest.raises(CheckpointError) as caught:
            read()
        message = str(caught.value)
        assert "was written by MegaMesh 9.8.7" in message and said in message and "Extra inputs" not in message
        assert f"MegaMesh {megamesh.__version__} does not know; update MegaMesh" in message
    rewrite_meta(folder, meta | {"versions": {"megamesh": "9.8.7"}, "format_version": 2})
    with pytest.raises(CheckpointError, match=r"has format 2, of MegaMesh 9\.8\.7; .* reads format 1: update it"):
        open_checkpoint(folder)


def test_a_meta_without_a_configuration_is_damaged(tmp_path: Path) -> None:
    meta = json.loads(CheckpointMeta(RunState(0, 0, 7), 0, {}, {}, {}).to_json())
    with pytest.raises(CheckpointError, match=r"meta\.json is damaged: config is no block of keys"):
        CheckpointMeta.from_json(json.dumps(meta | {"config": None}), tmp_path / "meta.json")
