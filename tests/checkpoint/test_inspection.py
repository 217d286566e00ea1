"""What a checkpoint holds is told right, whatever layout wrote it. Damage is found and named, and nothing else is; so are differences."""

import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint.comparison import TensorDifference, compare_tensors, config_differences, yaml_differences
from megamesh.checkpoint.files import CHECKSUMS_FILE, Checksums, file_checksum, read_index
from megamesh.checkpoint.folder import COMPLETE_MARK, resolve_checkpoint
from megamesh.checkpoint.inspection import TensorReader, read_run_folder, stored_tensors
from megamesh.checkpoint.reader import weight_shapes
from megamesh.checkpoint.verification import num_stored_bytes, verify_checkpoint, verify_folder
from megamesh.checkpoint.weights import save_weights
from megamesh.errors import CheckpointError
from tests.checkpoint.runs import CONFIG, DIVIDED, SOURCES, train_and_save
from tests.distributed import run
from tests.engine.runs import Setup

LAYOUTS = {
    "dp 2, ZeRO 1": (2, Setup(1)),
    "dp 2, ZeRO 3": (2, Setup(3)),
    "tp 2 × dp 2, ZeRO 1": (4, Setup(1, tensor_parallel_size=2, sequence_parallel=True, model=DIVIDED)),
    "pp 2 × dp 2": (4, Setup(pipe_parallel_size=2)),
}
PIECE = "core.0.mlp.up.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """For each layout a checkpoint and what must be in it."""
    found = {}
    for name, (size, setup) in LAYOUTS.items():
        folder = tmp_path_factory.mktemp("run") / "save"
        states = run(size, train_and_save, setup, folder, 2)
        found[name] = (folder, {key: value for state in states for key, value in state.items()})
    return found


@pytest.fixture
def copy(saved: dict[str, tuple[Path, dict[str, torch.Tensor]]], tmp_path: Path) -> Path:
    """A checkpoint to damage: two files, most tensors in pieces."""
    shutil.copytree(saved["dp 2, ZeRO 3"][0], tmp_path / "save")
    return resolve_checkpoint(tmp_path / "save")


def write_index(path: Path, change: Callable) -> None:
    """An index that says something else, and a checksum to fit."""
    metadata = read_index(path)
    change(metadata)
    (path / COMPLETE_MARK).write_bytes(pickle.dumps(metadata))
    checksums = Checksums.read(path)
    checksums.files[COMPLETE_MARK] = file_checksum(path, COMPLETE_MARK)
    checksums.write(path)


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def write_copy(path: Path, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor], **extra) -> Path:
    """The weights of a checkpoint as one of their own, changed, and with further tensors."""
    reader = TensorReader(path)
    tensors = {t.name: change(t.name, reader.whole(t.key)) for t in stored_tensors(reader.metadata, kinds=["fp32"])}
    tensors |= extra
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return save_weights(folder, shapes, tensors.__getitem__, config=CONFIG, sources=SOURCES, seed=7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_shapes_values_and_norms_are_told_whatever_wrote_them(
    saved: dict[str, tuple[Path, dict[str, torch.Tensor]]], layout: str
) -> None:
    folder, state = saved[layout]
    reader = TensorReader(resolve_checkpoint(folder))
    tensors = stored_tensors(reader.metadata)
    assert {tensor.key: tensor.shape for tensor in tensors} == {key: tuple(value.shape) for key, value in state.items()}
    assert any(tensor.num_pieces > 1 for tensor in tensors)
    for tensor in tensors:
        value = state[tensor.key]
        assert torch.equal(reader.whole(tensor.key), value)
        assert reader.norm(tensor.key) == pytest.approx(value.double().norm().item(), rel=1e-12)
        assert (tensor.dtype, tensor.num_bytes) == ("float32", value.nbytes)


def test_tensors_are_listed_in_the_order_of_the_model_and_chosen_by_name(
    saved: dict[str, tuple[Path, dict[str, torch.Tensor]]],
) -> None:
    metadata = read_index(resolve_checkpoint(saved["pp 2 × dp 2"][0]))
    names = [tensor.name for tensor in stored_tensors(metadata, kinds=["fp32"])]
    modules = list(dict.fromkeys(name.split(".")[0] for name in names))
    assert modules == ["embedding", "prelude", "core", "coda", "routers", "final_norm", "head"]
    chosen = stored_tensors(metadata, kinds=["fp32", "exp_avg"], pattern="routers.*.read.bias")
    assert [tensor.key for tensor in chosen] == [
        f"{kind}.routers.{t}.read.bias" for kind in ("fp32", "exp_avg") for t in range(3)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_as_it_was_saved_has_no_problem(
    saved: dict[str, tuple[Path, dict[str, torch.Tensor]]], layout: str
) -> None:
    path, read = resolve_checkpoint(saved[layout][0]), []
    assert verify_checkpoint(path, finite=True, on_read=read.append) == []
    assert sum(read) == num_stored_bytes(path) > 0


def test_a_flipped_byte_is_named_by_file_tensor_and_box(copy: Path) -> None:
    metadata = read_index(copy)
    chunks = metadata.state_dict_metadata[f"exp_avg.{PIECE}"].chunks
    index, info = next(item for item in metadata.storage_data.items() if item[0].fqn == f"exp_avg.{PIECE}")
    flip(copy / info.relative_path, info.offset + info.length // 2)
    (problem,) = verify_checkpoint(copy)
    chunk = next(chunk for chunk in chunks if chunk.offsets == index.offset)
    box = ", ".join(f"{start}:{start + size}" for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
    assert (problem.file, problem.tensor, problem.box) == (info.relative_path, f"exp_avg.{PIECE}", f"[{box}]")
    assert "another checksum" in problem.reason


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_every_piece_of_a_missing_or_truncated_file_is_named(copy: Path, kept: float) -> None:
    stored = {
        index: info for index, info in read_index(copy).storage_data.items() if info.relative_path == "__1_0.distcp"
    }
    file = copy / "__1_0.distcp"
    end = int(file.stat().st_size * kept)
    lost = sorted(index.fqn for index, info in stored.items() if info.offset + info.length > end)
    file.write_bytes(file.read_bytes()[:end])
    if not kept:
        file.unlink()
    problems = verify_checkpoint(copy)
    assert sorted(str(problem.tensor) for problem in problems) == lost
    reason = "the file is truncated" if kept else "the file is missing"
    assert all(problem.file == "__1_0.distcp" and reason in problem.reason for problem in problems)


def test_elements_that_are_stored_nowhere_or_twice_are_named(copy: Path) -> None:
    def drop_one(metadata) -> None:
        chunks = metadata.state_dict_metadata[f"fp32.{PIECE}"].chunks
        chunks.remove(max(chunks, key=lambda chunk: tuple(chunk.offsets)))

    def widen_one(metadata) -> None:
        first = min(metadata.state_dict_metadata[f"fp32.{PIECE}"].chunks, key=lambda chunk: tuple(chunk.offsets))
        first.sizes = torch.Size([first.sizes[0] + 2, *first.sizes[1:]])

    tensor = next(t for t in stored_tensors(read_index(copy)) if t.key == f"fp32.{PIECE}")
    last = max(read_index(copy).state_dict_metadata[tensor.key].chunks, key=lambda chunk: tuple(chunk.offsets))
    intact = (copy / COMPLETE_MARK).read_bytes()
    write_index(copy, drop_one)
    (problem,) = verify_checkpoint(copy)
    assert problem.tensor == tensor.key
    assert problem.reason.startswith(f"{last.sizes.numel():,} elements are stored nowhere")
    assert problem.box == f"[{last.offsets[0]}:{tensor.shape[0]}, 0:{tensor.shape[1]}]"

    (copy / COMPLETE_MARK).write_bytes(intact)
    write_index(copy, widen_one)
    reasons = [problem.reason for problem in verify_checkpoint(copy) if problem.tensor == tensor.key]
    assert any("is stored again by" in reason for reason in reasons)
    assert any("the index says" in reason for reason in reasons)  # the piece itself is smaller


def test_a_missing_moment_is_named(copy: Path) -> None:
    write_index(copy, lambda metadata: metadata.state_dict_metadata.pop(f"exp_avg_sq.{PIECE}"))
    (problem,) = verify_checkpoint(copy)
    assert (problem.tensor, problem.reason) == (f"exp_avg_sq.{PIECE}", "is missing")


def test_weights_alone_are_complete_and_what_is_not_finite_is_found_where_it_is_asked_for(
    copy: Path, tmp_path: Path
) -> None:
    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == PIECE:
            tensor[3, 4], tensor[5, 6] = math.nan, -math.inf
        return tensor

    path = write_copy(copy, tmp_path / "spoilt", spoil)
    assert verify_checkpoint(path) == []
    (problem,) = verify_checkpoint(path, finite=True)
    assert (problem.tensor, problem.reason) == (f"fp32.{PIECE}", "2 values are not finite")


@pytest.mark.parametrize("name", ["meta.json", "configs/site.yml", COMPLETE_MARK])
def test_other_files_are_checked_too(copy: Path, name: str) -> None:
    intact = (copy / name).read_bytes()
    flip(copy / name, 1)
    assert [(problem.file, problem.reason) for problem in verify_checkpoint(copy)] == [
        (name, "has changed since it was saved")
    ]
    (copy / name).unlink()
    assert [problem.file for problem in verify_checkpoint(copy)] == [name]
    (copy / name).write_bytes(intact)
    assert verify_checkpoint(copy) == []


def test_without_checksums_that_is_the_problem(copy: Path) -> None:
    (copy / CHECKSUMS_FILE).unlink()
    (copy / "meta.json").write_text("{")
    problems = verify_checkpoint(copy)
    assert [problem.file for problem in problems] == [CHECKSUMS_FILE, "meta.json"]


def test_latest_must_name_a_complete_checkpoint(copy: Path) -> None:
    folder = copy.parent
    assert verify_folder(read_run_folder(folder)) == []
    (folder / "latest").write_text("global_step99\n")
    assert "names global_step99, which is missing" in verify_folder(read_run_folder(folder))[0].reason
    (folder / "latest").unlink()
    assert "write global_step2 into it" in verify_folder(read_run_folder(folder))[0].reason


def test_a_lost_index_of_an_older_checkpoint_is_a_problem(copy: Path) -> None:
    older = shutil.copytree(copy, copy.parent / "global_step1")
    (older / COMPLETE_MARK).unlink()
    (problem,) = verify_folder(read_run_folder(copy.parent))
    assert problem.file == "global_step1" and ".metadata is missing" in problem.reason


def test_an_index_with_a_flipped_bit_is_never_unpickled(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray((copy / COMPLETE_MARK).read_bytes())
    content[len(content) // 2] ^= 8
    (copy / COMPLETE_MARK).write_bytes(content)
    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.pickle.load", None)
    assert num_stored_bytes(copy) == 0
    assert [problem.file for problem in verify_checkpoint(copy)] == [COMPLETE_MARK]
    with pytest.raises(CheckpointError, match=r"\.metadata is damaged: it has changed"):
        weight_shapes(copy)


@pytest.mark.parametrize(
    "text", ['{"chunks": [], "files": []}', '{"chunks": {"a": 3}, "files": {}}', "[]", '{"chunks": {}, "files": {}}']
)
def test_checksums_of_another_form_are_damage(copy: Path, text: str) -> None:
    (copy / CHECKSUMS_FILE).write_text(text)
    assert [problem.file for problem in verify_checkpoint(copy)] == [CHECKSUMS_FILE]


def test_saves_that_were_interrupted_are_listed_as_such(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / ".saving-global_step4")
    shutil.copytree(copy, copy.parent / "global_step10")
    (copy.parent / "global_step10" / COMPLETE_MARK).unlink()
    folder = read_run_folder(copy.parent)
    assert folder.latest == copy
    assert [(save.path.name, save.step, save.complete) for save in folder.saves] == [
        ("global_step2", 2, True),
        (".saving-global_step4", 4, False),
        ("global_step10", 10, False),
    ]
    assert folder.saves[0].num_bytes == sum(file.stat().st_size for file in copy.rglob("*") if file.is_file())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_weights_in_other_pieces_are_bit_identical(
    saved: dict[str, tuple[Path, dict[str, torch.Tensor]]], layout: str, tmp_path: Path
) -> None:
    path = resolve_checkpoint(saved[layout][0])
    other = write_copy(path, tmp_path / "copy", lambda name, tensor: tensor)
    weights = [tensor.key for tensor in stored_tensors(read_index(path), kinds=["fp32"])]
    assert compare_tensors(TensorReader(path), TensorReader(path)).all_identical
    assert compare_tensors(TensorReader(path), TensorReader(other), kinds=["fp32"]).all_identical
    found = compare_tensors(TensorReader(path), TensorReader(other))
    assert found.identical == weights and len(found.only_in_a) == 2 * len(weights)
    assert not (found.all_identical or found.different or found.other_shape or found.only_in_b)


def test_differences_are_measured_and_the_worst_comes_first(copy: Path, tmp_path: Path) -> None:
    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == PIECE:
            tensor[3, 4] += 2
        elif name == "head.weight":
            tensor *= 1 + 2**-6
        elif name == "embedding.weight":
            tensor = tensor[:-1]
        elif name == "final_norm.bias":
            tensor[tensor == 0] = -0.0
            tensor[0] = math.nan
        return tensor

    other = write_copy(copy, tmp_path / "copy", change, stray=torch.ones(3))
    a, b = TensorReader(copy), TensorReader(other)
    found = compare_tensors(a, b, kinds=["fp32"])
    assert found.only_in_b == ["fp32.stray"] and found.only_in_a == []
    (key, shape_a, shape_b) = found.other_shape[0]
    assert key == "fp32.embedding.weight" and shape_a[0] == shape_b[0] + 1
    broken, *measured = found.different
    assert broken.key == "fp32.final_norm.bias" and math.isnan(broken.largest) and math.isnan(broken.relative)
    expected = [
        TensorDifference(f"fp32.{PIECE}", (128, 32), 2.0, 2 / b.norm(f"fp32.{PIECE}")),
        TensorDifference("fp32.head.weight", (64, 32), b.whole("fp32.head.weight").abs().max().item() / 65, 1 / 65),
    ]
    for one, other_one in zip(measured, expected, strict=True):
        assert (one.key, one.shape) == (other_one.key, other_one.shape)
        assert (one.largest, one.relative) == pytest.approx((other_one.largest, other_one.relative), rel=1e-4)
    assert compare_tensors(a, b, pattern="core.*", kinds=["fp32"]).different == measured[:1]


def test_configurations_differ_key_by_key_and_yaml_files_line_by_line(copy: Path, tmp_path: Path) -> None:
    assert config_differences(
        {"model": {"hidden_size": 32, "norm": "rmsnorm"}, "log": {}},
        {"model": {"hidden_size": 64}, "log": {}, "data": {}},
    ) == {"model.hidden_size": (32, 64), "model.norm": ("rmsnorm", None), "data": (None, {})}
    other = shutil.copytree(copy, tmp_path / "other")
    assert yaml_differences(copy, other) == {}
    (other / "configs/model.yml").write_text("hidden_size: 64\n")
    (other / "configs/site.yml").unlink()
    found = yaml_differences(copy, other)
    assert found["model.yml"][-2:] == ["-hidden_size: 32", "+hidden_size: 64"]
    assert found["site.yml"][-1] == "-save: somewhere"
