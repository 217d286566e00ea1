"""The order of samples against megatron-core's own compiled code."""

import importlib.machinery
import importlib.util
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from megamesh.data.samples.blend import blend_order, numbers_within
from megamesh.data.samples.sample_index import build_sample_index, shuffled_documents
from tests.data.samples.test_sample_order import random_lengths

NAME = "helpers_cpp"


@pytest.fixture(scope="module")
def helpers() -> ModuleType:
    """The extension module by itself: all of megatron.core takes seconds to import."""
    package = importlib.util.find_spec("megatron.core")
    folders = [Path(place) / "datasets" for place in package.submodule_search_locations or ()] if package else []
    files = [file for folder in folders for file in folder.glob(f"{NAME}.*.so")]
    if not files:
        pytest.skip("megatron-core with its compiled helpers is not installed")
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(files[0]))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_sample_index_is_megatrons_on_1000_random_cases(helpers: ModuleType) -> None:
    draw = random.Random(11)
    for case in range(1000):
        lengths = np.array(random_lengths(draw), np.int32)
        epochs, sequence_length = draw.randint(1, 5), draw.randint(1, 40)
        order = shuffled_documents(np.random.RandomState(case), 0, len(lengths), epochs)
        tokens = int(lengths.sum())
        expected = helpers.build_sample_idx_int32(lengths, order, sequence_length, epochs, tokens, True, 1)
        found = build_sample_index(lengths, order, 0, sequence_length)
        assert np.array_equal(found, expected), f"case {case}: {lengths.tolist()}"


@pytest.mark.parametrize(
    ("num_datasets", "num_samples"), [(1, 500), (2, 30_000), (7, 30_000), (300, 40_000), (1200, 20_000)]
)
@pytest.mark.parametrize("kind", ["random", "equal", "skewed"])
def test_blend_is_megatrons(helpers: ModuleType, num_datasets: int, num_samples: int, kind: str) -> None:
    generator = np.random.default_rng(num_datasets)
    weights = {
        "random": generator.random(num_datasets),
        "equal": np.ones(num_datasets),
        "skewed": np.exp(3 * generator.normal(size=num_datasets)),
    }[kind]
    dataset_of, number_within = np.zeros(num_samples, np.int16), np.zeros(num_samples, np.int64)
    shares = weights / weights.sum()
    helpers.build_blending_indices(dataset_of, number_within, shares, num_datasets, num_samples, False)
    found = blend_order(weights.tolist(), num_samples)
    assert np.array_equal(found, dataset_of)
    assert np.array_equal(numbers_within(found, num_datasets), number_within)
