"""Compiled blocks train as plain ones do, and what cannot be compiled is refused before training.

Pruned, because a compilation takes seconds. What is compiled is a block, so that one kind of blocks (parallel residuals, dropout) stands
for all schemes, all ways of recomputing and ZeRO 0 to 2, each of which it meets; another has sequential residuals, grouped heads, a gated
MLP and 16 bits. Of tensor parallelism: replicated states with parallel residuals, split ones with sequential residuals, dropout and
recomputation; both are traced and differentiated as always, but run by torch's own kernels, because graphs end at collectives and a
dozen small ones would be compiled on each rank (done by hand, with the same outcome). What is compiled goes to a temporary folder, so
that nothing depends on earlier runs.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import cpp_compiler_search

from megamesh.engine.engine import StepResult
from megamesh.errors import ConfigError
from megamesh.generation.cache import KVCache
from megamesh.model import compile as compile_module
from megamesh.parallel.collectives import Communication, count_communication
from tests.distributed import run
from tests.engine.runs import (
    BOLD,
    GATED,
    GLOBAL_BATCH,
    Setup,
    global_batch,
    my_micro_batches,
    training,
    transformer,
)

STEPS, MANY_STEPS = 10, 60
TIMEOUT_SECONDS = 600  # for processes that compile
DROPOUT = BOLD | {"hidden_dropout": 0.1, "attention_dropout": 0.1}
PARALLEL = DROPOUT | {"gpt_j_residual": True}
LLAMA = BOLD | GATED | {"use_qk_layernorm": True, "use_bias_in_attn_linear": False, "use_bias_in_mlp": False}

Steps = tuple[list[float], list[dict[str, Tensor]]]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where compiled code goes. Before and after these tests nothing is compiled."""
    path = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(path))
        _start_afresh()
        compile_module._try_the_compiler(torch.device("cpu"))
        yield path
        _start_afresh()


@pytest.mark.parametrize(
    ("setup", "num_versions"),
    [
        (Setup(model=PARALLEL), 1),
        (Setup(model=PARALLEL, checkpoint_activations=True), 0),
        (Setup(model=PARALLEL, scheme="base", checkpoint_activations=True, recompute_per="loop"), 0),
        (Setup(model=PARALLEL, scheme=None), 0),
    ],
    ids=["mesh", "mesh, recomputed per block", "base, recomputed per loop", "no recursion"],
)
def test_losses_and_gradients_are_those_of_plain_blocks(setup: Setup, num_versions: int) -> None:
    """Dropout drops the same, also when it is replayed. All blocks share one version, and so do those of the next model."""
    before = counters["stats"]["unique_graphs"]
    losses, gradients = _steps(replace(setup, compile=True))
    assert counters["stats"]["unique_graphs"] - before == num_versions
    plain_losses, plain_gradients = _steps(setup)
    assert losses == pytest.approx(plain_losses, rel=1e-5)
    for step, (own, expected) in enumerate(zip(gradients, plain_gradients, strict=True)):
        whole = _norm(expected)
        for name, gradient in expected.items():
            error = (own[name] - gradient).norm()
            assert error < 1e-5 * max(gradient.norm(), 0.01 * whole), f"step {step}: {name}"


@pytest.mark.parametrize(
    ("device", "model"),
    [
        ("cpu", LLAMA),
        pytest.param(
            "cuda",
            PARALLEL | {"hidden_dropout": 0.0, "attention_dropout": 0.0},
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
        ),
    ],
)
def test_in_bf16_they_are_as_near_to_fp32_as_plain_blocks_are(device: str, model: dict[str, Any]) -> None:
    setup = Setup(model=model)
    exact, exact_gradients = _steps(setup, device=device)
    plain, plain_gradients = _steps(setup, torch.bfloat16, device)
    losses, gradients = _steps(replace(setup, compile=True), torch.bfloat16, device)

    def distance(values: list[float]) -> float:
        return max(abs(value - right) for value, right in zip(values, exact, strict=True))

    def gradient_distance(values: dict[str, Tensor]) -> float:
        return _norm({name: values[name].float() - right for name, right in exact_gradients[0].items()})

    assert distance(losses) < 1.5 * distance(plain)
    assert gradient_distance(gradients[0]) < 1.5 * gradient_distance(plain_gradients[0])


