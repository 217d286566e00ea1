"""A scheme of a user's own, named by its class, is whatever one of ours is: it trains on every axis, resumes, counts, plans and exports.

Not one file of the product knows it. Oracles are those of our own schemes' tests: one process, what torch counts and saves, transformers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import tests.own_scheme
from megamesh.checkpoint.reader import read_meta
from megamesh.config.keys import ModelConfig, RecursionConfig, TrainingConfig
from megamesh.config.schemes import PLAIN
from megamesh.errors import CheckpointError, ConfigError
from megamesh.hf.importing.imported_config import from_hf_config
from megamesh.model.build import build_model
from megamesh.model.counts import count_parameters, parameter_shapes
from megamesh.model.flops import flops_per_token
from megamesh.model.init import plain_value
from megamesh.model.transformer import Transformer
from tests.distributed import run
from tests.engine.runs import BOLD, Setup
from tests.engine.steps import compare_with_one_process, train_and_look
from tests.engine.test_pipeline import on_ring
from tests.hf.small_models import build, export, load, model_config, tokens
from tests.planning.test_memory import MESH, saved_on_every_rank
from tests.planning.test_memory import config as memory_config
from tests.planning.test_memory import estimate as estimated_memory
from tests.planning.test_pipeline_memory import BLOCKS, kept_by_the_real_highway
from tests.planning.test_pipeline_memory import config as pipeline_config
from tests.planning.test_pipeline_memory import estimate as estimated_pipeline
from tests.schemes import OWN
from tests.training.test_run import assert_same_run, refused, train_here
from tests.training.tiny import write_config, write_corpus
from tools.plan import main as plan
from tools.train import main as train

WHOLE = {"recursion_scheme_params": {"divided": False}}
EITHER = pytest.mark.parametrize("keys", [{}, WHOLE], ids=["divided", "whole"])
LAYERS = RecursionConfig(recursion="1+1R2+1", recursion_scheme=OWN)
STEPS = 4


@EITHER
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_two_tensor_ranks_train_as_one_process(sequence_parallel: bool, keys: dict[str, Any]) -> None:
    """Losses, norms, every gradient of the first step and the last weights: a gradient that is summed once too often would show."""
    setup = Setup(
        1, scheme=OWN, tensor_parallel_size=2, sequence_parallel=sequence_parallel, model=BOLD, recursion_keys=keys
    )
    results, other = run(2, train_and_look, setup, STEPS)
    assert any(name.startswith("routers.") for name in results[1])
    compare_with_one_process(setup, results)
    assert repr(results[0]) == repr(other[0]), "ranks disagree on what a step did"


def test_two_pipeline_ranks_train_as_one_process() -> None:
    setup = Setup(0, scheme=OWN, pipe_parallel_size=2, model=BOLD, recursion="1+2R3+1")
    compare_with_one_process(setup, on_ring(2, setup))


def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    keys = {"recursion_scheme": OWN, "recursion_scheme_params": {"momentum": 0.2}, "train_iters": 4, "eval_interval": 4}
    straight = write_config(tmp_path, "straight", checkpoint_factor=2, **keys)
    assert run(1, train_here, straight) == [4]
    shutil.copytree(tmp_path / "straight", tmp_path / "again", ignore=shutil.ignore_patterns("global_step4"))
    (tmp_path / "again" / "latest").write_text("global_step2")
    again = write_config(tmp_path, "again", checkpoint_factor=2, **keys)
    assert run(1, train_here, again) == [4]
    assert_same_run(tmp_path / "straight", tmp_path / "again")
    saved = read_meta(tmp_path / "again" / "global_step4").config["recursion"]["recursion_scheme_params"]
    assert saved == {"momentum": 0.2, "divided": True}, "defaults are recorded too"
    other = write_config(tmp_path, "again", **keys | {"recursion_scheme_params": {"momentum": 0.3}})
    assert "recursion_scheme_params was" in run(1, refused, other)[0]


def test_parameters_and_operations_are_those_of_the_model() -> None:
    model = ModelConfig(num_layers=8, hidden_size=48, num_attention_heads=4, max_position_embeddings=16)
    ours, base = (RecursionConfig(recursion="1+2R3+1", recursion_scheme=scheme) for scheme in (OWN, PLAIN))
    module = build_model(model, ours, TrainingConfig(), 128)
    built = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert parameter_shapes(model, ours, 128) == built
    assert count_parameters(model, ours, 128).routers == 3 * (48 + 1)
    assert [module.routers[t].bias.item() for t in range(3)] == pytest.approx([0.4] * 3)
    counted = [_counted(build_model(model, recursion, TrainingConfig(), 128)) for recursion in (ours, base)]
    linears = 3 * 2 * 48  # the only products of matrices, which are all that torch counts
    assert counted[0] - counted[1] == 2 * 16 * linears
    assert flops_per_token(model, ours, 128).recursion == linears + 3 * 2 * 48 + 3 * 48


def _counted(module: Transformer) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.logits(torch.zeros(2, 16, dtype=torch.long))
    operations: int = counter.get_total_flops()
    return operations


@EITHER
@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_memory_is_what_the_highway_keeps(size: int, sequence_parallel: bool, keys: dict[str, Any]) -> None:
    """Over plain recursion, on one pipeline rank: what torch saves for backward, to the byte."""
    found = []
    for scheme in ({"recursion_scheme": OWN} | keys, {"recursion_scheme": PLAIN}):
        config = memory_config(model_parallel_size=size, sequence_parallel=sequence_parallel, **MESH | scheme)
        memory = estimated_memory(config)
        found.append((saved_on_every_rank(config)[0], memory["activations"] + memory["highway"]))
    (measured, estimated), (measured_base, estimated_base) = found
    assert measured - measured_base == estimated - estimated_base > 0


@EITHER
@pytest.mark.parametrize("loops", [1, 3])
def test_memory_on_the_ring_is_what_the_highway_keeps(loops: int, keys: dict[str, Any]) -> None:
    changes = {"recursion": f"1+2R{loops}+1", "num_layers": 2 + 2 * loops, "recursion_scheme": OWN}
    config = pipeline_config(**changes | BLOCKS | keys)
    assert estimated_pipeline(config, 1)[-1].parts["highway"] == kept_by_the_real_highway(config)


def test_it_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"recursion": "1+2R2+1", "num_layers": 6, "recursion_scheme": OWN}
    config = [str(write_config(tmp_path, recursion_scheme_params={"divided": False}, **keys))]
    assert train(["--dry-run", *config, "--set", "pipe_parallel_size=2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["resolved"]["scheme"] == OWN and said["parameters"]["routers"] == 2 * (32 + 1)
    assert said["settings"]["recursion"]["recursion_scheme_params"] == {"momentum": 0.4, "divided": False}
    stages = said["pipeline"]["stages"]
    assert said["pipeline"]["ranks"][0]["sent_bytes_per_step"] > 0 and len(stages) == 2 * 4
    assert plan([*config, "--gpus", "2", "--layout", "1,2,1"]) == 0
    assert "straight, 1F1B" in capsys.readouterr().out


def test_an_upcycled_one_starts_as_plain_recursion() -> None:
    ours, base = (RecursionConfig(recursion="1+1R2+1", recursion_scheme=scheme) for scheme in (OWN, PLAIN))
    module, plain = (build(model_config(), recursion) for recursion in (ours, base))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("routers."):
                parameter.copy_(plain_value(name, tuple(parameter.shape), model_config(), ours, seed=1))
            else:
                parameter.copy_(plain.get_parameter(name))
        assert torch.equal(module.logits(tokens()), plain.logits(tokens()))


def test_its_export_brings_its_code_and_gives_our_logits(tmp_path: Path) -> None:
    recursion = LAYERS.model_copy(update={"recursion_scheme_params": {"momentum": 0.7}})
    ours = build(model_config(), recursion)
    folder = export(ours, tmp_path, recursion)
    code = (folder / "recursion_megamesh.py").read_text()
    assert code == Path(tests.own_scheme.__file__).with_name("own_scheme_remote.py").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["recursion_scheme"] == OWN
    assert config["recursion_scheme_params"] == {"momentum": 0.7, "divided": True}
    card = (folder / "README.md").read_text()
    assert "Recursion scheme: momentum: a learned share" in card and "MeSH" not in card
    theirs = load(folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, ours.logits(tokens()), rtol=1e-5, atol=1e-5)
    answer = theirs.generate(tokens(), max_new_tokens=4, do_sample=False)
    assert torch.equal(answer, theirs.generate(tokens(), max_new_tokens=4, do_sample=False, use_cache=False))
    fresh = AutoModelForCausalLM.from_config(theirs.config, trust_remote_code=True)
    assert [gain.bias.item() for gain in fresh.model.routers] == pytest.approx([0.7] * 2)
    (tmp_path / "ours").mkdir()
    mesh = build(model_config())
    beside = load(export(mesh, tmp_path / "ours"))  # in the same process, as the same model_type: each has its own code
    with torch.no_grad():
        torch.testing.assert_close(beside(tokens()).logits, mesh.logits(tokens()), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="is a class of its own, and code of an export is not run here"):
        from_hf_config(config)


def test_without_remote_code_its_export_is_refused(tmp_path: Path) -> None:
    recursion = LAYERS.model_copy(update={"recursion_scheme": "tests.own_scheme:Unexported"})
    with pytest.raises(CheckpointError, match=r"recursion_scheme=tests\.own_scheme:Unexported brings no remote code"):
        export(build(model_config(), recursion), tmp_path, recursion)
    assert not (tmp_path / "export").exists()
