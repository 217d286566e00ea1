"""The checks of an export: each of them finds what is wrong with it, and a sample of layers is a model of its own."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megamesh.config.keys import RecursionConfig
from megamesh.errors import CheckpointError
from megamesh.hf import names as names_module
from megamesh.hf.exporting import bound as bound_module
from megamesh.hf.exporting import export as export_module
from megamesh.hf.exporting import sample as sample_module
from megamesh.hf.exporting.bound import held_bytes, memory_bound
from megamesh.hf.exporting.export import export_model
from megamesh.hf.exporting.sample import sample_layers
from megamesh.hf.names import exact_architecture, export_tensors, names_table, their_shapes
from megamesh.model.counts import parameter_shapes
from tests.hf.small_models import KNOWN, MESH, PLAIN, build, export, llama_config, model_config, source, tokenizer

UNSHARED = RecursionConfig(recursion="2+3+3+2")
MODELS = {
    "gpt_neox": (model_config(num_layers=7), PLAIN),
    "gpt_neox, √D, tied norms off": (model_config(num_layers=6, scale_embeddings=True, gpt_j_residual=False), PLAIN),
    "llama": (llama_config(num_layers=5), PLAIN),
    "tied head, learned positions": (model_config(no_weight_tying=False, pos_emb="learned", num_layers=5), PLAIN),
    "mesh": (llama_config(num_layers=16, use_qk_layernorm=True), RecursionConfig(recursion="2+4R3+2")),
    "mesh, not shared": (model_config(num_layers=10), UNSHARED),
    "mesh, no prelude, no coda": (model_config(num_layers=6), RecursionConfig(recursion="0+3R2+0")),
    "dynamic": (model_config(num_layers=10), UNSHARED.model_copy(update={"recursion_scheme": "dynamic"})),
    "static": (model_config(num_layers=10), UNSHARED.model_copy(update={"recursion_scheme": "static"})),
    "anchor": (model_config(num_layers=10), UNSHARED.model_copy(update={"recursion_scheme": "anchor*"})),
}
DEEP = (model_config(num_layers=10, vocab_size=700), RecursionConfig(recursion="2+3R2+2"))


@pytest.mark.parametrize(("name", "dtype"), zip(MODELS, ["float32", "bfloat16"] * len(MODELS), strict=False))
def test_a_good_export_passes_both_checks(name: str, dtype: str, tmp_path: Path) -> None:
    model, recursion = MODELS[name]
    ours = source(build(model, recursion), recursion)
    for check, of in (("logits", "the whole model"), ("layers", "a sample")):
        report = export_model(
            ours, tokenizer(tmp_path), tmp_path / check, dtype=dtype, check=check, max_shard_bytes=40_000
        )
        assert report.agreement.of.startswith(of) and report.agreement.max_logit > 0.1
        assert report.agreement.max_difference <= 2e-5 * report.agreement.max_logit
    for file in (tmp_path / "logits").iterdir():
        if file.name != "README.md":  # which names the folder
            assert file.read_bytes() == (tmp_path / "layers" / file.name).read_bytes(), file.name


def test_special_tokens_may_be_beyond_the_sampled_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers refuses a padding token that its embedding has no row for."""
    monkeypatch.setattr(sample_module, "SAMPLED_ROWS", 8)
    model, recursion = MODELS["llama"]
    characters = tokenizer(tmp_path)
    monkeypatch.setattr(characters, "pad_id", KNOWN - 1)
    report = export_model(source(build(model, recursion), recursion), characters, tmp_path / "hf", check="layers")
    assert report.agreement.of.startswith("a sample")


def test_which_layers_and_rows_are_in_the_sample() -> None:
    def layers(model, recursion: str | None) -> str:
        return str(sample_layers(model, recursion, KNOWN))

    assert layers(model_config(num_layers=12), PLAIN) == "prelude.0 prelude.6 prelude.11"
    assert layers(model_config(num_layers=2), PLAIN) == "prelude.0 prelude.1"
    assert layers(*DEEP) == "prelude.0 core.0 core.2 coda.1"
    assert layers(*MODELS["mesh, not shared"]) == "prelude.0 core.0 core.2 core.3 core.5 coda.1"
    sample = sample_layers(*DEEP, 700)
    assert sample.recursion.recursion == "1+2R2+1" and sample.model.num_layers == 6
    assert sample.rows.tolist() == [*range(128), *range(572, 700)]
    deep, routers = parameter_shapes(*DEEP, 700), [name for name in sample.names if name.startswith("routers")]
    assert len(routers) == 3 * 4, "three sets of a write and a read router"
    for name, short in sample.names.items():
        rows = (256,) if name in ("embedding.weight", "head.weight") else deep[name][:1]
        assert sample.shapes[short] == rows + deep[name][1:]


# Faults: each is planted between our weights and the finished folder.


def swap_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    real = names_module._split_qkv

    def swapped(*args):
        queries, keys, values = real(*args)
        return keys, queries, values

    monkeypatch.setattr(names_module, "_split_qkv", swapped)


