"""The weights of a folder, whatever files they are in; what is missing, left over, misshapen or damaged is named."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from megamesh.errors import CheckpointError
from megamesh.hf.importing.pretrained import open_pretrained, read_pretrained_weights
from megamesh.hf.names import import_tensors, reader_of
from tests.hf.stock_models import (
    OLD_LLAMA,
    OLD_PYTHIA,
    old_llama,
    old_pythia,
    saved,
    stock_model,
    write_weights,
    written,
)

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
BINS = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]


def expected(folder: Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our parameters as the table makes them of a state dict in memory."""
    return dict(import_tensors(open_pretrained(folder).table, reader_of(state)))


def assert_reads(folder: Path, state: dict[str, torch.Tensor]) -> None:
    found, wanted = dict(read_pretrained_weights(folder)), expected(folder, state)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "files", [["model.safetensors"], SHARDS, ["pytorch_model.bin"], BINS], ids=["one", "shards", "bin", "bins"]
)
def test_every_file_and_type_gives_the_values_that_were_written(files, dtype, tmp_path: Path) -> None:
    module = stock_model("llama").to(dtype)
    state = module.state_dict()
    assert_reads(written(tmp_path / "model", module.config.to_dict(), state, *files), state)


def test_files_of_save_pretrained_are_read(tmp_path: Path) -> None:
    for name in ("neox-sequential", "neox-tied", "llama-tied"):
        module = stock_model(name)
        state = module.state_dict()
        assert_reads(saved(module, tmp_path / name, max_shard_size="20KB"), state)
        assert len(list((tmp_path / name).glob("model-*.safetensors"))) > 2


def test_old_folders_are_read_and_their_buffers_left(tmp_path: Path) -> None:
    for write in (old_pythia, old_llama):
        folder, state = write(tmp_path / write.__name__)
        assert len(torch.load(folder / "pytorch_model.bin")) > len(state)
        assert_reads(folder, state)


def test_a_tied_head_may_be_stored_twice_or_in_the_embeddings_place(tmp_path: Path) -> None:
    for name, architecture, embedding, head in (
        ("neox-tied", OLD_PYTHIA["model_type"], "gpt_neox.embed_in.weight", "embed_out.weight"),
        ("llama-tied", OLD_LLAMA["model_type"], "model.embed_tokens.weight", "lm_head.weight"),
    ):
        module = stock_model(name)
        assert module.config.model_type == architecture
        state = {key: value for key, value in module.state_dict().items() if key != "lm_head.weight"}
        folder = written(
            tmp_path / name, module.config.to_dict(), state | {head: state[embedding]}, "model.safetensors"
        )
        assert_reads(folder, state)
        write_weights(
            folder, {head if key == embedding else key: value for key, value in state.items()}, "model.safetensors"
        )
        assert_reads(folder, state)
        write_weights(folder, state | {head: state[embedding] * 2}, "model.safetensors")
        with pytest.raises(
            CheckpointError, match=rf"model\.safetensors: {head} is not {embedding}.*tie_word_embeddings"
        ):
            open_pretrained(folder)