def test_evaluation_is_one_more_version_with_the_same_losses() -> None:
    module, plain = transformer(Setup(model=PARALLEL, compile=True)).eval(), transformer(Setup(model=PARALLEL)).eval()
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for inputs in _micro_batches(0):
            torch.testing.assert_close(module(*inputs), plain(*inputs), rtol=1e-6, atol=0)
    assert counters["stats"]["unique_graphs"] - before == 1
    module.train()
    module(*_micro_batches(0)[0]).backward()
    assert counters["stats"]["unique_graphs"] - before == 1


def test_names_of_parameters_do_not_change() -> None:
    compiled, plain = transformer(Setup(compile=True)), transformer(Setup())
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(*pair) for pair in zip(compiled.parameters(), plain.parameters(), strict=True))


def test_generation_runs_plain() -> None:
    """Calls with a cache or a mask are bit for bit those of plain blocks, and compile nothing."""
    before = counters["frames"]["total"]
    compiled, plain = (transformer(Setup(model=PARALLEL, compile=choice)).eval() for choice in (True, False))
    tokens = global_batch(0)[0]
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    mask = mask.expand(GLOBAL_BATCH, 1, -1, -1)

    @torch.no_grad()
    def states(module: nn.Module) -> list[Tensor]:
        cache = KVCache(4, tokens.shape[1])
        found = [module.states(tokens, mask=mask), module.states(tokens[:, :-1], cache=cache)]
        cache.advance(tokens.shape[1] - 1)
        return [*found, module.states(tokens[:, -1:], torch.tensor([tokens.shape[1] - 1]), cache=cache)]

    assert all(torch.equal(*pair) for pair in zip(states(compiled), states(plain), strict=True))
    assert counters["frames"]["total"] == before


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_shared_blocks_under_data_parallelism_do_not_drift(stage: int, folder: Path) -> None:
    """With and without recomputation. Elsewhere this pair of features has ended in NaN; so one stage trains for many steps."""
    setup = Setup(stage, model=PARALLEL, checkpoint_activations=stage > 0)
    num_steps = MANY_STEPS if stage == 0 else STEPS
    for plain, compiled, _ in run(2, _train_both, setup, num_steps, folder, timeout_seconds=TIMEOUT_SECONDS):
        _assert_same_steps(compiled, plain, 1e-5)


def test_data_parallel_steps_in_bf16(folder: Path) -> None:
    """fp32 masters, 16-bit blocks: within what plain 16 bits show against fp32."""
    exact, _, _ = run(2, _train_both, Setup(1, model=LLAMA), STEPS, folder, "none")[0]
    setup = Setup(1, "bfloat16", model=LLAMA)
    plain, compiled, _ = run(2, _train_both, setup, STEPS, folder, timeout_seconds=TIMEOUT_SECONDS)[0]
    noise = max(abs(one.loss - other.loss) for one, other in zip(plain, exact, strict=True))
    assert max(abs(one.loss - other.loss) for one, other in zip(compiled, exact, strict=True)) < 1.5 * noise


@pytest.mark.parametrize(
    "setup",
    [
        Setup(1, tensor_parallel_size=2, model=BOLD | {"gpt_j_residual": True}),
        Setup(0, tensor_parallel_size=2, sequence_parallel=True, model=DROPOUT, checkpoint_activations=True),
    ],
    ids=["replicated", "sequence parallel, dropout replayed"],
)
def test_tensor_parallel_steps_and_their_collectives(setup: Setup, folder: Path) -> None:
    for plain, compiled, communication in run(2, _train_both, setup, STEPS, folder, "aot_eager"):
        _assert_same_steps(compiled, plain, 1e-5)
        assert communication[0] == communication[1]


def test_layers_of_a_divided_model_share_a_version(folder: Path) -> None:
    """Code that goes on after a collective is compiled anew for every number it is called with: the layer's must not be one of them."""
    setup = Setup(0, tensor_parallel_size=2, model=BOLD)
    assert run(2, _train_in_few_versions, setup, folder, 3) == [True, True]


def test_other_sizes_do_not_compile_for_ever() -> None:
    """Past torch's limit on versions (1 here) blocks run plain, with the results of plain ones."""
    module, plain = transformer(Setup(model=PARALLEL, compile=True)), transformer(Setup(model=PARALLEL))
    before = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(recompile_limit=1):
        for size in (2, 3, 4):
            for length in (5, 16):
                inputs = tuple(tensor[:size, :length] for tensor in global_batch(0))
                torch.testing.assert_close(_seeded_loss(module, inputs), _seeded_loss(plain, inputs), rtol=1e-6, atol=0)
    assert counters["stats"]["unique_graphs"] - before <= 1


