"""GPTNeoXForCausalLM and LlamaForCausalLM compute the same logits in ours, and back."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megamesh.errors import CheckpointError
from megamesh.hf.importing.imported_config import from_hf_config
from megamesh.hf.importing.pretrained import read_pretrained_config, read_pretrained_weights
from megamesh.hf.names import import_tensors, names_table, reader_of
from megamesh.hf.tensor_files import PretrainedWeights
from megamesh.model.build import empty_model
from megamesh.model.transformer import Transformer
from tests.hf.small_models import PLAIN, build, export, llama_config, load, model_config, tokens
from tests.hf.stock_models import STOCK, stock_model


def import_state(module) -> tuple[Transformer, dict[str, torch.Tensor]]:
    imported = from_hf_config(module.config.to_dict())
    table = names_table(imported.architecture, imported.model, imported.recursion)
    weights = dict(import_tensors(table, reader_of(module.state_dict())))
    ours = empty_model(imported.model, imported.recursion, imported.vocab_size).eval()
    for name, parameter in ours.named_parameters():
        parameter.data.copy_(weights.pop(name))
    assert not weights
    return ours, dict(ours.named_parameters())


@pytest.mark.parametrize("name", STOCK)
def test_stock_models_give_the_same_logits_in_ours_and_return_unchanged(name: str, tmp_path: Path) -> None:
    theirs = stock_model(name)
    ours, weights = import_state(theirs)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(tokens()), theirs(tokens()).logits, rtol=1e-5, atol=1e-5)

    folder = export(ours, tmp_path, PLAIN)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(again) is type(theirs)
    state = again.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in theirs.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, theirs(tokens()).logits)

    assert read_pretrained_config(folder).architecture == theirs.config.model_type
    returned = dict(read_pretrained_weights(folder))
    assert returned.keys() == weights.keys()
    assert all(torch.equal(returned[key], value) for key, value in weights.items())


@pytest.mark.parametrize("parallel", [True, False])
def test_dropout_falls_where_gpt_neox_drops(parallel: bool, tmp_path: Path) -> None:
    ours = build(model_config(gpt_j_residual=parallel, hidden_dropout=0.3, attention_dropout=0.2), PLAIN)
    theirs = load(export(ours, tmp_path, PLAIN))
    logits = []
    for forward in (ours.train().logits, lambda ids: theirs.train()(ids).logits):
        torch.manual_seed(1)
        with torch.no_grad():
            logits.append(forward(tokens()))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        whole = ours.eval().logits(tokens())
        torch.testing.assert_close(whole, theirs.eval()(tokens()).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], whole, rtol=0.1)


def test_the_untied_head_of_gpt_neox_is_called_embed_out_on_disk(tmp_path: Path) -> None:
    export(build(model_config(), PLAIN), tmp_path, PLAIN)
    weights = PretrainedWeights(tmp_path / "export")
    assert "embed_out.weight" in weights and "lm_head.weight" not in weights


def test_transformers_own_folders_are_read(tmp_path: Path) -> None:
    theirs = stock_model("neox-parallel")
    theirs.save_pretrained(tmp_path)
    _, weights = import_state(theirs)
    read = dict(read_pretrained_weights(tmp_path))
    assert read.keys() == weights.keys() and all(torch.equal(read[key], weights[key]) for key in read)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        list(read_pretrained_weights(tmp_path))


@pytest.mark.parametrize("config", [model_config, llama_config])
def test_the_scale_of_embeddings_is_folded_into_stock_weights(config, tmp_path: Path) -> None:
    ours = build(config(scale_embeddings=True), PLAIN)
    theirs = load(export(ours, tmp_path, PLAIN))
    assert type(theirs).__name__ != "MegaMeshForCausalLM"
    torch.testing.assert_close(theirs.get_input_embeddings().weight, ours.embedding.weight * 32**0.5, rtol=1e-6, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, ours.logits(tokens()), rtol=1e-5, atol=1e-5)
