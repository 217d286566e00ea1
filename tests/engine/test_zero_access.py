"""DeepSpeed still keeps its state where zero_access.py looks for it: compared with DeepSpeed's own public getters."""

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
)
from torch import Tensor

from megamesh.engine.zero_access import STATE_KEYS, FlatRangeAccess, ParameterRangeAccess, WholeAccess
from tests.distributed import run
from tests.engine.runs import Setup, full_state, model_weights, my_micro_batches, train, training

KINDS = [
    (Setup(0), "AdamW", WholeAccess),
    (Setup(1), "DeepSpeedZeroOptimizer", FlatRangeAccess),
    (Setup(2), "DeepSpeedZeroOptimizer", FlatRangeAccess),
    (Setup(3), "DeepSpeedZeroOptimizer_Stage3", ParameterRangeAccess),
    (Setup(0, "bfloat16"), "BF16_Optimizer", FlatRangeAccess),
    (Setup(2, "bfloat16"), "DeepSpeedZeroOptimizer", FlatRangeAccess),
    (Setup(3, "bfloat16"), "DeepSpeedZeroOptimizer_Stage3", ParameterRangeAccess),
    (Setup(0, "fp16"), "DeepSpeedZeroOptimizer", FlatRangeAccess),
    (Setup(2, "fp16"), "DeepSpeedZeroOptimizer", FlatRangeAccess),
    (Setup(3, "fp16"), "DeepSpeedZeroOptimizer_Stage3", ParameterRangeAccess),
]
NAMES = [f"{setup.stage} {setup.precision}" for setup, *_ in KINDS]


def _compare_with_public_getters(setup: Setup, wrapper: str, kind: type) -> None:
    with training(setup) as engine:
        access = engine.access
        assert (type(access.wrapper).__name__, type(access)) == (wrapper, kind)
        assert access.step_count() == 0
        train(engine, 0, 2)
        assert access.step_count() == 2
        state = full_state(engine)
        engine._passes.accumulate(my_micro_batches(2), engine.accumulation_steps, 1.0)
        for name, parameter in engine.named_parameters():
            whole, covered = _whole_gradient(engine, parameter)
            assert torch.equal(covered, torch.ones_like(covered)), f"{name}: fragments overlap or leave gaps"
            if access.replicated:
                continue
            assert torch.equal(whole, safe_get_full_grad(parameter).float()), f"gradient of {name}"
            assert torch.equal(state[f"fp32.{name}"], safe_get_full_fp32_param(parameter)), name
            for key in STATE_KEYS[1:]:
                public = safe_get_full_optimizer_state(parameter, key)
                assert torch.equal(state[f"{key}.{name}"], public), f"{key} of {name}"


def _whole_gradient(engine, parameter) -> tuple[Tensor, Tensor]:
    shape = engine.access.local_shape(parameter)
    whole, covered = torch.zeros(2, *shape).flatten(1)
    fragment, values = engine.access.fragment(parameter, "fp32"), engine.access.gradient(parameter)
    assert (fragment is None) == (values is None)
    if fragment is not None and (not engine.access.replicated or dist.get_rank() == 0):
        assert values.shape == fragment.values.shape
        assert values.dtype == fragment.values.dtype == torch.float32
        whole[fragment.start : fragment.start + values.numel()] = values
        covered[fragment.start : fragment.start + values.numel()] += 1
    for tensor in (whole, covered):
        dist.all_reduce(tensor)
    return whole.view(shape), covered


@pytest.mark.parametrize(("setup", "wrapper", "kind"), KINDS, ids=NAMES)
def test_masters_moments_gradients_and_step_count_are_where_we_look(setup, wrapper, kind) -> None:
    run(2, _compare_with_public_getters, setup, wrapper, kind)


def _write_through_fragments(setup: Setup) -> None:
    with training(setup) as engine:
        engine.access.prepare_state(step=41)
        for index, (_, parameter) in enumerate(engine.named_parameters()):
            for key in STATE_KEYS:
                fragment = engine.access.fragment(parameter, key)
                if fragment is not None:
                    fragment.values.fill_(index / 100)
        engine.access.publish_weights()
        assert engine.access.step_count() == 41
        for index, (name, weight) in enumerate(model_weights(engine).items()):
            assert torch.equal(weight, torch.full_like(weight, index / 100)), f"the model computes with a stale {name}"
        train(engine, 0, 1)
        assert engine.access.step_count() == 42


@pytest.mark.parametrize("setup", [setup for setup, *_ in KINDS], ids=NAMES)
def test_what_is_written_into_fragments_is_what_the_model_and_adam_use(setup) -> None:
    run(2, _write_through_fragments, setup)
