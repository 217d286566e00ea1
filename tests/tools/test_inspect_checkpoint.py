"""tools/inspect_checkpoint.py: what it lists, verifies and compares, and its exit status."""

import json
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint.weights import save_weights
from tools.inspect_checkpoint import main

CONFIG = {"model": {"hidden_size": 8, "max_position_embeddings": 16}}


def write(folder: Path, seed: int = 0, width: int = 8) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "embedding.weight": torch.randn(10, width, generator=generator),
        "core.2.mlp.up.weight": torch.randn(width, 4, generator=generator),
        "core.10.mlp.up.weight": torch.randn(width, 4, generator=generator) + seed,
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sources = {"model.yml": f"hidden_size: {width}\nseed: {seed}\n"}
    return save_weights(folder, shapes, tensors.__getitem__, config=CONFIG, sources=sources, seed=seed)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


def test_a_run_and_its_latest_checkpoint_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "save", seed=3)
    status, out = run(capsys, tmp_path / "save", "--norms", "--yaml")
    assert status == 0
    for text in (
        "global_step0",
        "complete, latest",
        "0 samples, 0 tokens",
        "seed        3",
        "seed: 3",
        "144 parameters",
    ):
        assert text in out
    rows = [line.split() for line in out.splitlines() if ".weight" in line]
    assert [row[0] for row in rows] == ["embedding.weight", "core.2.mlp.up.weight", "core.10.mlp.up.weight"]
    assert rows[0][1:-1] == ["10", "×", "8", "float32", "1"]
    norm = torch.randn(10, 8, generator=torch.Generator().manual_seed(0)).norm().item()
    assert float(rows[0][-1]) == pytest.approx(norm, rel=1e-5)
    assert run(capsys, "list", path, "--filter", "core.2.*")[1].count(".weight") == 1


def test_a_listing_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "save")
    (tmp_path / "save" / ".saving-global_step7").mkdir()
    found = json.loads(run(capsys, tmp_path / "save", "--json")[1])
    assert found["checkpoint"] == found["run"]["latest"] == str(path) and found["meta"]["state"]["seed"] == 0
    assert [(save["step"], save["complete"]) for save in found["run"]["saves"]] == [(0, True), (7, False)]
    assert found["tensors"][0]["key"] == "fp32.embedding.weight" and found["tensors"][0]["shape"] == [10, 8]
    assert list(found["configs"]) == ["model.yml"]


def test_verifying_names_the_damage_and_ends_with_status_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = write(tmp_path / "save"), write(tmp_path / "other")
    assert run(capsys, "verify", tmp_path / "save", other)[0] == 0
    file = next(path.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    status, out = run(capsys, "verify", tmp_path / "save", other)
    assert status == 1
    assert f"{path}: 1 problem\n" in out and f"{other}: all is well" in out
    assert f"{file.name}: fp32.core." in out and "another checksum" in out
    status, out = run(capsys, "verify", path, "--json")
    (problem,) = json.loads(out)["problems"][str(path)]
    assert status == 1 and problem["file"] == file.name
    (tmp_path / "save" / "latest").write_text("global_step5")
    assert "latest: " in run(capsys, "verify", tmp_path / "save")[1]


def test_comparing_says_how_much_differs_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", seed=0), write(tmp_path / "b", seed=1), write(tmp_path / "c", width=6)
    status, out = run(capsys, "compare", tmp_path / "a", tmp_path / "a")
    assert status == 0 and "3 tensors in both: 3 bit-identical, 0 different" in out
    status, out = run(capsys, "compare", tmp_path / "a", tmp_path / "b")
    assert status == 1 and "2 bit-identical, 1 different" in out
    row = next(line.split() for line in out.splitlines() if "fp32.core.10" in line)
    assert row[:5] == ["fp32.core.10.mlp.up.weight", "8", "×", "4", "1"]
    assert "-seed: 0" in out and "+seed: 1" in out
    assert run(capsys, "compare", tmp_path / "a", tmp_path / "b", "--filter", "core.2.*")[0] == 0
    found = json.loads(run(capsys, "compare", tmp_path / "a", tmp_path / "c", "--json")[1])
    assert found["other_shape"][0] == ["fp32.embedding.weight", [10, 8], [10, 6]] and not found["bit_identical"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("{folder}/none",), "none does not exist"),
        (("list", "{folder}"), "holds neither `latest` nor a complete checkpoint"),
        (("verify", "{folder}"), "holds no complete checkpoint to verify"),
        (("{folder}/save", "--filter", "core.7.*"), "holds no parameter that fits --filter=core.7.*"),
        (("compare", "{folder}/save", "{folder}/none"), "none does not exist"),
    ],
)
def test_what_cannot_be_read_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments, text: str
) -> None:
    write(tmp_path / "save")
    assert main([argument.format(folder=tmp_path) for argument in arguments]) == 1
    told = capsys.readouterr().err
    assert text in told and told.count("error: ") == 1
