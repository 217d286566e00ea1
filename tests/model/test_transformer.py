"""The transformer against direct formulas: recursion schemes, causality, recomputation, initial weights, names, memory."""

import weakref

import pytest
import torch

from megamesh.config.keys import ModelConfig, RecursionConfig, TrainingConfig
from megamesh.model import init
from megamesh.model.attention import attention_inputs
from megamesh.model.build import build_model
from megamesh.model.init import initial_value
from megamesh.model.transformer import Transformer
from tests.model.slot_oracle import run_mesh
from tests.schemes import SCHEMES

VOCAB = 64


def small_model(**changes) -> ModelConfig:
    keys = dict(
        num_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=16,
        pos_emb="rotary",
        rotary_pct=0.5,
    )
    return ModelConfig(**(keys | dict(no_weight_tying=True, gpt_j_residual=True, init_method_std=0.2) | changes))


def build(
    scheme: str | None = "mesh", *, training: TrainingConfig | None = None, dtype=torch.float64, **changes
) -> Transformer:
    recursion = RecursionConfig() if scheme is None else RecursionConfig(recursion="1+1R2+1", recursion_scheme=scheme)
    return build_model(small_model(**changes), recursion, training or TrainingConfig(), VOCAB, dtype=dtype)


def batch(seed: int = 0, size: int = 2, length: int = 12):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (size, length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:], torch.ones(size, length)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "mesh"])  # which has an oracle of its own
def test_schemes_follow_their_formula(scheme: str) -> None:
    model = build(scheme, gpt_j_residual=False)
    torch.manual_seed(1)
    for parameter in model.routers.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    tokens = batch()[0]
    positions = torch.arange(tokens.shape[1])
    inputs = attention_inputs(model.config, len(tokens), positions)
    h_emb = model.embedding(tokens.flatten())
    h = h_0 = model.prelude[0](h_emb, inputs, 0)
    for t in range(2):
        out = model.core[0](h, inputs, 0)
        if scheme in ("static", "dynamic"):
            mixer = model.routers[t]
            a = mixer.weight.expand(1, 3) if scheme == "static" else h @ mixer.weight.T + mixer.bias
            h = a[..., :1] * out + a[..., 1:2] * h_0 + a[..., 2:] * h_emb
        else:
            terms = {"residual": h, "anchor": h_0, "anchor*": h_emb, "base": torch.zeros_like(h)}
            h = out + sum(terms[term] for term in scheme.split("+"))
    expected = model.head.logits(model.final_norm(model.coda[0](h, inputs, 0)))
    torch.testing.assert_close(model.logits(tokens).flatten(0, 1), expected, rtol=1e-12, atol=1e-12)


def test_mesh_in_the_transformer_equals_the_slot_form() -> None:
    model, ids = build("mesh", scale_embeddings=True), batch()[0]
    inputs = attention_inputs(model.config, len(ids), torch.arange(ids.shape[1]))
    h_emb = model.embedding(ids.flatten())
    states = run_mesh(
        h_emb, model.prelude[0](h_emb, inputs, 0), lambda h: model.core[0](h, inputs, 0), model.routers, 5, "h_emb"
    )
    expected = model.head.logits(model.final_norm(model.coda[0](states[-1], inputs, 0)))
    logits = model.logits(ids).flatten(0, 1)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    cotangent, parameters = torch.randn_like(expected), list(model.parameters())
    for mine, oracle in zip(
        torch.autograd.grad(logits, parameters, cotangent),
        torch.autograd.grad(expected, parameters, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, oracle, rtol=1e-11, atol=1e-11)


def test_loss_is_the_cross_entropy_of_the_logits() -> None:
    model = build()
    tokens, labels, mask = batch()
    mask[0, :5] = 0
    nll = torch.nn.functional.cross_entropy(model.logits(tokens).flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(
        model(tokens, labels, mask), (nll * mask.flatten()).mean(), rtol=1e-10, atol=0, check_dtype=False
    )


@pytest.mark.parametrize("scheme", [None, "mesh"])
def test_no_token_sees_the_future(scheme: str | None) -> None:
    model = build(scheme)
    tokens = batch()[0]
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    before, after = model.logits(tokens), model.logits(changed)
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize(
    "keys", [dict(checkpoint_num_layers=1), dict(checkpoint_num_layers=2), dict(checkpoint_activations_per="loop")]
)
@pytest.mark.parametrize("scheme", ["base", "mesh"])
def test_recomputation_changes_no_bit_of_the_gradients(keys, scheme: str) -> None:
    def gradients(training: TrainingConfig) -> list[torch.Tensor]:
        model = build(scheme, training=training, hidden_dropout=0.2, attention_dropout=0.1)
        torch.manual_seed(5)
        loss = model(*batch())
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    for kept, again in zip(
        gradients(TrainingConfig()), gradients(TrainingConfig(checkpoint_activations=True, **keys)), strict=True
    ):
        assert torch.equal(kept, again)


def test_recomputation_keeps_less() -> None:
    def kept(**keys) -> int:
        training = TrainingConfig(checkpoint_activations=bool(keys), **keys)
        model = build_model(small_model(num_layers=8), RecursionConfig(recursion="1+3R2+1"), training, VOCAB)
        return saved_bytes(model, batch())

    everything, per_block, per_loop = kept(), kept(checkpoint_num_layers=1), kept(checkpoint_activations_per="loop")
    assert per_loop < kept(checkpoint_num_layers=2) < per_block < 0.6 * everything
    assert kept(checkpoint_num_layers=3) == per_loop


def test_names_do_not_depend_on_anything_but_the_architecture() -> None:
    names = {name for name, _ in build("mesh").named_parameters()}
    block = [
        f"{m}.{p}"
        for m in ("attention.qkv", "attention.out", "mlp.up", "mlp.down", "attention_norm", "mlp_norm")
        for p in ("weight", "bias")
    ]
    expected = {f"{part}.0.{leaf}" for part in ("prelude", "core", "coda") for leaf in block}
    expected |= {
        f"routers.{t}.{which}.{p}" for t in range(3) for which in ("write", "read") for p in ("weight", "bias")
    }
    assert names == expected | {"embedding.weight", "final_norm.weight", "final_norm.bias", "head.weight"}
    assert "head.weight" not in dict(build(no_weight_tying=False).named_parameters())


def test_an_unshared_core_has_blocks_of_its_own_per_loop() -> None:
    recursion = RecursionConfig(recursion="1+1+1+1")
    model = build_model(small_model(), recursion, TrainingConfig(), VOCAB, dtype=torch.float64)
    assert len(model.core) == 2 and model._core_of(0)[0] is not model._core_of(1)[0]
    shared = build("mesh")
    shared.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith("core.1.")}
    )
    model.core[1].load_state_dict(model.core[0].state_dict())
    tokens = batch()[0]
    torch.testing.assert_close(model.logits(tokens), shared.logits(tokens), rtol=1e-13, atol=1e-13)


