"""A transformers folder (GPTNeoX, Llama, or an export of ours) as our configuration and our parameters.

config.json ──▶ ImportedConfig      *.safetensors ──▶ (our name, fp32 tensor) one by one
"""

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from megamesh.errors import CheckpointError
from megamesh.hf.configs import ImportedConfig, from_hf_config
from megamesh.hf.names import IN_MEMORY_NAMES, import_tensors, names_table
from megamesh.hf.weights import PretrainedWeights


def read_pretrained_config(folder: str | Path) -> ImportedConfig:
    """The configuration of a transformers folder. CheckpointError where it is missing, ConfigError where ours cannot compute it."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); name a folder that save_pretrained wrote") from error
    return from_hf_config(config)


def read_pretrained_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Our parameters of a transformers folder, in fp32, tensor by tensor. CheckpointError where one is missing."""
    config = read_pretrained_config(folder)
    with PretrainedWeights(Path(folder)) as weights:

        def read(name: str) -> Tensor:
            return weights.read(name if name in weights else IN_MEMORY_NAMES.get(name, name))

        yield from import_tensors(names_table(config.architecture, config.model, config.recursion), read)
