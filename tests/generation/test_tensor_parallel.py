"""A model divided over the tensor axis, live or read from a checkpoint, continues prompts as one process does."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megamesh.checkpoint.inference import load_for_inference
from megamesh.config.keys import ModelConfig, TrainingConfig
from megamesh.errors import ConfigError
from megamesh.generation.generate import generate
from megamesh.generation.sampling import Sampling
from megamesh.model.build import build_model
from megamesh.model.transformer import Transformer
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.shards import fill_from_global
from megamesh.parallel.tensor import TensorParallel
from tests.distributed import run
from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import KNOWN, MESH, PLAIN, build, llama_config, model_config, tokenizer_file

PROMPTS = [[5, 9, 30], [11, 12, 13, 14, 15, 16, 17], [40], [5, 9, 31]]
SAMPLINGS = [Sampling(temperature=0), Sampling(seed=3), Sampling(temperature=0.7, top_k=20, top_p=0.9, seed=4)]
MODELS = {
    "mesh": (2, model_config(), MESH),
    "on four": (4, model_config(vocab_size=70), MESH),  # 18 rows on each, the last two of them padding
    "GQA, gated": (2, llama_config(use_qk_layernorm=True), MESH),
    "tied, learned positions": (2, model_config(no_weight_tying=False, pos_emb="learned"), PLAIN),
}


def axis(*, sequence_parallel: bool = False) -> TensorParallel:
    mesh = ProcessMesh.build("cpu", tensor_parallel_size=dist.get_world_size())
    return TensorParallel.on(mesh, sequence_parallel=sequence_parallel)


def continuations(model: Transformer, stop: int | None) -> list:
    options = {"max_new_tokens": 8, "vocab_size": KNOWN, "batch_size": 3}
    return [generate(model, PROMPTS, stop_id=stop, sampling=sampling, **options) for sampling in SAMPLINGS]


def _load_and_generate(save: Path, whole: dict[str, Tensor], stop: int | None) -> tuple[list, list[str]]:
    """Continuations, and the parameters that are not this rank's part of the whole ones."""
    model, _, _ = load_for_inference(save, tp=axis())
    wrong = []
    for name, spec in model.shards().items():
        expected = torch.full_like(model.get_parameter(name), float("nan"))
        fill_from_global(expected, whole[name], spec)
        wrong += [] if torch.equal(expected, model.get_parameter(name)) else [name]
    return continuations(model, stop), wrong


@pytest.mark.parametrize("name", MODELS)
def test_a_divided_checkpoint_continues_prompts_as_a_whole_one_does(name: str, tmp_path: Path) -> None:
    size, config, recursion = MODELS[name]
    ours = build(config, recursion)
    write_checkpoint(tmp_path / "save", ours, recursion, tokenizer_file(tmp_path))
    free = continuations(ours, None)
    stop = free[1][1].tokens[3]
    expected = continuations(ours, stop)
    assert any(result.stopped for result in expected[1]) and not all(result.stopped for result in expected[1])
    whole = {name: parameter.detach() for name, parameter in ours.named_parameters()}
    for results, wrong in run(size, _load_and_generate, tmp_path / "save", whole, stop):
        assert results == expected
        assert not wrong


def _build_and_generate(config: ModelConfig) -> list:
    module = build_model(config, MESH, TrainingConfig(), KNOWN, padded_vocab_size=80, tp=axis())
    return continuations(module.eval(), None)


def test_a_model_that_was_built_for_training_continues_prompts_as_one_process_does() -> None:
    config = model_config(init_method_std=0.5)
    expected = continuations(build_model(config, MESH, TrainingConfig(), KNOWN).eval(), None)
    assert run(2, _build_and_generate, config) == [expected, expected]


def _generate_on_split_states(config: ModelConfig) -> str:
    module = build_model(config, MESH, TrainingConfig(), KNOWN, padded_vocab_size=80, tp=axis(sequence_parallel=True))
    with pytest.raises(ConfigError) as caught:
        continuations(module, None)
    return str(caught.value)


def test_states_split_by_tokens_are_refused() -> None:
    assert all("sequence_parallel=true" in text for text in run(2, _generate_on_split_states, model_config()))


def _load_error(save: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_for_inference(save, tp=axis())
    return str(caught.value)


def test_sizes_that_do_not_divide_are_refused_with_those_that_do(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "save", build(llama_config()), MESH, tokenizer_file(tmp_path))
    expected = "4 processes cannot divide this model (num_kv_heads=2); start 1 or 2 instead"
    assert run(4, _load_error, tmp_path / "save") == [expected] * 4


def _draw_differently(save: Path) -> list:
    model, _, _ = load_for_inference(save, tp=axis())
    return generate(
        model, PROMPTS, max_new_tokens=8, vocab_size=KNOWN, stop_id=None, sampling=Sampling(seed=dist.get_rank())
    )


def test_the_first_ranks_choice_counts(tmp_path: Path) -> None:
    ours = build(model_config())
    write_checkpoint(tmp_path / "save", ours, MESH, tokenizer_file(tmp_path))
    expected = generate(ours, PROMPTS, max_new_tokens=8, vocab_size=KNOWN, stop_id=None, sampling=Sampling(seed=0))
    assert run(2, _draw_differently, tmp_path / "save") == [expected, expected]
