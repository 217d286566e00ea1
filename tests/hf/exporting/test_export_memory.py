"""An export holds one parameter at a time, and what it says of its memory is true."""

import json
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from megamesh.config.keys import RecursionConfig
from megamesh.hf.exporting.export import export_model
from megamesh.hf.exporting.source import ModelSource
from megamesh.model.build import empty_model
from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import (
    KNOWN,
    MESH,
    PLAIN,
    build,
    llama_config,
    model_config,
    scramble,
    source,
    tokenizer,
    tokenizer_file,
)

ROOT = Path(__file__).parents[3]
SLACK = 40 * 10**6  # what allocator and interpreter add
DEEP = RecursionConfig(recursion="16+24R2+16")


def test_the_peak_of_a_process_stays_within_what_was_stated(tmp_path: Path) -> None:
    """Of a model whose weights are many times that."""
    for name, model, recursion in (
        ("small", llama_config(), MESH),
        ("large", llama_config(num_layers=80, hidden_size=256, intermediate_size=1024), DEEP),
    ):
        module = empty_model(model, recursion, KNOWN)
        scramble(module)
        write_checkpoint(tmp_path / name, module, recursion, tokenizer_file(tmp_path))
    command = [
        sys.executable,
        "-m",
        "tests.hf.exporting.measured_export",
        "layers",
        *(str(tmp_path / n) for n in ("small", "large")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    stored = 2 * found["weights"]  # in fp32
    assert stored > 200 * 10**6 > 4 * found["bound"]
    assert found["rise"] < found["bound"] + SLACK < stored / 2


@pytest.mark.parametrize("check", ["logits", "layers"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model", "recursion"),
    [(model_config(scale_embeddings=True), PLAIN), (llama_config(), MESH)],
    ids=["gpt_neox", "mesh"],
)
def test_a_parameter_is_gone_before_the_next_is_read(
    model, recursion: str | None, dtype: str, check: str, tmp_path: Path
) -> None:
    whole = source(build(model, recursion), recursion)
    passes = []

    def weights(names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        last = lambda: None  # noqa: E731
        passes.append(names)
        for name, parameter in whole.weights(names):
            assert last() is None, f"a parameter still exists while {name} is read"
            tensor = parameter.clone()
            last = weakref.ref(tensor)
            yield name, tensor
            del tensor

    streamed = ModelSource(model, recursion, KNOWN, weights)
    export_model(streamed, tokenizer(tmp_path), tmp_path / "export", dtype=dtype, check=check)
    assert len(passes) == 2, "one to write and one to compare"
