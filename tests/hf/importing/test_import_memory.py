"""An import holds about one tensor: far less than the model."""

import subprocess
import sys
from pathlib import Path

import torch

from megamesh.hf.importing.imported_config import from_hf_config
from megamesh.hf.names import names_table
from megamesh.model.counts import parameter_shapes
from tests.hf.stock_models import OLD_PYTHIA, saved, stock_model, written
from tests.training.tiny import ROOT

MIB = 2**20
SIZES = {"vocab_size": 16384, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 50}
SLACK = 40 * MIB  # of the allocator
IMPORTS = """
import sys
from megamesh.hf.importing.importing import import_model
from megamesh.hf.memory import peak_bytes
small, large, output = sys.argv[1:]
import_model(small, output + "-small", check="none")  # what the libraries take is not counted
before = peak_bytes()
import_model(large, output + "-large", check="none")
print(peak_bytes() - before)
"""


def test_memory_stays_within_two_of_the_largest_parameter(tmp_path: Path) -> None:
    config = OLD_PYTHIA | SIZES
    imported = from_hf_config(config)
    shapes = parameter_shapes(imported.model, imported.recursion, imported.vocab_size)
    table = names_table(imported.architecture, imported.model, imported.recursion)
    state = {table[name].theirs[0]: torch.ones(shape) for name, shape in shapes.items()}
    sizes = [tensor.nbytes for tensor in state.values()]
    assert sum(sizes) > 2 * max(sizes) + 2 * SLACK
    large = written(tmp_path / "large", config, state, "model.safetensors")
    small = saved(stock_model("neox-parallel"), tmp_path / "small")
    command = [sys.executable, "-c", IMPORTS, str(small), str(large), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grown = int(done.stdout.split()[-1])
    assert grown < 2 * max(sizes) + SLACK, f"{grown / MIB:.0f} MiB for tensors of at most {max(sizes) / MIB:.0f} MiB"
