"""A recursive model from a plain one's checkpoint: exact where it can be, near where that is said, and trained on any layout."""

import math
import signal
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint.inference import load_model, open_checkpoint
from megamesh.config.keys import ModelConfig
from megamesh.config.load import load_config
from megamesh.data.samples.build import build_datasets
from megamesh.data.samples.loader import iterate_batches
from megamesh.errors import CheckpointError, ConfigError
from megamesh.model.recursion.schemes.mesh import CLOSE
from megamesh.model.recursion.schemes.mesh_start import deviation
from megamesh.model.transformer import Transformer
from megamesh.training.hooks.signals import SIGNALS, SignalHook
from megamesh.training.run import train
from megamesh.upcycling.model import CONFIG_NAME, plan_upcycling, write_upcycled
from tests.distributed import run
from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import PLAIN, build, llama_config, model_config, tokenizer_file, tokens
from tests.schemes import OWN
from tests.training.test_run import train_here
from tests.training.tiny import VOCAB, losses, write_config, write_corpus


def source(folder: Path, model: ModelConfig, like: dict[int, int] | None = None) -> Transformer:
    """A plain model in folder/source; layer i is the same as layer like[i]."""
    module = build(model, PLAIN)
    for layer, other in (like or {}).items():
        module.prelude[layer].load_state_dict(module.prelude[other].state_dict())
    write_checkpoint(folder / "source", module, PLAIN, tokenizer_file(folder))
    return module


def upcycled(
    folder: Path, notation: str, scheme: str = "base", core_from: str = "average", *, into: str | None = None, **mesh
) -> Transformer:
    output = folder / (into or f"{notation} {scheme} {core_from}")
    recursion = {"recursion": notation, "recursion_scheme": scheme} | mesh
    plan = plan_upcycling(open_checkpoint(folder / "source"), output, recursion, core_from)
    path = write_upcycled(plan, output)
    return load_model(open_checkpoint(path), "cpu", torch.float32)


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(tokens())


REPEATED = {3: 1, 4: 2}  # of 6 layers, those between the first and the last are 1 2 1 2
ALIKE = dict.fromkeys(range(2, 5), 1)