def test_a_user_is_told_that_it_takes_a_while(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="megamesh"):
        transformer(Setup(compile=True))
    assert "compiled during the first step" in caplog.text


def test_a_machine_without_a_compiler_is_an_error_at_once() -> None:
    """Also where the folder holds code from earlier runs."""
    compile_module._try_the_compiler.cache_clear()
    cpp_compiler_search.cache_clear()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(
            ConfigError, match=r"compile=true: .*No working C\+\+ compiler.*install a C\+\+ compiler.*compile: false"
        ),
    ):
        transformer(Setup(compile=True))


def test_16_bit_sums_that_are_two_gradients_are_refused_on_cpus() -> None:
    with pytest.raises(ConfigError, match=r"gpt_j_residual=true with biases in bfloat16.*gpt_j_residual: false"):
        compile_module.compile_blocks(transformer(Setup(model=PARALLEL | {"hidden_dropout": 0.0})).bfloat16())


def test_torch_still_fails_where_we_refuse() -> None:
    """When this fails, torch has mended it: remove the refusal."""
    x, *biases = (torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((32, 32), 32, 32))
    with pytest.raises(RuntimeError, match="conflicting declaration"):
        torch.compile(lambda x, one, other: x + one + other)(x, *biases).sum().backward()


def _micro_batches(step: int) -> list[tuple[Tensor, ...]]:
    """The size that data-parallel ranks see, so that they find what is compiled here."""
    return list(zip(*(tensor.chunk(GLOBAL_BATCH) for tensor in global_batch(step)), strict=True))


def _steps(setup: Setup, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Steps:
    """Losses and gradients of training with plain torch in one process."""
    module = transformer(setup).to(device, dtype)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, eps=1e-6)
    losses, gradients = [], []
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        micro_losses = [module(*(tensor.to(device) for tensor in inputs)) for inputs in _micro_batches(step)]
        loss = torch.stack(micro_losses).mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: parameter.grad.clone() for name, parameter in module.named_parameters()})
        optimizer.step()
    return losses, gradients


def _seeded_loss(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    torch.manual_seed(0)
    loss: Tensor = module(*inputs)
    return loss


def _norm(tensors: dict[str, Tensor]) -> float:
    return torch.stack([tensor.norm() for tensor in tensors.values()]).norm().item()


def _train_both(
    setup: Setup, num_steps: int, folder: Path, backend: str = "inductor"
) -> tuple[list[StepResult], list[StepResult], list[Communication]]:
    """In a worker: steps with plain blocks, with compiled ones, and what each said between tensor-parallel ranks."""
    results, communication = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        _start_afresh()
        if backend == "aot_eager":
            torch_compile = torch.compile
            patch.setattr(torch, "compile", lambda forward, **_: torch_compile(forward, backend=backend, dynamic=False))
        for choice in (False,) if backend == "none" else (False, True):
            with count_communication() as counted, training(replace(setup, compile=choice)) as engine:
                results.append([engine.train_step(_seeded(my_micro_batches(s, engine.mesh))) for s in range(num_steps)])
            communication.append(counted)
        _start_afresh()
    return results[0], results[-1], communication


def _train_in_few_versions(setup: Setup, folder: Path, most: int) -> bool:
    """In a worker: a step that fails where a piece of code needs more versions."""
    with torch._dynamo.config.patch(recompile_limit=most, fail_on_recompile_limit_hit=True):
        return len(_train_both(setup, 1, folder, "aot_eager")[1]) == 1


def _start_afresh() -> None:
    torch._dynamo.reset()
    compile_module._compiled_in_training_form.cache_clear()


def _seeded(micro_batches: list[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Each micro-batch with its own random stream, as the trainer gives it."""
    for index, inputs in enumerate(micro_batches):
        torch.manual_seed(index)
        yield inputs


def _assert_same_steps(results: list[StepResult], expected: list[StepResult], rtol: float) -> None:
    assert not any(result.skipped for result in results)
    assert [result.loss for result in results] == pytest.approx([result.loss for result in expected], rel=rtol)
    assert [result.grad_norm for result in results] == pytest.approx(
        [result.grad_norm for result in expected], rel=10 * rtol
    )
