"""Every example configuration loads, with every site, and counts what was published."""

import itertools
from pathlib import Path

import pytest

from megamesh.config.batch import data_parallel_size, resolve_batch
from megamesh.config.load import load_config
from megamesh.config.sections import RunConfig
from megamesh.config.tensor_parallel import padded_vocabulary
from megamesh.model.counts import ParameterCounts, count_parameters
from megamesh.planning.memory import memory_per_rank, parameters_per_rank

FOLDER = Path(__file__).parents[2] / "examples" / "configs"
TINY = "tiny-1+2R3+1-mesh.yml"  # for a first run; the others are published models and recipes
MODELS = sorted({path.name for path in FOLDER.glob("*.yml")} - {TINY})
SITES = sorted(path.name for path in (FOLDER / "site").glob("*.yml"))

PYTHIA_TOTALS = {
    "pythia-70m.yml": 70_426_624,
    "pythia-160m.yml": 162_322_944,
    "pythia-410m.yml": 405_334_016,
    "pythia-1b.yml": 1_011_781_632,
    "pythia-1.4b.yml": 1_414_647_808,
    "pythia-2.8b.yml": 2_775_208_960,
    "pythia-6.9b.yml": 6_857_302_016,
}
MESH_NON_EMBEDDING = {
    "1.4b-vanilla.yml": 1_208_602_624,
    "1.4b-4+8R2+4-base.yml": 805_736_448,
    "1.4b-4+8R2+4-anchor.yml": 805_736_448,
    "1.4b-4+8R2+4-mesh.yml": 805_797_918,
    "1.4b-4+8+8+4-mesh.yml": 1_208_602_624 + 61_470,
}
# size → layers, hidden size, heads, peak learning rate
PAPER_SIZES = {
    "160m": (12, 768, 12, 6e-4),
    "410m": (24, 1024, 16, 3e-4),
    "1b": (16, 2048, 8, 2.5e-4),
    "1.4b": (24, 2048, 16, 2e-4),
}
PAPER_TABLE = [
    *(("160m", "2+4R2+2", scheme) for scheme in ("base", "anchor", "mesh")),
    *(
        ("410m", "4+8R2+4", scheme)
        for scheme in ("base", "anchor", "mesh", "anchor+anchor*", "residual+anchor", "static", "dynamic")
    ),
    *(("410m", "3+6R3+3", scheme) for scheme in ("base", "residual", "anchor", "mesh")),
    *(("1b", "3+5R2+3", scheme) for scheme in ("base", "anchor*", "mesh")),
    *(("1.4b", "4+8R2+4", scheme) for scheme in ("base", "anchor", "mesh")),
    ("1.4b", "4+8+8+4", "mesh"),
]


def run_of(model: str, site: str = "one-gpu-node.yml") -> RunConfig:
    return load_config([FOLDER / model, FOLDER / "site" / site]).run


def counts_of(run: RunConfig) -> ParameterCounts:
    assert run.model.vocab_size is not None
    return count_parameters(run.model, run.recursion, run.model.padded_vocab_size(run.model.vocab_size))


@pytest.mark.parametrize(("model", "site"), itertools.product(MODELS, SITES))
def test_a_model_and_a_site_are_a_run(model: str, site: str) -> None:
    run = run_of(model, site)
    assert counts_of(run).total > 0
    for num_copies in (1, 2, 4, 8):
        resolve_batch(run.batch, num_copies)


@pytest.mark.parametrize("model", ["pythia-6.9b.yml", "1.4b-4+8R2+4-mesh.yml"])
def test_the_tensor_parallel_site_divides_the_model_over_half_the_devices(model: str) -> None:
    run = run_of(model, "one-gpu-node-tensor-parallel.yml")
    assert (run.parallel.model_parallel_size, run.parallel.sequence_parallel) == (2, True)
    batch = resolve_batch(run.batch, data_parallel_size(run.parallel, world_size=8))
    assert batch.data_parallel_size == 4
    assert run.model.vocab_size is not None
    padded = padded_vocabulary(run, run.model.vocab_size)
    total = count_parameters(run.model, run.recursion, padded).total
    assert total / 2 < parameters_per_rank(run, padded) < total / 2 * 1.001
    assert memory_per_rank(run, batch, padded)["total"] < 80e9 / 2, "the file speaks of GPUs with 80 GB"


@pytest.mark.parametrize(("model", "total"), PYTHIA_TOTALS.items())
def test_pythia_totals(model: str, total: int) -> None:
    assert counts_of(run_of(model)).total == total


@pytest.mark.parametrize(("model", "non_embedding"), MESH_NON_EMBEDDING.items())
def test_published_non_embedding_counts(model: str, non_embedding: int) -> None:
    assert counts_of(run_of(model)).non_embedding == non_embedding


@pytest.mark.parametrize(("size", "recursion", "scheme"), PAPER_TABLE)
def test_every_recursive_variant_of_the_paper_is_there(size: str, recursion: str, scheme: str) -> None:
    run = run_of(f"{size}-{recursion}-{scheme.replace('anchor*', 'anchor-emb')}.yml")
    assert (run.recursion.recursion, run.recursion.recursion_scheme) == (recursion, scheme)
    assert counts_of(run).embedding == counts_of(run_of(f"{size}-vanilla.yml")).embedding


@pytest.mark.parametrize("slots", [3, 4, 6])
def test_the_slot_ablation_is_there(slots: int) -> None:
    assert run_of(f"410m-4+8R2+4-mesh-{slots}slots.yml").recursion.num_slots == slots


@pytest.mark.parametrize("model", [name for name in MODELS if not name.startswith("pythia")])
def test_the_papers_recipe(model: str) -> None:
    run = run_of(model)
    num_layers, hidden_size, heads, peak = PAPER_SIZES[model.split("-")[0]]
    assert (run.model.num_layers, run.model.hidden_size, run.model.num_attention_heads) == (
        num_layers,
        hidden_size,
        heads,
    )
    assert (run.batch.train_batch_size, run.model.sequence_length, run.training.train_iters) == (512, 4096, 120_818)
    assert (run.optimizer.peak_lr, run.optimizer.betas, run.optimizer.weight_decay) == (peak, (0.9, 0.95), 0.01)
    assert (
        run.optimizer.min_lr == pytest.approx(peak / 10)
        and run.optimizer.lr_decay_style == "cosine"
        and run.optimizer.warmup == 0.01
    )
    assert (
        run.model.scale_embeddings
        and run.model.output_layer_init_method == "scaled_normal"
        and run.precision.precision == "bfloat16"
    )
    assert run.recursion.recursion is not None or "vanilla" in model


def test_the_tiny_model_is_a_run_on_a_laptop() -> None:
    run = run_of(TINY, "laptop-cpu.yml")
    assert counts_of(run).total == 1_848_112, "the file says so"
    assert resolve_batch(run.batch, 1).gradient_accumulation_steps == 8
