"""Mean routing of a model against the routers called by hand; the pictures are real images."""

from pathlib import Path

import pytest
import torch

from megamesh.diagnostics.plots import LossCurve, plot_losses, plot_router_maps
from megamesh.diagnostics.router_maps import router_maps
from megamesh.errors import CheckpointError
from megamesh.model.attention import attention_inputs
from tests.model.slot_oracle import run_mesh
from tests.model.test_transformer import batch, build


@torch.no_grad()
def test_each_row_is_the_mean_of_its_step_over_all_tokens() -> None:
    model = build("mesh")
    batches = [batch(seed=seed)[0] for seed in (0, 1)]
    maps = router_maps(model, batches)
    tokens = torch.cat(batches)
    inputs = attention_inputs(model.config, len(tokens), torch.arange(tokens.shape[1]))
    h_emb = model.embedding(tokens.flatten())
    states = run_mesh(
        h_emb, model.prelude[0](h_emb, inputs, 0), lambda h: model.core[0](h, inputs, 0), model.routers, 5, "h_emb"
    )
    for step, h_TD in enumerate([h_emb, *states[:-1]]):
        write, read = model.routers[step](h_TD)
        torch.testing.assert_close(maps.write_TN[step], write.mean(0))
        torch.testing.assert_close(maps.read_TN[step], read.mean(0))
    assert maps.write_TN.shape == (3, 5)
    torch.testing.assert_close(maps.read_TN.sum(1), torch.ones(3, dtype=torch.float64))
    assert not model.routers[0]._forward_hooks


def test_a_model_without_routers_is_refused() -> None:
    with pytest.raises(CheckpointError, match="recursion_scheme must be mesh"):
        router_maps(build("base"), [batch()[0]])


def test_pictures_are_written(tmp_path: Path) -> None:
    plot_router_maps(router_maps(build("mesh"), [batch()[0]]), tmp_path / "routers.png", "test")
    curve = LossCurve(train=[(0, 3.0), (10, 2.0)], valid=[(10, 2.5)])
    plot_losses({"mesh": curve}, tmp_path / "loss.png", {"unigram": 2.8})
    for name in ("routers.png", "loss.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
