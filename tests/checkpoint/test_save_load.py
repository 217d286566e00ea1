"""What a checkpoint holds, what a partial load leaves alone, and what happens when a file, a disk or a model is wrong."""

import json
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from megamesh.checkpoint.files import read_index
from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.reader import read_meta, read_weights, weight_shapes
from megamesh.errors import CheckpointError
from tests.checkpoint.runs import CONFIG, SOURCES, bits, save, train_and_save
from tests.distributed import run
from tests.engine.runs import Setup, full_state, model_weights, train, training, transformer
from tests.generation.checkpoints import rewrite_meta


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run(2, train_and_save, Setup(1), folder, 2)[0]


@pytest.fixture
def copied(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> Path:
    """A copy of the saved run's checkpoint that a test may damage."""
    shutil.copytree(saved[0], tmp_path / "run")
    path = find_latest(tmp_path / "run")
    assert path is not None
    return path


def test_the_folder_holds_meta_and_sources(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path = find_latest(saved[0])
    assert path == saved[0] / "global_step2"
    meta = read_meta(path)
    assert (meta.state.step, meta.state.consumed_samples, meta.state.seed) == (2, 8, 7)
    assert meta.optimizer_step == 2 and meta.config == CONFIG and meta.state.skipped_steps == 2
    assert meta.layout == {"pp_size": 1, "dp_size": 2, "tp_size": 1, "zero_stage": 1}
    assert meta.versions["torch"] == torch.__version__ and set(meta.versions) == {"megamesh", "torch", "deepspeed"}
    assert {file.name: file.read_text() for file in (path / "configs").iterdir()} == SOURCES


def test_weights_are_read_whole_without_a_process_group(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, state = saved
    masters = {name.removeprefix("fp32."): value for name, value in state.items() if name.startswith("fp32.")}
    read = dict(read_weights(folder))
    assert read.keys() == masters.keys() and all(torch.equal(read[name], masters[name]) for name in masters)
    assert weight_shapes(folder) == {name: tuple(value.shape) for name, value in masters.items()}
    chosen = ["head.weight", "embedding.weight"]
    assert [name for name, _ in read_weights(folder, chosen)] == chosen
    with pytest.raises(CheckpointError, match="holds no parameter core\\.9"):
        list(read_weights(folder, ["core.9"]))


def test_stock_tools_of_torch_read_it(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder, state = saved
    dcp_to_torch_save(folder / "global_step2", tmp_path / "all.pt")
    nested = torch.load(tmp_path / "all.pt", weights_only=True)
    flat = {f"{key}.{name}": tensor for key, inner in nested.items() for name, tensor in inner.items()}
    assert flat.keys() == state.keys() and all(torch.equal(flat[name], state[name]) for name in state)


def _load_partly(setup: Setup, path: Path, **options: Any) -> tuple[int, int, dict, dict]:
    with training(setup) as engine:
        train(engine, 0, 1)  # moments and a step count that must not survive
        load_checkpoint(path, engine, **options)
        return engine.num_steps, engine.access.step_count(), full_state(engine), model_weights(engine)


def _load_weights_only(setup: Setup, path: Path) -> tuple[int, int, dict, dict]:
    return _load_partly(setup, path, weights_only=True)


def _load_without_optimizer(setup: Setup, path: Path) -> tuple[int, int, dict, dict]:
    return _load_partly(setup, path, load_optimizer=False)


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize(("how", "num_steps"), [(_load_weights_only, 0), (_load_without_optimizer, 2)])
def test_weights_without_moments(saved: tuple[Path, dict[str, torch.Tensor]], stage: int, how, num_steps: int) -> None:
    folder, expected = saved
    steps, adam_steps, state, model = run(2, how, Setup(stage, seed=8), folder)[0]
    assert (steps, adam_steps) == (num_steps, 0)
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name] if name.startswith("fp32.") else torch.zeros_like(tensor)), name
    assert all(torch.equal(tensor, expected[f"fp32.{name}"]) for name, tensor in model.items())


class _Other(nn.Module):
    """The test model with one more parameter, one fewer, or one of another shape."""

    def __init__(self, setup: Setup, change: str) -> None:
        super().__init__()
        inner = transformer(setup)
        self.embedding, self.prelude, self.core, self.coda = inner.embedding, inner.prelude, inner.core, inner.coda
        self.routers, self.head = inner.routers, inner.head
        if change != "fewer":
            self.final_norm = inner.final_norm if change == "more" else nn.LayerNorm(48)
        if change == "more":
            self.extra = nn.Linear(3, 2, bias=False)


def _load_error(setup: Setup, path: Path, change: str | None = None) -> str:
    with training(setup, _Other(setup, change) if change else None) as engine:
        engine.access.prepare_state(step=7)
        for master in engine.access.masters():
            engine.access.adam.state[master]["exp_avg"].fill_(0.5)
        before = bits(engine), engine.access.step_count()
        try:
            load_checkpoint(path, engine, weights_only=change == "reshaped")
        except CheckpointError as error:
            after = bits(engine), engine.access.step_count()
            assert change is None or after == before, "a refused checkpoint must change nothing"
            return str(error)
    return "no error"


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("more", ["does not hold", "extra.weight", "[2, 3]"]),
        ("fewer", ["final_norm.", "which this model does not have"]),
        ("reshaped", ["final_norm.weight has shape [32]", "[48] in this model"]),
    ],
)
def test_another_architecture_is_refused_on_every_rank(
    saved: tuple[Path, dict[str, torch.Tensor]], stage: int, change: str, expected
) -> None:
    for message in run(2, _load_error, Setup(stage), saved[0], change):
        assert all(part in message for part in [*expected, "global_step2", "use the model settings"]), message


