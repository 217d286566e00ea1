"""Some optimizer steps in any layout, looked at closely, and compared with plain torch on one process."""

from collections.abc import Callable

import pytest
from torch import Tensor

from megamesh.engine.engine import StepResult, TrainingEngine
from megamesh.engine.zero_access import Fragment
from megamesh.parallel.collectives import Communication, count_communication
from tests.engine.runs import (
    CLIP,
    Setup,
    assert_same_weights,
    full_state,
    global_batch,
    join,
    oracle,
    train,
    training,
    transformer,
)

STEPS = 10

Trained = tuple[list[StepResult], dict[str, Tensor], dict[str, Tensor], Communication]


def train_and_look(setup: Setup, num_steps: int, sabotage: Callable[[TrainingEngine], None] | None = None) -> Trained:
    """Results of all steps, the gradients of the first before clipping, the state after the last, and the last step's communication."""
    with training(setup) as engine:
        engine.access.prepare_state()
        gradients: dict[str, Tensor] = {}
        clip = engine._clip

        def look_and_clip(grad_norm: float, own: list[Tensor | None]) -> None:
            if not gradients:
                gradients.update(_join_gradients(engine, own))
            clip(grad_norm, own)

        engine._clip = look_and_clip  # type: ignore[assignment,method-assign]
        if sabotage is not None:
            sabotage(engine)
        results = train(engine, 0, num_steps - 1)
        with count_communication() as communication:
            results += train(engine, num_steps - 1, num_steps)
        return results, gradients, full_state(engine), communication


def _join_gradients(engine: TrainingEngine, own: list[Tensor | None]) -> dict[str, Tensor]:
    joined = {}
    for (name, parameter), values in zip(engine.named_parameters(), own, strict=True):
        place = engine.access.fragment(parameter, "fp32")
        fragment = None if place is None or values is None else Fragment(place.start, values)
        joined[name] = join(engine, name, parameter, fragment)
    return joined


def compare_with_one_process(setup: Setup, trained: Trained) -> None:
    """With plain torch on one process: losses, norms, the first step's gradients, the last weights."""
    results, gradients, state, _ = trained
    losses, norms, weights = oracle(setup, len(results))
    assert max(norms) > CLIP, "the test must clip"
    assert [result.loss for result in results] == pytest.approx(losses, rel=1e-5)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-5)
    module = transformer(setup)
    module(*global_batch(0)).backward()
    for name, parameter in module.named_parameters():
        expected = parameter.grad
        error = (gradients[name] - expected).norm()
        assert error <= 1e-5 * expected.norm() + 1e-8 * norms[0], (
            f"gradient of {name}: {error:g} of {expected.norm():g}"
        )
    assert_same_weights({name: state[f"fp32.{name}"] for name in weights}, weights, module.config)


def distance(setup: Setup, trained: Trained) -> tuple[float, float]:
    """Of a run from one process in fp32: of the losses, and of the first step's gradients, as shares of them."""
    module = transformer(setup)
    module(*global_batch(0)).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    losses, *_ = oracle(setup, len(trained[0]))
    of_losses = max(abs(result.loss / loss - 1) for result, loss in zip(trained[0], losses, strict=True))
    difference = sum(float((trained[1][name] - gradient).square().sum()) for name, gradient in gradients.items())
    return of_losses, (difference / sum(float(gradient.square().sum()) for gradient in gradients.values())) ** 0.5