@pytest.mark.parametrize(
    ("notation", "like", "rule", "scheme"),
    [
        ("1+2R2+1", REPEATED, "average", "base"),
        ("1+2R2+1", REPEATED, "lower", "static"),
        ("1+2R2+1", REPEATED, "upper", "dynamic"),
        ("1+2R2+1", REPEATED, "upper", OWN),
        ("1+2R2+1", ALIKE, "stepwise", "base"),
        ("1+1R4+1", ALIKE, "average", "base"),
    ],
)
def test_a_source_that_repeats_its_layers_is_reproduced(
    notation: str, like: dict[int, int], rule: str, scheme: str, tmp_path: Path
) -> None:
    plain = source(tmp_path, model_config(num_layers=6), like)
    torch.testing.assert_close(logits(upcycled(tmp_path, notation, scheme, rule)), logits(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [model_config(num_layers=6, no_weight_tying=False), llama_config(num_layers=6)])
def test_a_core_that_shares_nothing_is_the_source_bit_for_bit(model: ModelConfig, tmp_path: Path) -> None:
    plain = source(tmp_path, model)
    for notation, rule in (("1+2+2+1", "stepwise"), ("0+3+3+0", "average"), ("2+2R1+2", "lower")):
        assert torch.equal(logits(upcycled(tmp_path, notation, "base", rule)), logits(plain))


def test_every_parameter_is_the_source_s_or_a_rounded_mean(tmp_path: Path) -> None:
    plain = dict(source(tmp_path, model_config(num_layers=8, pos_emb="learned")).named_parameters())
    found = dict(upcycled(tmp_path, "1+2R3+1", "mesh").named_parameters())
    for name, value in found.items():
        stack, _, rest = name.partition(".")
        index, _, rest = rest.partition(".")
        if stack == "core":
            layers = [plain[f"prelude.{1 + int(index) + 2 * loop}.{rest}"] for loop in range(3)]
            assert torch.equal(value, torch.stack(layers).double().mean(0).float()), name
        elif stack in ("prelude", "coda"):
            assert torch.equal(value, plain[f"prelude.{0 if stack == 'prelude' else 7}.{rest}"]), name
        elif stack != "routers":
            assert torch.equal(value, plain[name]), name
    assert {"position_embedding.weight", "head.weight", "final_norm.bias"} <= found.keys()


def reads_and_states(model: Transformer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What each router set read in a forward pass, and what had just been written; h_emb is the first of the states."""
    scheme, reads, states = model.scheme, [], []
    enter, advance = scheme.enter, scheme.advance

    def watch_enter(highway, h_emb, h_pre):
        states.extend((h_emb, h_pre))
        reads.append(enter(highway, h_emb, h_pre))
        return reads[-1]

    def watch_advance(highway, t, h_m):
        states.append(h_m)
        reads.append(advance(highway, t, h_m))
        return reads[-1]

    scheme.enter, scheme.advance = watch_enter, watch_advance
    logits(model)
    return reads, states


@pytest.mark.parametrize(
    "mesh", [{}, {"mesh_router_slot_bias": 4.0}, {"mesh_num_slots": 9, "mesh_transition_input": "prelude"}]
)
def test_mesh_reads_as_near_to_plain_recursion_as_is_said(mesh: dict, tmp_path: Path) -> None:
    source(tmp_path, model_config(num_layers=8))
    model = upcycled(tmp_path, "1+2R3+1", "mesh", into="new", **mesh)
    config = open_checkpoint(tmp_path / "new").run.recursion
    assert (config.mesh_router_init, config.mesh_router_slot_bias == 4.0) == ("slot", "mesh_router_slot_bias" in mesh)
    bound = deviation(3, config.num_slots, config.mesh_router_slot_bias)
    assert bound <= CLOSE or "mesh_router_slot_bias" in mesh
    reads, states = reads_and_states(model)
    for step, read in enumerate(reads):
        written, largest = states[step + 1], torch.stack([state.norm(dim=-1) for state in states[: step + 2]]).amax(0)
        off = ((read - written).norm(dim=-1) / largest).max()
        assert 0.05 * bound < off < bound * 1.001


def test_with_fewer_slots_than_states_later_reads_add_older_ones(tmp_path: Path) -> None:
    """Slots 1, 2, 0, 1 in turn: the third read adds h_emb, the fourth the prelude's output."""
    source(tmp_path, model_config(num_layers=8))
    model = upcycled(tmp_path, "1+2R3+1", "mesh", into="new", mesh_num_slots=3, mesh_router_slot_bias=30.0)
    assert open_checkpoint(tmp_path / "new").run.recursion.mesh_router_init == "normal"  # as a fresh run would have to
    reads, (h_emb, h_pre, *core) = reads_and_states(model)
    for read, expected in zip(reads, [h_pre, core[0], core[1] + h_emb, core[2] + h_pre], strict=True):
        torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)


def test_a_large_bias_is_plain_recursion(tmp_path: Path) -> None:
    source(tmp_path, model_config(num_layers=8))
    base = logits(upcycled(tmp_path, "1+2R3+1"))
    torch.testing.assert_close(
        logits(upcycled(tmp_path, "1+2R3+1", "mesh", into="large", mesh_router_slot_bias=30.0)),
        base,
        rtol=1e-4,
        atol=1e-4,
    )
    near = upcycled(tmp_path, "1+2R3+1", "mesh", into="near")
    far = upcycled(tmp_path, "1+2R3+1", "mesh", into="far", mesh_router_slot_bias=4.0)
    assert (logits(near) - base).norm() < 0.04 * base.norm() < 0.3 * (logits(far) - base).norm()


def test_routers_of_the_default_start_are_not_dead(tmp_path: Path) -> None:
    """Their gradients are far above Adam's eps, and not nothing beside those of the rest."""
    source(tmp_path, model_config(num_layers=8))
    model = upcycled(tmp_path, "1+2R3+1", "mesh").train()
    ids = tokens()
    model(ids[:, :-1], ids[:, 1:], torch.ones(ids[:, 1:].shape)).backward()
    squares = {name: float(parameter.grad.square().sum()) for name, parameter in model.named_parameters()}
    routers = {name: value**0.5 for name, value in squares.items() if name.startswith("routers.")}
    assert min(routers.values()) > 1e-6
    assert sum(value**2 for value in routers.values()) ** 0.5 > 1e-4 * sum(squares.values()) ** 0.5


def test_what_cannot_be_upcycled_is_refused(tmp_path: Path) -> None:
    source(tmp_path, model_config(num_layers=8))
    upcycled(tmp_path, "1+2R3+1")
    opened = open_checkpoint(tmp_path / "source")

    def refused(recursion: dict, core_from: str = "average", checkpoint=opened) -> str:
        with pytest.raises(ConfigError) as caught:
            plan_upcycling(checkpoint, tmp_path / "new", {"recursion_scheme": "mesh"} | recursion, core_from)
        return str(caught.value)

    recursive = open_checkpoint(tmp_path / "1+2R3+1 base average")
    assert "is recursive already (recursion=1+2R3+1)" in refused({"recursion": "1+1R2+1"}, checkpoint=recursive)
    assert "not a multiple of the core's 4 blocks" in refused({"recursion": "1+4R2+1"})
    assert "is not a layer notation" in refused({"recursion": "4x2"})
    assert "is not a scheme" in refused({"recursion": "1+2R3+1", "recursion_scheme": "highway"})
    assert "mesh_num_slots has no effect" in refused(
        {"recursion": "1+2R3+1", "recursion_scheme": "base", "mesh_num_slots": 5}
    )
    for bias in (-1000.0, -0.1, 51.0, 1000.0, math.nan):
        text = refused({"recursion": "1+2R3+1", "mesh_router_slot_bias": bias})
        assert f"--mesh-router-slot-bias={bias:g} is not a number from 0 to 50" in text
    for bias in (0.0, 50.0):
        recursion = {"recursion": "1+2R3+1", "recursion_scheme": "mesh", "mesh_router_slot_bias": bias}
        assert (
            plan_upcycling(opened, tmp_path / "new", recursion, "average").run.recursion.mesh_router_slot_bias == bias
        )
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        upcycled(tmp_path, "1+2R3+1")
    assert not (tmp_path / "new").exists()


def train_upcycled(config: Path, save: Path, keys: dict) -> list[float]:
    """Steps of a run on the YAML file in an upcycled checkpoint, in a worker of the test pool; the losses."""
    keys = {
        "save": str(save),
        "train_iters": 6,
        "hidden_dropout": 0.0,
        "eval_iters": 0,
        "zero_optimization": {"stage": 1},
    } | keys
    trainer = train(load_config([config], keys), torch.device("cpu"), SignalHook())
    trainer.engine.close()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    return list(losses(save).values())


def first_loss(config: Path, model: Transformer) -> float:
    """Of a run's first step: the mean over its samples, which are all equally long."""
    keys = load_config([config]).run
    data = build_datasets(
        keys.data, sequence_length=16, seed=keys.training.seed, num_samples=(24, 0, 0), vocab_size=VOCAB
    )
    batches = iterate_batches(
        data.train, consumed_samples=0, total_samples=4, micro_batch_size=4, dp_rank=0, dp_size=1, num_workers=0
    )
    with torch.no_grad():
        return float(model(*next(batches).inputs()))


def test_training_goes_on_from_it_on_any_layout(tmp_path: Path) -> None:
    """From a run of ours, whose configuration the new one takes over: the first loss is the upcycled model's, and it falls."""
    write_corpus(tmp_path / "corpus")
    keys = {
        "num_layers": 6,
        "recursion": None,
        "recursion_scheme": None,
        "attention_config": [[["flash"], 6]],
        "tokenizer_type": "CharLevelTokenizer",
        "vocab_file": str(tokenizer_file(tmp_path)),
        "make_vocab_size_divisible_by": 16,
        "model_parallel_size": 2,
        "train_iters": 6,
        "eval_iters": 0,
    }
    assert run(2, train_here, write_config(tmp_path, "source", **keys)) == [6, 6]
    model = upcycled(tmp_path, "1+2R3+1", "mesh", "lower", into="new")
    config = tmp_path / "new" / "global_step0" / "configs" / CONFIG_NAME
    assert load_config([config]).run.model.vocab_size == VOCAB
    (one,) = run(1, train_upcycled, config, tmp_path / "one", {})
    assert one[0] == pytest.approx(first_loss(config, model), rel=1e-5)
    assert one[-1] < one[0] - 0.01
    for name, layout in {"tp": {"model_parallel_size": 2}, "pp": {"pipe_parallel_size": 2}}.items():
        found, _ = run(2, train_upcycled, config, tmp_path / name, layout)
        assert found == pytest.approx(one, rel=1e-5)
