"""Which parameters decay."""

import pytest

from megamesh.config.keys import OptimizerConfig
from megamesh.engine.optimizer import build_optimizer, is_decayed, parameter_groups
from tests.engine.runs import Setup, transformer


def test_matrices_decay_and_norms_biases_and_embeddings_do_not() -> None:
    module = transformer(Setup())
    decayed = {name for name, parameter in module.named_parameters() if is_decayed(name, parameter)}
    assert {
        "prelude.0.attention.qkv.weight",
        "core.0.mlp.down.weight",
        "routers.0.write.weight",
        "head.weight",
    } <= decayed
    others = {name for name, _ in module.named_parameters()} - decayed
    assert {"embedding.weight", "core.0.attention_norm.weight", "core.0.mlp.up.bias", "routers.1.read.bias"} <= others
    assert all(name.endswith(("bias", "norm.weight")) or name == "embedding.weight" for name in others)


def test_groups_hold_every_parameter_once_in_model_order() -> None:
    named = list(transformer(Setup()).named_parameters())
    decayed, others = parameter_groups(named, 0.3, decay_all=False)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    order = {id(parameter): index for index, (_, parameter) in enumerate(named)}
    for group in (decayed, others):
        indices = [order[id(parameter)] for parameter in group["params"]]
        assert indices == sorted(indices)
    assert len(decayed["params"]) + len(others["params"]) == len(named)
    (everything,) = parameter_groups(named, 0.3, decay_all=True)
    assert everything["weight_decay"] == 0.3 and len(everything["params"]) == len(named)


def test_the_configured_constants_arrive_and_are_said(caplog: pytest.LogCaptureFixture) -> None:
    params = {"lr": 2e-3, "betas": [0.8, 0.9], "eps": 1e-7}
    config = OptimizerConfig(optimizer={"type": "AdamW", "params": params}, weight_decay=0.2)
    with caplog.at_level("INFO", "megamesh"):
        optimizer = build_optimizer(transformer(Setup()), config)
    assert {(group["lr"], group["betas"], group["eps"]) for group in optimizer.param_groups} == {
        (2e-3, (0.8, 0.9), 1e-7)
    }
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    (record,) = [record for record in caplog.records if record.name == "megamesh.engine.optimizer"]
    assert "torch AdamW (fused)" in record.getMessage()