NORM, KEYS, EMBEDDING = "model.norm.weight", "model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({NORM: None}, "lacks model.norm.weight:"),
        ({NORM: None, KEYS: None}, "lacks model.layers.1.self_attn.k_proj.weight and 1 more:"),
        ({"model.extra.weight": torch.zeros(2)}, "also holds model.extra.weight:"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, "also holds model.layers.0.self_attn.q_proj.bias:"),
        ({"model.layers.3.mlp.up_proj.weight": torch.zeros(48, 32)}, "also holds model.layers.3.mlp.up_proj.weight:"),
        ({"gpt_neox.layers.0.attention.bias": torch.zeros(1)}, "also holds gpt_neox.layers.0.attention.bias:"),
        ({NORM: torch.zeros(33)}, "model.safetensors: model.norm.weight has shape (33,), config.json asks for (32,)"),
        ({KEYS: torch.zeros(32, 32)}, "k_proj.weight has shape (32, 32), config.json asks for (16, 32)"),
        ({EMBEDDING: torch.zeros(64, 32)}, "embed_tokens.weight has shape (64, 32), config.json asks for (57, 32)"),
        ({NORM: torch.zeros(32, dtype=torch.float64)}, "model.norm.weight is of type float64"),
        ({NORM: torch.zeros(32, dtype=torch.int8)}, "model.norm.weight is of type I8"),
    ],
)
def test_tensors_that_do_not_fit_the_configuration_are_named(change, text: str, tmp_path: Path) -> None:
    module = stock_model("llama")
    state = {name: tensor for name, tensor in (module.state_dict() | change).items() if tensor is not None}
    folder = written(tmp_path / "model", module.config.to_dict(), state, "model.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(text)):
        open_pretrained(folder)


def test_a_configuration_of_other_sizes_is_refused(tmp_path: Path) -> None:
    folder, _ = old_pythia(tmp_path / "pythia")
    (folder / "config.json").write_text(json.dumps(OLD_PYTHIA | {"num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"lacks gpt_neox\.layers\.3\.input_layernorm\.weight and 11 more"):
        open_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(OLD_PYTHIA | {"vocab_size": 57}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: gpt_neox\.embed_in\.weight has shape \(64, 32\)"):
        open_pretrained(folder)


def _cut(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


def _spoil(file: Path, content: bytes) -> None:
    file.write_bytes(content + file.read_bytes()[len(content) :])


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: _cut(file, file.stat().st_size - 1),
        lambda file: _cut(file, 1000),
        lambda file: _cut(file, 4),
        lambda file: _cut(file, 0),
        lambda file: file.write_bytes(b"\xff" * 5000),
        lambda file: torch.save([1, 2], file),
    ],
    ids=["last byte", "most", "header", "all", "noise", "another thing"],
)
def test_damaged_files_are_named(kind: str, damage, tmp_path: Path) -> None:
    module = stock_model("llama")
    folder = written(tmp_path / "model", module.config.to_dict(), module.state_dict(), kind)
    damage(folder / kind)
    with pytest.raises(CheckpointError, match=kind):
        open_pretrained(folder)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({3: torch.zeros(2)}, "holds more than tensors by name"),
        (
            {"model.norm.weight": torch.eye(3).to_sparse()},
            r"model\.norm\.weight holds no plain values \(torch\.sparse_coo\)",
        ),
        ({"model.norm.weight": torch.zeros(32, device="meta")}, r"model\.norm\.weight holds no plain values \(meta\)"),
    ],
    ids=["number as name", "sparse", "meta"],
)
def test_a_pickle_of_other_things_is_named(entry, text: str, tmp_path: Path) -> None:
    module = stock_model("llama")
    folder = written(tmp_path / "model", module.config.to_dict(), module.state_dict(), "pytorch_model.bin")
    torch.save(module.state_dict() | entry, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin.*{text}"):
        open_pretrained(folder)


def test_a_header_that_is_no_header_is_named(tmp_path: Path) -> None:
    module = stock_model("llama")
    folder = written(tmp_path / "model", module.config.to_dict(), module.state_dict(), "model.safetensors")
    _spoil(folder / "model.safetensors", (2**60).to_bytes(8, "little"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        open_pretrained(folder)


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    module = stock_model("llama")
    folder = written(tmp_path / "model", module.config.to_dict(), module.state_dict(), "pytorch_model.bin")
    torch.save({"model.norm.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        open_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_shards_are_all_there_and_hold_what_the_index_says(tmp_path: Path) -> None:
    module = stock_model("llama")
    folder = written(tmp_path / "model", module.config.to_dict(), module.state_dict(), *SHARDS)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    moved = dict(whole["weight_map"])
    moved["model.norm.weight"] = next(file for file in SHARDS if file != moved["model.norm.weight"])
    index.write_text(json.dumps(whole | {"weight_map": moved}))
    with pytest.raises(CheckpointError, match=rf"{moved['model.norm.weight']} lacks model\.norm\.weight"):
        open_pretrained(folder)
    shutil.copyfile(folder / SHARDS[0], folder / "again.safetensors")
    index.write_text(json.dumps({"weight_map": whole["weight_map"] | {EMBEDDING: "again.safetensors"}}))
    with pytest.raises(CheckpointError, match=r" is both in \S+ and in \S+; remove one"):
        open_pretrained(folder)
    for text in ("", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
            open_pretrained(folder)
    index.write_text(json.dumps(whole))
    (folder / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"{SHARDS[1]} is missing"):
        open_pretrained(folder)


def test_what_is_no_folder_of_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pythia-160m is not a folder here; download"):
        open_pretrained(tmp_path / "pythia-160m")
    (tmp_path / "config.json").write_text(json.dumps(OLD_LLAMA))
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_pretrained(tmp_path)
