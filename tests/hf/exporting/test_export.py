"""An export is there whole and proven, or not at all."""

import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from megamesh.config.keys import ModelConfig
from megamesh.errors import CheckpointError, ConfigError
from megamesh.hf.exporting import export as export_module
from megamesh.hf.exporting.export import export_model
from megamesh.hf.exporting.source import ModelSource
from megamesh.hf.exporting.weights import parse_size
from megamesh.hf.importing.imported_config import from_hf_config
from tests.hf.small_models import (
    KNOWN,
    MESH,
    PLAIN,
    build,
    export,
    llama_config,
    load,
    model_config,
    source,
    tokenizer,
    tokenizer_file,
    tokens,
)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "characters.json")


def test_all_that_a_user_needs_is_there(tmp_path: Path) -> None:
    folder = export(build(model_config()), tmp_path)
    assert left_over(folder) == [
        "README.md",
        "blocks_megamesh.py",
        "config.json",
        "configuration_megamesh.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_megamesh.py",
        "recursion_megamesh.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert left_over(tmp_path) == ["export"]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 0 and generation.get("suppress_tokens") is None
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == KNOWN == 57
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["padding_side"] == "left" and settings["model_max_length"] == 64 and settings["pad_token"]
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("model", "recursion"), [(model_config(), MESH), (model_config(), PLAIN), (llama_config(), PLAIN)]
)
def test_the_tokenizer_gives_our_ids_whatever_the_architecture(model, recursion: str | None, tmp_path: Path) -> None:
    folder = export(build(model, recursion), tmp_path, recursion)
    theirs, ours = AutoTokenizer.from_pretrained(folder, trust_remote_code=True), tokenizer(tmp_path)
    text = " Two words.\n The  end"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == ours.eod_id


def test_ids_that_the_tokenizer_does_not_know_are_named_and_suppressed(tmp_path: Path) -> None:
    folder = export(build(model_config(vocab_size=64)), tmp_path)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 64
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(range(KNOWN, 64))
    assert "The tokenizer knows 57 of the model's 64 token ids" in (folder / "README.md").read_text()


def test_the_report_says_how_close_the_logits_are(tmp_path: Path) -> None:
    report = export_model(source(build(model_config())), tokenizer(tmp_path), tmp_path / "export")
    assert report.class_name == "MegaMeshForCausalLM" and report.agreement.max_logit > 1
    assert 0 <= report.agreement.max_difference < 1e-4


def test_large_weights_are_sharded_and_load_the_same(tmp_path: Path) -> None:
    ours = build(model_config())
    folder = export(ours, tmp_path, max_shard_bytes=40_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2 and {file.name for file in files} == set(index["weight_map"].values())
    total = 0
    for file in files:
        with safe_open(file, "pt") as shard:
            sizes = [shard.get_tensor(key).nbytes for key in shard.keys()]  # noqa: SIM118 - not a dictionary
        total += sum(sizes)
        assert sum(sizes) <= 40_000
    assert total == index["metadata"]["total_size"] == 4 * sum(p.numel() for p in ours.parameters())
    with torch.no_grad():
        torch.testing.assert_close(load(folder)(tokens()).logits, ours.logits(tokens()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recursion", [MESH, PLAIN])
def test_bfloat16_rounds_each_weight_once(recursion: str | None, tmp_path: Path) -> None:
    ours = build(model_config(scale_embeddings=True), recursion)
    theirs = load(export(ours, tmp_path, recursion, dtype="bfloat16"), dtype="auto")
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.lm_head.weight, ours.head.weight.bfloat16())
    scale = 1.0 if recursion is MESH else 32**0.5
    assert torch.equal(theirs.get_input_embeddings().weight, (ours.embedding.weight * scale).bfloat16())


def test_an_existing_target_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = export(build(model_config()), tmp_path)
    before = (folder / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="exists"):
        export(build(model_config(), PLAIN), tmp_path, PLAIN)
    assert (folder / "config.json").read_bytes() == before


def test_a_wrong_export_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export_module.export_tensors

    def off_by_a_thousandth(*args):
        return (
            (name, tensor * 1.001 if "core.0.mlp.down_proj.weight" in name else tensor) for name, tensor in real(*args)
        )

    monkeypatch.setattr(export_module, "export_tensors", off_by_a_thousandth)
    with pytest.raises(CheckpointError, match="those of transformers differ"):
        export(build(model_config()), tmp_path)
    assert left_over(tmp_path) == []

    monkeypatch.setattr(export_module, "export_tensors", lambda *args: list(real(*args))[:-1])
    with pytest.raises(CheckpointError, match=r"never written, the first of them lm_head\.weight"):
        export(build(model_config()), tmp_path)
    assert left_over(tmp_path) == []


def test_weights_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    ours = build(model_config())
    ours.head.weight.data[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        export(ours, tmp_path)
    other = source(build(model_config(intermediate_size=64)))
    with pytest.raises(CheckpointError, match=r"mlp\.up\.weight has shape \(64, 32\)"):
        export_model(ModelSource(model_config(), MESH, KNOWN, other.weights), tokenizer(tmp_path), tmp_path / "export")
    with pytest.raises(CheckpointError, match="57 token ids"):
        export_model(ModelSource(model_config(), MESH, 32, other.weights), tokenizer(tmp_path), tmp_path / "export")
    assert left_over(tmp_path) == []


@contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """No file can grow beyond a size, as on a full disk."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("num_bytes", [1000, 50_000], ids=["small files", "weights"])
def test_a_disk_that_takes_no_more_leaves_nothing(num_bytes: int, tmp_path: Path) -> None:
    ours = build(model_config())
    tokenizer_file(tmp_path)
    with limited_files(num_bytes), pytest.raises(CheckpointError, match="could not be written"):
        export(ours, tmp_path)
    assert left_over(tmp_path) == []


def test_weights_that_cannot_fit_are_refused_before_any_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(export_module, "ShardWriter", None)
    with pytest.raises(CheckpointError, match="GB are free there"):
        export(build(model_config()), tmp_path)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(("text", "expected"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("2GiB", 2**31), ("17", 17)])
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "5TB", "GB", "-1GB", "0GB", "٣GB", "9" * 5000])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("model", [model_config, llama_config], ids=["megamesh", "llama"])
@pytest.mark.parametrize(("trained", "positions"), [(32, 64), (64, 64), (None, 64), (96, 96)])
def test_the_trained_length_is_beside_the_positions(
    model: Callable[..., ModelConfig], trained: int | None, positions: int, tmp_path: Path
) -> None:
    """96: a run from before the two were compared trained beyond its max_position_embeddings=64, without learned positions."""
    folder = export(build(model(seq_length=trained), PLAIN), tmp_path, PLAIN)
    keys = json.loads((folder / "config.json").read_text())
    assert (keys["trained_sequence_length"], keys["max_position_embeddings"]) == (trained or 64, positions)
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == positions
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).trained_sequence_length == (trained or 64)
    length = "32 tokens (`trained_sequence_length`), of 64 that it takes" if trained == 32 else f"{positions} tokens"
    assert f"| longest trained sequence | {length} |" in (folder / "README.md").read_text()
    imported = from_hf_config(keys).model
    assert (imported.sequence_length, imported.longest_sequence) == (trained or 64, positions)
