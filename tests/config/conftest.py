"""A small valid configuration that tests spoil one key at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megamesh.config.load import LoadedConfig, load_config
from megamesh.errors import ConfigError

VALID: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pos_emb": "rotary",
    "vocab_size": 100,
    "train_batch_size": 8,
    "train_iters": 10,
    "data_path": "corpus",
}

Load = Callable[..., LoadedConfig]
Problems = Callable[..., list[str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """load(key=value, …): the valid configuration with keys replaced; None takes a key away."""

    def load_with(*, overrides: dict[str, Any] | None = None, for_training: bool = True, **keys: Any) -> LoadedConfig:
        values = {key: value for key, value in {**VALID, **keys}.items() if value is not None}
        path = tmp_path / "run.yml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return load_config([path], overrides, for_training=for_training)

    return load_with


@pytest.fixture
def problems(load: Load) -> Problems:
    """problems(key=value, …): the messages of the ConfigError that the keys cause; empty where they load."""

    def problems_of(**keys: Any) -> list[str]:
        try:
            load(**keys)
        except ConfigError as error:
            return error.problems
        return []

    return problems_of
