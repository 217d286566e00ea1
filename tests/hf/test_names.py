"""The table of names: complete, and every transform undone exactly."""

import pytest
import torch

from megamesh.config.keys import RecursionConfig
from megamesh.errors import CheckpointError
from megamesh.hf.names import exact_architecture, export_tensors, import_tensors, names_table, reader_of
from tests.hf.small_models import MESH, PLAIN, build, llama_config, model_config, source

CASES = {
    "neox": (model_config(), PLAIN),
    "neox-tied-head": (model_config(no_weight_tying=False, gpt_j_residual=False), PLAIN),
    "llama": (llama_config(), PLAIN),
    "mesh": (model_config(), MESH),
    "mesh-llama-blocks": (llama_config(use_qk_layernorm=True), MESH),
    "static-unshared": (
        model_config(pos_emb="learned"),
        RecursionConfig(recursion="1+1+1+1", recursion_scheme="static"),
    ),
    "dynamic-tied-norm": (
        model_config(gpt_j_tied=True),
        RecursionConfig(recursion="1+1R2+1", recursion_scheme="dynamic"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_goes_and_comes_back_bit_for_bit(case: str) -> None:
    model, recursion = CASES[case]
    module = build(model, recursion)
    table = names_table(exact_architecture(model, recursion), model, recursion)
    theirs = dict(export_tensors(table, source(module, recursion).weights(), torch.float32))
    back = dict(import_tensors(table, reader_of(theirs)))
    ours = dict(module.named_parameters())
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_grouped_rows_become_the_heads_of_llama() -> None:
    model = llama_config()
    entry = names_table("llama", model, PLAIN)["prelude.0.attention.qkv.weight"]
    rows = torch.arange(8 * 8)[:, None].expand(-1, 32)  # 4 query and 2 + 2 key and value heads of 8 rows
    heads = [part[::8, 0].tolist() for part in entry.transform.split(rows)]
    assert heads == [[0, 8, 32, 40], [16, 48], [24, 56]]  # groups of q, q, k, v


def test_missing_unknown_and_repeated_parameters_are_named() -> None:
    module = build(model_config())
    table = names_table("megamesh", module.config, MESH)
    weights = list(source(module).weights())
    for wrong, text in (
        (weights[:-1], "lacks 1 of .* head.weight"),
        ([*weights, weights[3]], f"{weights[3][0]} twice"),
        ([*weights, ("core.9.mlp.up.weight", torch.zeros(1))], "core.9.mlp.up.weight"),
    ):
        with pytest.raises(CheckpointError, match=text):
            list(export_tensors(table, iter(wrong), torch.float32))
    with pytest.raises(CheckpointError, match=r"embedding.weight needs model.embed_in.weight"):
        list(import_tensors(table, reader_of({})))