def _missing_shard(path: Path) -> str:
    (path / "__1_0.distcp").unlink()
    return f"{path / '__1_0.distcp'} is missing"


def _truncated_shard(path: Path) -> str:
    file = path / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1000])
    return f"{file} is truncated"


def _overwritten_shard(path: Path) -> str:
    file = path / "__1_0.distcp"
    file.write_bytes(b"\0" * file.stat().st_size)
    return f"{path}"


def _damaged_index(path: Path) -> str:
    (path / ".metadata").write_bytes((path / ".metadata").read_bytes()[:100])
    return f"{path / '.metadata'} is damaged"


def _damaged_meta(path: Path) -> str:
    (path / "meta.json").write_text((path / "meta.json").read_text()[:50])
    return f"{path / 'meta.json'} is damaged"


def _newer_format(path: Path) -> str:
    rewrite_meta(path, json.loads((path / "meta.json").read_text()) | {"format_version": 99})
    return "has format 99"


def _flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)


def _flipped_weight(path: Path) -> str:
    """A byte in the middle of a chunk's numbers: torch.load sees nothing wrong with it."""
    storage = read_index(path).storage_data
    index, info = max(storage.items(), key=lambda each: each[1].length)
    _flip(path / info.relative_path, info.offset + info.length // 2)
    return f"{path / info.relative_path} is damaged: {index.fqn} from {list(index.offset)} on has another checksum"


def _flipped_meta(path: Path) -> str:
    file = path / "meta.json"
    _flip(file, file.read_bytes().index(b'"consumed_samples": ') + len(b'"consumed_samples": '))
    return f"{file} is damaged: it has changed"


def _flipped_index(path: Path) -> str:
    _flip(path / ".metadata", (path / ".metadata").stat().st_size // 2)
    return f"{path / '.metadata'} is damaged: it has changed"


def _flipped_configuration(path: Path) -> str:
    _flip(path / "configs" / "model.yml", 3)
    return f"{path / 'configs' / 'model.yml'} is damaged: it has changed"


def _missing_configuration(path: Path) -> str:
    (path / "configs" / "site.yml").unlink()
    return f"{path / 'configs' / 'site.yml'} cannot be read: No such file"


def _flipped_checksums(path: Path) -> str:
    """Which chunk is wrong cannot be known then: a chunk is named."""
    file = path / "checksums.json"
    values = json.loads(file.read_text())
    values["chunks"]["__1_0.distcp"]["0"] ^= 1
    file.write_text(json.dumps(values))
    return f"{path / '__1_0.distcp'} is damaged"


def _missing_checksums(path: Path) -> str:
    (path / "checksums.json").unlink()
    return f"{path / 'checksums.json'} is missing"


def _garbled_checksums(path: Path) -> str:
    _flip(path / "checksums.json", 0)
    return f"{path / 'checksums.json'} is damaged"


def _incomplete(path: Path) -> str:
    (path / ".metadata").unlink()
    return "names global_step2, which is missing or incomplete"


@pytest.mark.parametrize(
    "damage",
    [
        _missing_shard,
        _truncated_shard,
        _overwritten_shard,
        _damaged_index,
        _damaged_meta,
        _newer_format,
        _incomplete,
        _flipped_weight,
        _flipped_meta,
        _flipped_index,
        _flipped_configuration,
        _missing_configuration,
        _flipped_checksums,
        _missing_checksums,
        _garbled_checksums,
    ],
)
def test_a_damaged_checkpoint_is_one_error_that_names_the_path(copied: Path, damage) -> None:
    expected = damage(copied)
    for message in run(2, _load_error, Setup(2), copied.parent):
        assert expected in message, message
    if damage in (_damaged_meta, _newer_format):  # which a reader of tensors does not look into
        return
    if damage not in (_flipped_weight, _flipped_checksums):  # which may be in a moment's chunk
        with pytest.raises(CheckpointError) as caught:
            list(read_weights(copied.parent))
        assert expected in str(caught.value)


def _load_unverified(setup: Setup, path: Path) -> dict[str, torch.Tensor]:
    with training(setup) as engine:
        load_checkpoint(path, engine, verify=False)
        return full_state(engine)


@pytest.mark.parametrize("damage", [_flipped_weight, _missing_checksums])
def test_verification_can_be_turned_off(saved: tuple[Path, dict[str, torch.Tensor]], copied: Path, damage) -> None:
    damage(copied)
    state = run(2, _load_unverified, Setup(2), copied.parent)[0]
    differing = [name for name, tensor in saved[1].items() if not torch.equal(state[name], tensor)]
    assert len(differing) == (1 if damage is _flipped_weight else 0)


def _save_on_a_full_disk(setup: Setup, folder: Path, full_rank: int, num_bytes: int) -> tuple[str, Path | None]:
    """Files of one rank cannot grow beyond `num_bytes` while the second checkpoint is written."""
    with training(setup) as engine:
        train(engine, 0, 1)
        save(folder, engine)
        train(engine, 1, 2)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if dist.get_rank() == full_rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, unlimited[1]))
        try:
            save(folder, engine)
            message = "no error"
        except CheckpointError as error:
            message = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            signal.signal(signal.SIGXFSZ, handler)
        dist.barrier()
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["global_step1", "latest"], left
        dist.barrier()
        before = bits(engine)
        load_checkpoint(folder, engine)
        assert engine.num_steps == 1 and bits(engine) != before, "the checkpoint before it must still load"
        train(engine, 1, 2)
        assert bits(engine) == before
        return message, save(folder, engine)


@pytest.mark.parametrize(
    ("full_rank", "num_bytes"), [(0, 100), (0, 60_000), (1, 60_000)], ids=["meta", "rank 0", "rank 1"]
)
def test_a_full_disk_is_an_error_on_every_rank_and_loses_nothing(
    tmp_path: Path, full_rank: int, num_bytes: int
) -> None:
    for message, later in run(2, _save_on_a_full_disk, Setup(1), tmp_path, full_rank, num_bytes):
        assert "File too large" in message and "the previous checkpoint is untouched" in message, message
        assert later == find_latest(tmp_path) == tmp_path / "global_step2"


def _save_four(setup: Setup, folder: Path) -> None:
    with training(setup) as engine:
        for step in range(4):
            train(engine, step, step + 1)
            save(folder, engine, keep_last=2)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run(2, _save_four, Setup(0), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step3", "global_step4", "latest"]
