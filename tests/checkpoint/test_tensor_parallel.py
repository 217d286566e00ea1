"""Checkpoints of models that are divided over the tensor axis: the same file, whoever wrote it, and the same numbers, whoever reads it.

One model with all kinds of cuts: grouped query heads fused with their keys and values, gate and up fused, rows, vocabulary with padding.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megamesh.checkpoint.files import open_files
from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.reader import read_parts, read_weights, weight_shapes
from megamesh.checkpoint.save import own_boxes
from megamesh.checkpoint.together import on_every_rank
from megamesh.engine.engine import TrainingEngine
from megamesh.errors import CheckpointError
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.shards import fill_from_global
from megamesh.parallel.tensor import TensorParallel
from tests.checkpoint.runs import DIVIDED, fragments, save
from tests.distributed import run
from tests.engine.runs import (
    PADDED_VOCAB,
    VOCAB,
    Setup,
    full_state,
    model_weights,
    train,
    training,
    transformer,
)

OTHER_SEED, STATE_FILE = 8, "state.pt"


def divided(size: int, stage: int = 0, precision: str = "fp32", **keys: Any) -> Setup:
    return Setup(stage, precision, tensor_parallel_size=size, model=DIVIDED, **keys)


LAYOUTS = {
    "one process": (1, divided(1)),
    "tp 2": (2, divided(2)),
    "tp 2, split states, stage 1": (2, divided(2, 1, sequence_parallel=True)),
    "tp 4, bf16 1": (4, divided(4, 1, "bfloat16")),
    "tp 2 × dp 2": (4, divided(2)),
    "tp 2 × dp 2, split states, bf16 1": (4, divided(2, 1, "bfloat16", sequence_parallel=True)),
    "tp 2 × dp 2, stage 3": (4, divided(2, 3)),
}


def _train_and_save(setup: Setup, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Masters and moments, and how many elements of each this rank writes."""
    with training(setup) as engine:
        train(engine, 0, 2)
        save(folder, engine)
        counts: dict[str, int] = {}
        for box in own_boxes(engine):
            counts[box.key] = counts.get(box.key, 0) + box.values.numel()
        return full_state(engine), counts


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, list[tuple[dict[str, torch.Tensor], dict[str, int]]]]]:
    """One checkpoint of every layout, with what each rank had in memory and wrote."""
    checkpoints = {}
    for name, (world_size, setup) in LAYOUTS.items():
        folder = tmp_path_factory.mktemp("run")
        ranks = run(world_size, _train_and_save, setup, folder)
        torch.save(ranks[0][0], folder / STATE_FILE)
        checkpoints[name] = folder, ranks
    return checkpoints


@pytest.mark.parametrize("writer", LAYOUTS)
def test_every_element_is_written_once_and_padding_never(
    written: dict[str, tuple[Path, list[tuple[dict[str, torch.Tensor], dict[str, int]]]]], writer
) -> None:
    folder, ranks = written[writer]
    state = ranks[0][0]
    path = find_latest(folder)
    assert path is not None
    stored = open_files(path)[0].state_dict_metadata
    assert stored.keys() == state.keys()
    assert weight_shapes(path)["embedding.weight"] == weight_shapes(path)["head.weight"] == (VOCAB, 32)
    for key, record in stored.items():
        covered = torch.zeros(record.size, dtype=torch.int64)
        for chunk in record.chunks:
            covered[tuple(slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))] += 1
        assert (covered == 1).all(), key
        # torch drops what two ranks write alike, so that the file alone would not show it.
        assert sum(counts.get(key, 0) for _, counts in ranks) == math.prod(record.size), key


def _differences(setup: Setup, paths: list[Path]) -> list[list[str]]:
    """For each checkpoint, what of this rank's state and weights is not as it was saved."""
    found = []
    with training(replace(setup, seed=OTHER_SEED)) as engine:
        for path in paths:
            load_checkpoint(path, engine)
            assert engine.access.step_count() == 2
            expected = torch.load(path / STATE_FILE)
            found.append(_wrong_fragments(engine, expected) + _wrong_weights(engine, expected))
    return found