def drop_a_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the plan and from the stream alike, so that only the finished model can miss it."""

    gone = "model.routers.2.read.weight"

    def without(*args):
        return {name: shape for name, shape in their_shapes(*args).items() if name != gone}

    monkeypatch.setattr(export_module, "their_shapes", without)
    monkeypatch.setattr(
        export_module, "export_tensors", lambda *args: (pair for pair in export_tensors(*args) if pair[0] != gone)
    )


def exchange_two_routers(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(*args):
        table = names_table(*args)
        first, second = table["routers.1.read.weight"], table["routers.2.read.weight"]
        return table | {
            first.name: replace(first, theirs=second.theirs),
            second.name: replace(second, theirs=first.theirs),
        }

    monkeypatch.setattr(export_module, "names_table", exchanged)


def change_the_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    real = export_module.to_hf_config

    def changed(*args):
        config = real(*args)
        config.rope_theta = 9000.0
        return config

    monkeypatch.setattr(export_module, "to_hf_config", changed)


def change_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every file: transformers takes the model that it knows in this process for a configuration that it knows."""
    real = shutil.copyfile

    def copy(source, target):
        if ".partial-" not in str(target):  # transformers' own
            return real(source, target)
        text = source.read_text().replace("= self.final_norm(h_BSD)", "= self.final_norm(h_BSD) * 1.001")
        target.write_text(f"{text}# changed\n")
        return target

    monkeypatch.setattr(shutil, "copyfile", copy)


def flip_a_bit_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer that is in no sample."""
    real = export_module.check_written

    def flipped(folder: Path, plan, *args):
        slot = plan.slots["model.core.1.mlp.up_proj.weight"]
        content = bytearray((folder / slot.file).read_bytes())
        content[slot.offset + 9] ^= 4
        (folder / slot.file).write_bytes(content)
        return real(folder, plan, *args)

    monkeypatch.setattr(export_module, "check_written", flipped)


FAULTS = {
    swap_queries_and_keys: "those of transformers differ",
    drop_a_router: r"only in part.*routers\.2\.read",
    exchange_two_routers: "those of transformers differ",
    change_the_rotation: "those of transformers differ",
    change_the_code: "those of transformers differ",
    flip_a_bit_on_disk: r"model\.core\.1\.mlp\.up_proj\.weight reads back .* with other bits",
}


@pytest.mark.parametrize("check", ["logits", "layers"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_both_checks_find_what_is_wrong(fault, check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = build(*DEEP)
    tokenizer(tmp_path)
    fault(monkeypatch)
    with pytest.raises(CheckpointError, match=FAULTS[fault]):
        export(ours, tmp_path, DEEP[1], check=check)
    assert [path.name for path in tmp_path.iterdir()] == ["characters.json"]


def test_auto_takes_the_whole_model_where_it_fits_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = source(build(*DEEP), DEEP[1])
    table = names_table("megamesh", *DEEP)
    needed = memory_bound(ours, table, torch.float32, "logits")
    assert needed > 2 * 4 * sum(shape.numel() for shape in map(torch.Size, ours.shapes.values()))
    caplog.set_level(logging.INFO)
    for free, of in ((needed, "the whole model"), (needed - 1, "a sample")):
        monkeypatch.setattr(bound_module, "available_bytes", lambda free=free: free)
        report = export_model(ours, tokenizer(tmp_path), tmp_path / of)
        assert report.agreement.of.startswith(of)
    said = [record.getMessage() for record in caplog.records if "checking" in record.getMessage()]
    assert said[0].startswith("checking logits of the whole model: that takes ")
    assert said[1].startswith("checking a sample of layers: the whole model would take ")


def test_values_beyond_a_type_and_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    ours = build(model_config())
    ours.core[0].mlp.up.weight.data[3, 3] = -65519.9  # rounds to the largest number of float16
    theirs = export(ours, tmp_path, dtype="float16", check="layers")
    shutil.rmtree(theirs)
    ours.core[0].mlp.up.weight.data[3, 3] = -65520.0
    with pytest.raises(CheckpointError, match=r"core\.0\.mlp\.up\.weight holds -65520, beyond the 65504 of float16"):
        export(ours, tmp_path, dtype="float16")
    export(ours, tmp_path, dtype="bfloat16")
    ours.core[0].mlp.up.weight.data[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"core\.0\.mlp\.up\.weight is not finite"):
        export_model(source(ours), tokenizer(tmp_path), tmp_path / "other", check="layers")


def test_folding_the_scale_of_embeddings_counts_towards_the_range(tmp_path: Path) -> None:
    ours = build(model_config(scale_embeddings=True), PLAIN)
    ours.embedding.weight.data[3, 3] = 12_000.0  # · √32 = 67,882
    with pytest.raises(CheckpointError, match=r"embedding\.weight holds 67882\.3, beyond the 65504 of float16"):
        export(ours, tmp_path, PLAIN, dtype="float16")


def test_every_float16_comes_out_bit_for_bit() -> None:
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = patterns[patterns.isfinite()].view(-1, 1)
    weights: Iterator = iter([("embedding.weight", finite.float())])
    entry = names_table("megamesh", model_config(), MESH)["embedding.weight"]
    ((_, written),) = export_tensors({"embedding.weight": entry}, weights, torch.float16)
    assert torch.equal(written.view(torch.int16), finite.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_held_counts_copies_and_not_views(dtype) -> None:
    model, size = llama_config(scale_embeddings=True), dtype.itemsize
    table = names_table(exact_architecture(model, PLAIN), model, PLAIN)
    shapes, rounded = parameter_shapes(model, PLAIN, KNOWN), dtype != torch.float32

    def held(name: str) -> int:
        return held_bytes(table[name], shapes[name], dtype)

    assert held("head.weight") == KNOWN * 32 * (4 + rounded * size)
    assert held("embedding.weight") == KNOWN * 32 * (8 + rounded * size), "scaled: a copy"
    assert held("prelude.0.mlp.up.weight") == 96 * 32 * 4 + rounded * 48 * 32 * size, "two views"
    assert held("prelude.0.attention.qkv.weight") == 64 * 32 * 8 + rounded * 32 * 32 * size, "rows in another order"


def test_the_configuration_beside_a_sample_is_the_whole_models(tmp_path: Path) -> None:
    folder = export(build(*DEEP), tmp_path, DEEP[1], check="layers")
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_core_layers"], config["vocab_size"]) == (10, 3, 700)
