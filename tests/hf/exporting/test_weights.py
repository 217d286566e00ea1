"""safetensors files written in pieces are those that the library writes at once."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megamesh.errors import CheckpointError
from megamesh.hf.exporting.weights import INDEX, SINGLE, ShardWriter, check_written, no_progress, plan_shards

SHAPES = {
    "z.weight": (7, 3),
    "a.weight": (5,),
    "b.10.bias": (1,),
    "b.9.bias": (2, 2, 2),
    "m.weight": (40, 11),
    "B": (3,),
}


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def write(folder: Path, values: dict[str, torch.Tensor], dtype: torch.dtype, max_shard_bytes: int) -> ShardWriter:
    writer = ShardWriter(folder, plan_shards(SHAPES, dtype, max_shard_bytes))
    names = list(values)
    random.Random(3).shuffle(names)
    for name in names:
        writer.write(name, values[name])
    return writer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 300, 20])
def test_files_are_byte_for_byte_the_librarys(dtype, max_shard_bytes: int, tmp_path: Path) -> None:
    values = tensors(dtype)
    writer = write(tmp_path, values, dtype, max_shard_bytes)
    writer.finish()
    check_written(tmp_path, writer.plan, writer.digests, no_progress)
    files = [SINGLE]
    if max_shard_bytes < 10**9:
        index = json.loads((tmp_path / INDEX).read_text())
        assert list(index["weight_map"]) == list(SHAPES) and len(set(index["weight_map"].values())) > 1
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in values.values())
        files = sorted(set(index["weight_map"].values()))
        assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for file in files:
        inside = [name for name, slot in writer.plan.slots.items() if slot.file == file]
        assert len(inside) == 1 or sum(values[name].nbytes for name in inside) <= max_shard_bytes
        save_file({name: values[name] for name in inside}, tmp_path / "oracle", metadata={"format": "pt"})
        assert (tmp_path / file).read_bytes() == (tmp_path / "oracle").read_bytes()


def test_slices_of_larger_tensors_are_written_alone(tmp_path: Path) -> None:
    wide = {name: torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2] for name, shape in SHAPES.items()}
    writer = write(tmp_path, wide, torch.float32, 10**9)
    writer.finish()
    save_file({name: tensor.contiguous() for name, tensor in wide.items()}, tmp_path / "o", metadata={"format": "pt"})
    assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "o").read_bytes()


def test_a_tensor_that_never_came_is_named(tmp_path: Path) -> None:
    values = tensors(torch.float32)
    del values["b.9.bias"]
    with pytest.raises(CheckpointError, match=r"1 tensors were never written, the first of them b\.9\.bias"):
        write(tmp_path, values, torch.float32, 300).finish()


@pytest.mark.parametrize("name", SHAPES)
def test_one_bit_that_changed_on_disk_is_found(name: str, tmp_path: Path) -> None:
    writer = write(tmp_path, tensors(torch.bfloat16), torch.bfloat16, 300)
    writer.finish()
    slot = writer.plan.slots[name]
    content = bytearray((tmp_path / slot.file).read_bytes())
    content[slot.offset + slot.num_bytes - 1] ^= 1
    (tmp_path / slot.file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{name} reads back"):
        check_written(tmp_path, writer.plan, writer.digests, no_progress)


def test_a_header_that_changed_on_disk_is_found(tmp_path: Path) -> None:
    writer = write(tmp_path, tensors(torch.bfloat16), torch.bfloat16, 10**9)
    writer.finish()
    content = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(content.replace(b'"a.weight":{"dtype":"BF16"', b'"a.weight":{"dtype":"F16" '))
    with pytest.raises(CheckpointError, match=r"a\.weight was written as .*bfloat16.* reads back as .*float16"):
        check_written(tmp_path, writer.plan, writer.digests, no_progress)