def _wrong_fragments(engine: TrainingEngine, expected: dict[str, torch.Tensor]) -> list[str]:
    found = []
    parameters = dict(engine.named_parameters())
    for key, name, fragment in fragments(engine):
        local = torch.full(engine.access.local_shape(parameters[name]), math.nan)
        fill_from_global(local, expected[f"{key}.{name}"], engine.shards[name])
        own = local.flatten()[fragment.start : fragment.start + fragment.values.numel()]
        found += [] if torch.equal(own, fragment.values) else [f"{key}.{name}"]
    return found


def _wrong_weights(engine: TrainingEngine, expected: dict[str, torch.Tensor]) -> list[str]:
    found = []
    for name, weight in model_weights(engine).items():
        own = torch.full_like(weight, math.nan)
        fill_from_global(own, expected[f"fp32.{name}"], engine.shards[name])
        found += [] if torch.equal(own, weight) else [f"{name} of the model"]
    return found


@pytest.mark.parametrize("reader", LAYOUTS)
def test_every_layout_reads_what_every_layout_wrote_bit_for_bit_and_padding_is_zero(
    written: dict[str, tuple[Path, list[tuple[dict[str, torch.Tensor], dict[str, int]]]]], reader
) -> None:
    world_size, setup = LAYOUTS[reader]
    paths = [folder for folder, _ in written.values()]
    for found in run(world_size, _differences, setup, paths):
        assert dict(zip(written, found, strict=True)) == {writer: [] for writer in written}


def test_one_process_reads_whole_tensors_of_a_divided_run(
    written: dict[str, tuple[Path, list[tuple[dict[str, torch.Tensor], dict[str, int]]]]],
) -> None:
    folder, ranks = written["tp 2 × dp 2, stage 3"]
    masters = {name.removeprefix("fp32."): value for name, value in ranks[0][0].items() if name.startswith("fp32.")}
    read = dict(read_weights(folder))
    assert read.keys() == masters.keys() and all(torch.equal(read[name], masters[name]) for name in masters)


def _read_own_parts(path: Path) -> tuple[int, int, list[str]]:
    """Elements that were read and that this rank holds, and the parameters that are wrong."""
    setup = divided(dist.get_world_size(), seed=OTHER_SEED)
    mesh = ProcessMesh.build("cpu", tensor_parallel_size=dist.get_world_size())
    module = transformer(setup, TensorParallel.on(mesh))
    places, expected, num_read = module.shards(), torch.load(path / STATE_FILE), 0

    def count(*args: Any, **options: Any) -> torch.Tensor:
        nonlocal num_read
        tensor: torch.Tensor = load(*args, **options)
        num_read += tensor.numel()
        return tensor

    load, torch.load = torch.load, count
    try:
        on_every_rank(
            lambda: read_parts(path, [(places[name], value) for name, value in module.named_parameters()]),
            mesh.group("tp"),
        )
    finally:
        torch.load = load
    wrong, num_own = [], 0
    for name, parameter in module.named_parameters():
        own = torch.full_like(parameter, math.nan)
        fill_from_global(own, expected[f"fp32.{name}"], places[name])
        wrong += [] if torch.equal(own, parameter) else [name]
        padding = (PADDED_VOCAB - VOCAB) * 32 if name in ("embedding.weight", "head.weight") and mesh.rank("tp") else 0
        num_own += parameter.numel() - padding
    return num_read, num_own, wrong


def test_each_rank_of_a_model_without_an_engine_reads_its_own_parts_alone(
    written: dict[str, tuple[Path, list[tuple[dict[str, torch.Tensor], dict[str, int]]]]],
) -> None:
    for num_read, num_own, wrong in run(2, _read_own_parts, written["tp 2"][0]):
        assert num_read == num_own and not wrong
    for _, _, wrong in run(2, _read_own_parts, written["tp 2 × dp 2, stage 3"][0]):
        assert not wrong


def _error_of_read(path: Path) -> str:
    try:
        _read_own_parts(path)
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_damage_that_one_rank_meets_ends_all_of_them_alike(
    written: dict[str, tuple[Path, list[tuple[dict[str, torch.Tensor], dict[str, int]]]]], tmp_path: Path
) -> None:
    shutil.copytree(written["tp 2"][0], tmp_path / "run")
    path = find_latest(tmp_path / "run")
    assert path is not None
    file = path / "__1_0.distcp"
    file.write_bytes(b"\0" * file.stat().st_size)
    first, second = run(2, _error_of_read, tmp_path / "run")
    assert first == second and f"{file} is damaged: fp32." in first
