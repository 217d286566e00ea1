"""What a run says of its optimizer and schedule, beside the optimizer and the schedule themselves."""

from typing import Any

import pytest
from torch import nn

from megamesh.config.keys import OptimizerConfig
from megamesh.config.resolved import describe_optimizer, describe_schedule, resolved_optimizer, resolved_schedule
from megamesh.engine.optimizer import build_optimizer
from megamesh.engine.schedule import learning_rate

LEFT_OUT = "torch's default, which the optimizer block leaves out"


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (None, "lr 0.001, betas 0.9 and 0.95, eps 1e-08"),
        ({"params": {"lr": 3e-4}}, f"lr 0.0003, betas 0.9 and 0.999, eps 1e-08 (betas and eps: {LEFT_OUT})"),
        (
            {"type": "Adam", "params": {"lr": 3e-4, "betas": [0.9, 0.95]}},
            f"lr 0.0003, betas 0.9 and 0.95, eps 1e-08 (eps: {LEFT_OUT})",
        ),
        (
            {"type": "Adam", "params": {"lr": 3e-4, "betas": [0.8, 0.9], "eps": 1e-6}},
            "lr 0.0003, betas 0.8 and 0.9, eps 1e-06",
        ),
    ],
)
def test_what_is_said_is_what_torch_is_given(
    block: dict[str, Any] | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = OptimizerConfig(weight_decay=0.2, **({} if block is None else {"optimizer": block}))
    with caplog.at_level("INFO"):
        built = build_optimizer(nn.Linear(2, 2), config).param_groups[0]
    resolved = resolved_optimizer(config)
    assert (resolved["lr"], tuple(resolved["betas"]), resolved["eps"]) == (built["lr"], built["betas"], built["eps"])
    assert resolved["weight_decay"] == built["weight_decay"] == 0.2
    assert describe_optimizer(config) == said and f"AdamW (fused), {said}; " in caplog.messages[-1]


@pytest.mark.parametrize("style", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "iters", "decay"), [(0.1, 40, None), (0.0, 10, None), (0.25, 100, 20)])
def test_the_schedule_is_the_one_that_is_followed(style: Any, warmup: float, iters: int, decay: int | None) -> None:
    config = OptimizerConfig(lr_decay_style=style, warmup=warmup, lr_decay_iters=decay, min_lr=1e-6)
    said = resolved_schedule(config, iters)
    rates = [learning_rate(step, config, iters) for step in range(iters + 1)]
    assert max(rates) == rates[said["warmup_steps"]] == config.peak_lr
    assert rates[: said["warmup_steps"] + 1] == sorted(rates[: said["warmup_steps"] + 1])
    if style == "constant":
        assert set(rates[said["warmup_steps"] :]) == {config.peak_lr}
    else:
        assert rates[said["decay_steps"]] == said["min_lr"] == 1e-6 < rates[said["decay_steps"] - 1]


def test_the_schedule_in_words() -> None:
    config = OptimizerConfig(lr_decay_style="cosine", warmup=0.01, min_lr=1e-5)
    assert describe_schedule(config, 1000) == "cosine decay to 1e-05 over 1,000 steps, after a warm-up over 10 steps"
    assert describe_schedule(config, None) == "cosine decay to 1e-05 over the run, after a warm-up over 1% of the run"
    constant = OptimizerConfig(lr_decay_style="constant", warmup=0.0)
    assert describe_schedule(constant, 1000) == "constant, without warm-up"
