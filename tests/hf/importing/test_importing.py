"""A transformers folder becomes a run's folder that generation, export and training take as their own, or nothing appears."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.inference import load_for_inference, open_checkpoint
from megamesh.checkpoint.reader import read_meta, read_weights
from megamesh.config.keys import RecursionConfig
from megamesh.config.load import load_config
from megamesh.config.sections import RunConfig
from megamesh.errors import CheckpointError, ConfigError, DataError
from megamesh.hf import staging
from megamesh.hf.exporting.export import DTYPES, export_model
from megamesh.hf.exporting.source import checkpoint_source
from megamesh.hf.importing import importing
from megamesh.hf.importing.imported_tokenizer import TokenizerChoice
from megamesh.hf.importing.importing import import_model
from megamesh.hf.importing.pretrained import read_pretrained_config
from megamesh.hf.tensor_files import PretrainedWeights
from megamesh.tokenizer.train import train_sentencepiece
from tests.hf.small_models import KNOWN, MESH, PLAIN, build, export, llama_config, model_config, tokenizer_file, tokens
from tests.hf.stock_models import STOCK, old_llama, old_pythia, saved, stock_model, written

OURS = {
    "mesh": (model_config(), MESH),
    "mesh, gated, grouped, normed queries": (
        llama_config(use_qk_layernorm=True, scale_embeddings=True),
        RecursionConfig(recursion="1+1R2+1", mesh_num_slots=4, mesh_transition_input="prelude", mesh_router_slot_bias=2.0),
    ),
    "unshared core": (model_config(hidden_dropout=0.1), RecursionConfig(recursion="1+1+1+1")),
    "sum, tied norm, learned positions": (
        model_config(gpt_j_tied=True, pos_emb="learned"),
        RecursionConfig(recursion="1+1R2+1", recursion_scheme="residual+anchor*"),
    ),
    "static, tied": (
        model_config(no_weight_tying=False),
        RecursionConfig(recursion="1+1R2+1", recursion_scheme="static"),
    ),
    "dynamic, no positions": (
        model_config(pos_emb="none", use_bias_in_norms=False),
        RecursionConfig(recursion="1+1R2+1", recursion_scheme="dynamic"),
    ),
    "odd rotation, plain": (model_config(rotary_pct=0.4, use_bias_in_mlp=False), PLAIN),
}  # fmt: skip


def back(run_folder: Path, output: Path, **options) -> dict[str, torch.Tensor]:
    """The tensors, as stored, of an export of the imported checkpoint."""
    opened = open_checkpoint(run_folder)
    export_model(checkpoint_source(opened), opened.tokenizer, output, **options)
    return stored(output)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    weights = PretrainedWeights(folder)
    return {name: weights.read(name) for name in weights.stored}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", STOCK)
def test_what_is_imported_computes_the_same_and_returns_bit_for_bit(name: str, tmp_path: Path) -> None:
    theirs = stock_model(name)
    folder = saved(theirs, tmp_path / "theirs")
    report = import_model(folder, tmp_path / "run")
    assert report.agreement is not None and report.agreement.of == "the whole model" and report.agreement.max_logit > 1
    assert report.class_name == type(theirs).__name__ and report.num_parameters == theirs.num_parameters()
    ours, _, _ = load_for_inference(tmp_path / "run")
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(tokens()), theirs(tokens()).logits, rtol=1e-5, atol=1e-5)
    assert_same(back(tmp_path / "run", tmp_path / "again"), stored(folder))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["neox-parallel", "neox-tied", "llama"])
def test_half_precision_returns_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    folder = saved(stock_model(name).to(DTYPES[dtype]), tmp_path / "theirs", max_shard_size="20KB")
    import_model(folder, tmp_path / "run")
    found = back(tmp_path / "run", tmp_path / "again", dtype=dtype)
    assert {tensor.dtype for tensor in found.values()} == {DTYPES[dtype]}
    assert_same(found, stored(folder))


@pytest.mark.parametrize("case", OURS)
def test_our_own_exports_return_as_they_went(case, tmp_path: Path) -> None:
    module = build(*OURS[case])
    folder = export(module, tmp_path, OURS[case][1])
    import_model(folder, tmp_path / "run")
    imported = dict(read_weights(tmp_path / "run"))
    assert_same(imported, {name: parameter.detach() for name, parameter in module.named_parameters()})
    ours, _, _ = load_for_inference(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(ours.logits(tokens()), module.logits(tokens()))
    assert_same(back(tmp_path / "run", tmp_path / "again"), stored(folder))
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again")]
    given = {"pad_token_id": 0}  # an export names a token to pad with, where the tokenizer has none
    assert configs[0] | given == configs[1]


@pytest.mark.parametrize("write", [old_pythia, old_llama])
def test_old_folders_are_imported_with_all_their_rows(write, tmp_path: Path) -> None:
    folder, state = write(tmp_path / "old")
    report = import_model(folder, tmp_path / "run")
    assert report.agreement is not None
    opened = open_checkpoint(tmp_path / "run")
    assert opened.vocab_size == opened.run.model.vocab_size == 64 and opened.tokenizer.vocab_size == KNOWN
    assert_same(back(tmp_path / "run", tmp_path / "again", dtype="float16"), state)


def test_the_trained_length_of_an_export_returns_and_is_left_to_the_next_run(tmp_path: Path) -> None:
    folder = export(build(model_config(seq_length=32)), tmp_path)
    report = import_model(folder, tmp_path / "run")
    model = open_checkpoint(tmp_path / "run").run.model
    assert (model.sequence_length, model.max_position_embeddings) == (32, 64)
    text = report.yaml_path.read_text()
    assert "unless data.yml says seq_length; it was trained with seq_length: 32." in text
    assert load_config([report.yaml_path], for_training=False).run.model.seq_length is None


def test_the_yaml_inside_is_the_configuration_and_loads_as_training_loads_it(tmp_path: Path) -> None:
    for name in ("neox-sequential", "llama-tied"):
        run_folder = tmp_path / f"run-{name}"
        report = import_model(saved(stock_model(name), tmp_path / name), run_folder)
        assert report.yaml_path.parent.parent == find_latest(run_folder)
        meta, loaded = read_meta(run_folder), load_config([report.yaml_path], for_training=False)
        assert RunConfig.model_validate(meta.config) == loaded.run
        assert (meta.state.step, meta.state.consumed_samples, meta.state.seed) == (0, 0, loaded.run.training.seed)
        assert loaded.run.checkpoint.load == str(run_folder)
        keys = yaml.safe_load(report.yaml_path.read_text())
        assert {
            "num_layers",
            "hidden_size",
            "rotary_pct",
            "no_weight_tying",
            "vocab_size",
            "tokenizer_type",
        } <= keys.keys()
        assert f"tools/train.py {report.yaml_path} data.yml" in report.yaml_path.read_text()


def test_a_recursive_export_brings_its_recursion_into_the_yaml(tmp_path: Path) -> None:
    recursion = OURS["mesh, gated, grouped, normed queries"][1]
    folder = export(build(llama_config(), recursion), tmp_path, recursion)
    run = load_config([import_model(folder, tmp_path / "run").yaml_path], for_training=False).run
    assert run.recursion == recursion and run.model.num_layers == 4


def test_the_folder_needs_nothing_outside(tmp_path: Path) -> None:
    folder = saved(stock_model("llama"), tmp_path / "theirs")
    import_model(folder, tmp_path / "run")
    text = "Two words.\n<|endoftext|> spelled out"
    expected = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    for path in folder.iterdir():
        path.unlink()
    opened = open_checkpoint(tmp_path / "run")
    assert opened.tokenizer.encode(text) == expected
    assert opened.run.tokenizer.vocab_file == str(tmp_path / "run" / "tokenizer" / "tokenizer.json")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["global_step0", "latest", "tokenizer"]


def test_every_kind_of_tokenizer_is_found_or_named(tmp_path: Path) -> None:
    folder = saved(stock_model("llama", vocab_size=400), tmp_path / "theirs")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"holds no tokenizer.*--vocab-file"):
        import_model(folder, tmp_path / "run")

    characters = tokenizer_file(tmp_path)
    choice = TokenizerChoice("CharLevelTokenizer", vocab_file=str(characters))
    import_model(folder, tmp_path / "characters", tokenizer=choice, check="none")
    assert open_checkpoint(tmp_path / "characters").tokenizer.vocab_size == KNOWN
    assert (tmp_path / "characters" / "tokenizer" / characters.name).read_bytes() == characters.read_bytes()

    merges = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    (folder / "vocab.json").write_text(json.dumps(merges))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    import_model(folder, tmp_path / "gpt2", check="none")
    assert open_checkpoint(tmp_path / "gpt2").tokenizer.encode("ab") == [2]
    named = TokenizerChoice(vocab_file=str(folder / "vocab.json"), merge_file=str(folder / "merges.txt"))
    import_model(folder, tmp_path / "named", tokenizer=named, check="none")
    assert open_checkpoint(tmp_path / "named").run.tokenizer.tokenizer_type == "GPT2BPETokenizer"

    train_sentencepiece(
        ["some lines of text", "and one more"] * 9, folder / "tokenizer.model", vocab_size=290, model_type="bpe"
    )
    import_model(folder, tmp_path / "spm", check="none")
    (folder / "tokenizer.model").rename(tmp_path / "other.model")
    named = TokenizerChoice(vocab_file=str(tmp_path / "other.model"))
    import_model(folder, tmp_path / "spm-named", tokenizer=named, check="none")
    for run_folder, file in (("spm", "tokenizer.model"), ("spm-named", "other.model")):
        run = open_checkpoint(tmp_path / run_folder).run
        assert run.tokenizer.tokenizer_type == "SPMTokenizer" and Path(run.tokenizer.vocab_file or "").name == file
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    module = stock_model("llama", vocab_size=KNOWN - 1)
    folder = saved(module, tmp_path / "theirs")
    with pytest.raises(DataError, match="57 token ids, the model's embedding 56 rows"):
        import_model(folder, tmp_path / "run")
    for choice, text in (
        (TokenizerChoice(vocab_file="nowhere.json"), "nowhere.json"),
        (TokenizerChoice("SPMTokenizer"), "tokenizer.model"),
        (TokenizerChoice("CharLevelTokenizer"), "--vocab-file"),
    ):
        with pytest.raises(DataError, match=text):
            import_model(folder, tmp_path / "run", tokenizer=choice)
    assert not (tmp_path / "run").exists()


def test_a_sample_of_layers_is_compared_where_the_whole_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(stock_model("llama", num_hidden_layers=6, pad_token_id=KNOWN - 1), tmp_path / "theirs")
    monkeypatch.setattr("megamesh.hf.exporting.bound.available_bytes", lambda: 0)
    agreement = import_model(folder, tmp_path / "run").agreement
    assert agreement is not None and agreement.of.startswith("a sample")
    assert import_model(folder, tmp_path / "unchecked", check="none").agreement is None


@pytest.mark.parametrize("check", ["logits", "layers"])
def test_a_wrong_import_is_found_out(check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(stock_model("llama"), tmp_path / "theirs")
    real = importing.save_weights

    def off_by_a_thousandth(run_folder, shapes, read, **options):
        factors = {"prelude.0.mlp.down.weight": 1.001}
        return real(run_folder, shapes, lambda name: read(name) * factors.get(name, 1.0), **options)

    monkeypatch.setattr(importing, "save_weights", off_by_a_thousandth)
    with pytest.raises(CheckpointError, match="our logits and those of transformers differ"):
        import_model(folder, tmp_path / "run", check=check)
    assert not list(tmp_path.glob("*run*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("check", ["logits", "layers"])
def test_a_configuration_read_wrongly_is_found_out(check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(stock_model("llama"), tmp_path / "theirs")
    real = read_pretrained_config(folder)
    wrong = replace(real, model=real.model.model_copy(update={"rotary_emb_base": 1e4}))
    monkeypatch.setattr(importing, "read_pretrained_config", lambda _: wrong)
    with pytest.raises(CheckpointError, match="our logits and those of transformers differ"):
        import_model(folder, tmp_path / "run", check=check)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("check", ["logits", "layers"])
def test_how_a_configuration_wants_to_be_run_does_not_matter(check: str, tmp_path: Path) -> None:
    folder = saved(stock_model("llama"), tmp_path / "theirs")
    keys = json.loads((folder / "config.json").read_text())
    for number, how in enumerate(
        (
            {"_attn_implementation": "flash_attention_2"},
            {"attn_implementation": "flash_attention_2"},
            {"return_dict": False, "output_attentions": True, "output_hidden_states": True},
        )
    ):
        (folder / "config.json").write_text(json.dumps(keys | how))
        assert import_model(folder, tmp_path / f"run{number}", check=check).agreement is not None


@pytest.mark.parametrize(
    ("step", "of"), [("check_import", "theirs cannot be read"), ("sync_folder", "run cannot be written")]
)
def test_an_error_of_the_disk_names_what_was_read_or_written(
    step: str, of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_) -> None:
        raise OSError(5, "Input/output error")

    folder = saved(stock_model("llama"), tmp_path / "theirs")
    monkeypatch.setattr(importing if step == "check_import" else staging, step, breaks)
    with pytest.raises(CheckpointError, match=rf"{of}: .*Input/output error; nothing was kept"):
        import_model(folder, tmp_path / "run")
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    module = stock_model("llama")
    module.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        import_model(saved(module, tmp_path / "theirs"), tmp_path / "run")


def test_what_exists_is_left_alone_and_what_breaks_a_rule_is_told(tmp_path: Path) -> None:
    folder = saved(stock_model("llama"), tmp_path / "theirs")
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        import_model(folder, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    keys = stock_model("llama").config.to_dict() | {"num_key_value_heads": 3}
    broken = written(tmp_path / "broken", keys, {}, "model.safetensors")
    with pytest.raises(ConfigError, match="num_kv_heads=3"):
        import_model(broken, tmp_path / "other")


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    folder = export(build(model_config()), tmp_path)
    for file in folder.glob("*.py"):
        file.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    import_model(folder, tmp_path / "run", check="logits")
    import_model(folder, tmp_path / "layers", check="layers")
    assert not (tmp_path / "ran").exists()