RECIPE = ModelConfig(num_layers=24, hidden_size=256, num_attention_heads=4, max_position_embeddings=16)
SLOT = RecursionConfig(recursion="4+8R2+4", mesh_router_init="slot", mesh_num_slots=5, mesh_router_slot_bias=3.0)
READS, WRITES = "core.0.mlp.up.weight", "core.0.mlp.down.weight"


@pytest.mark.parametrize(
    ("name", "std", "methods"),
    [
        *((name, 0.02, {}) for name in (READS, "prelude.0.attention.qkv.weight", "embedding.weight", "head.weight")),
        *(
            (name, 0.02 / 48**0.5, {}) for name in (WRITES, "coda.3.attention.out.weight")
        ),  # depth 24: 16 layers of weights
        (READS, (2 / 5 / 256) ** 0.5, {"init_method": "small_init"}),
        (WRITES, 2 / 24 / 256**0.5, {"output_layer_init_method": "wang_init"}),
    ],
)
def test_weights_are_drawn_with_the_std_of_their_method(name: str, std: float, methods: dict[str, str]) -> None:
    value = initial_value(name, (256, 1024), RECIPE.model_copy(update=methods), SLOT, seed=1)
    assert abs(value.std().item() / std - 1) < 0.01 and abs(value.mean().item()) < 0.01 * std
    assert torch.equal(value, initial_value(name, (256, 1024), RECIPE.model_copy(update=methods), SLOT, seed=1))
    assert not torch.equal(value, initial_value(name, (256, 1024), RECIPE, SLOT, seed=2))


def test_norms_biases_and_routers_start_as_documented() -> None:
    for name, start in {"core.0.mlp_norm.weight": 1.0, "core.0.mlp_norm.bias": 0.0, "core.0.mlp.up.bias": 0.0}.items():
        assert initial_value(name, (8,), RECIPE, SLOT, 1).tolist() == [start] * 8
    assert initial_value("routers.1.read.bias", (5,), RECIPE, SLOT, 1).tolist() == [0, 0, 3, 0, 0]
    assert not initial_value("routers.1.read.weight", (5, 256), RECIPE, SLOT, 1).any()
    normal = SLOT.model_copy(update={"mesh_router_init": "normal"})
    assert abs(initial_value("routers.1.read.weight", (64, 256), RECIPE, normal, 1).std().item() / 0.02 - 1) < 0.02
    assert not initial_value("routers.1.read.bias", (5,), RECIPE, normal, 1).any()
    for scheme, name in (("static", "routers.1.weight"), ("dynamic", "routers.1.bias")):
        mixed = RecursionConfig(recursion="4+8R2+4", recursion_scheme=scheme)
        assert initial_value(name, (3,), RECIPE, mixed, 1).tolist() == [1, 0, 0]


def test_embeddings_are_scaled_by_the_root_of_the_width() -> None:
    plain, scaled = build(None), build(None, scale_embeddings=True)
    tokens = batch()[0]
    torch.testing.assert_close(scaled.embedding(tokens), plain.embedding(tokens) * 32**0.5, rtol=1e-14, atol=0)


def test_no_two_global_tensors_exist_at_once_while_weights_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[weakref.ref] = []

    def watched(*arguments):
        assert not any(earlier() is not None for earlier in drawn), "the one before is still there"
        value = initial_value(*arguments)
        drawn.append(weakref.ref(value))
        return value

    monkeypatch.setattr(init, "initial_value", watched)
    build()
    assert len(drawn) > 10


def saved_bytes(model: Transformer, inputs: tuple[torch.Tensor, ...]) -> int:
    """Bytes of all tensors that autograd keeps for backward, parameters left out, each storage counted once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*inputs)
    return sum(storage.nbytes() for storage in kept.values())
