"""The remote code computes what our model computes, with and without its cache, for every scheme and every block."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from megamesh.config.keys import RecursionConfig
from megamesh.model.transformer import Transformer
from tests.hf.small_models import (
    KNOWN,
    MESH,
    PLAIN,
    build,
    export,
    greedy_oracle,
    llama_config,
    load,
    model_config,
    tokens,
)
from tests.schemes import SCHEMES

BLOCKS = {
    "parallel": model_config(),
    "sequential-tied-head": model_config(gpt_j_residual=False, no_weight_tying=False, scale_embeddings=True),
    "tied-norm": model_config(gpt_j_tied=True, activation="relu", use_bias_in_mlp=False),
    "llama": llama_config(),
    "llama-qk-norm": llama_config(use_qk_layernorm=True, activation="geglu", rotary_pct=0.5, num_kv_heads=1),
    "learned-positions": model_config(pos_emb="learned", use_bias_in_norms=False, use_qk_layernorm=True),
    "no-positions": model_config(pos_emb="none", activation="silu", use_bias_in_attn_linear=False),
}
RECURSIONS = {
    "mesh-from-prelude": RecursionConfig(recursion="1+1R2+1", mesh_transition_input="prelude", mesh_num_slots=2),
    "mesh-unshared": RecursionConfig(recursion="1+1+1+1"),
    "plain": PLAIN,
    "mesh": MESH,
}


def assert_same_logits(ours: Transformer, theirs, ids: torch.Tensor) -> None:
    with torch.no_grad():
        mine = ours.logits(ids)
        torch.testing.assert_close(theirs(ids).logits, mine, rtol=0, atol=1e-5 * max(1.0, mine.abs().max().item()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_gives_our_logits(scheme: str, tmp_path: Path) -> None:
    for notation in ("1+1R2+1", "0+1R3+1"):
        recursion = RecursionConfig(recursion=notation, recursion_scheme=scheme)
        ours = build(model_config(), recursion)
        folder = tmp_path / notation[:1]
        folder.mkdir()
        assert_same_logits(ours, load(export(ours, folder, recursion)), tokens())


@pytest.mark.parametrize(
    ("block", "recursion"),
    [*((block, "mesh") for block in BLOCKS), *(("llama-qk-norm", name) for name in RECURSIONS)][:-1],
)
def test_every_block_gives_our_logits_and_generates_the_same_whatever_the_path(
    block: str, recursion: str, tmp_path: Path
) -> None:
    ours = build(BLOCKS[block], RECURSIONS[recursion])
    folder = export(ours, tmp_path, RECURSIONS[recursion])
    prompts = [[5, 9, 30], [11, 12, 13, 14, 15, 16, 17], [40]]
    expected = [greedy_oracle(ours.logits, prompt, 5, stop=0) for prompt in prompts]
    encoder = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    for attention in ("sdpa", "eager"):
        theirs = load(folder, attn_implementation=attention)
        assert_same_logits(ours, theirs, tokens())
        padded = encoder.pad({"input_ids": prompts}, return_tensors="pt")
        assert padded["attention_mask"][0].tolist() == [0] * 4 + [1] * 3
        for use_cache in (True, False):
            made = theirs.generate(**padded, max_new_tokens=5, do_sample=False, use_cache=use_cache)[:, 7:].tolist()
            assert [row[: len(want)] for row, want in zip(made, expected, strict=True)] == expected, (
                attention,
                use_cache,
            )


def test_left_padding_changes_no_logit_also_where_no_positions_are_given(tmp_path: Path) -> None:
    ours = build(model_config(pos_emb="learned"))
    theirs = load(export(ours, tmp_path))
    ids = tokens(size=1, length=9)
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.int64), ids), dim=1)
    mask = torch.cat((torch.zeros(1, 4, dtype=torch.int64), torch.ones_like(ids)), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(padded, attention_mask=mask).logits[:, 4:], ours.logits(ids), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("notation", ["1+2R2+1", "1+2+2+1"])
def test_keys_are_cached_once_for_each_compute_layer(notation: str, tmp_path: Path) -> None:
    recursion = RecursionConfig(recursion=notation)
    theirs = load(export(build(model_config(num_layers=6), recursion), tmp_path, recursion))
    called = []
    for module in theirs.modules():
        if type(module).__name__ == "MegaMeshAttention":
            module.register_forward_hook(lambda attention, *_: called.append(attention.layer_idx))
    cache = DynamicCache(config=theirs.config)
    with torch.no_grad():
        whole = theirs(tokens(), use_cache=False).logits
        called.clear()
        theirs(tokens()[:, :15], past_key_values=cache)
        assert called == list(range(6))
        parts = theirs(tokens()[:, 15:], past_key_values=cache).logits  # several tokens after cached ones
    assert [layer.get_seq_length() for layer in cache.layers] == [20] * 6
    torch.testing.assert_close(parts, whole[:, 15:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("block", ["parallel", "llama"])
def test_loss_and_gradients_are_ours(block: str, checkpointing: bool, tmp_path: Path) -> None:
    ours = build(BLOCKS[block])
    theirs = load(export(ours, tmp_path)).train()
    if checkpointing:
        theirs.activation_checkpointing_enable()
        assert theirs.is_activation_checkpointing
    ids = tokens()
    loss = theirs(ids, labels=ids).loss
    loss.backward()
    expected = ours(ids[:, :-1], ids[:, 1:], torch.ones(2, 19))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    gradients = dict(theirs.named_parameters())
    for name, same in {
        "embedding.weight": "model.embed_in.weight",
        "core.0.attention.out.weight": "model.core.0.self_attn.o_proj.weight",
        "core.0.mlp.down.weight": "model.core.0.mlp.down_proj.weight",
        "routers.0.write.weight": "model.routers.0.write.weight",
        "routers.2.read.bias": "model.routers.2.read.bias",
        "head.weight": "lm_head.weight",
    }.items():
        torch.testing.assert_close(gradients[same].grad, dict(ours.named_parameters())[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", ["parallel", "sequential-tied-head", "tied-norm"])
def test_dropout_falls_where_ours_does(block: str, tmp_path: Path) -> None:
    ours = build(BLOCKS[block].model_copy(update={"hidden_dropout": 0.3, "attention_dropout": 0.2}))
    theirs, logits = load(export(ours, tmp_path)), []
    for forward in (ours.train().logits, lambda ids: theirs.train()(ids).logits):
        torch.manual_seed(1)
        with torch.no_grad():
            logits.append(forward(tokens()))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        whole = ours.eval().logits(tokens())
        torch.testing.assert_close(whole, theirs.eval()(tokens()).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], whole, rtol=0.1)


def test_bfloat16_routes_in_fp32_like_ours(tmp_path: Path) -> None:
    ours = build(model_config()).to(torch.bfloat16)
    theirs = load(export(build(model_config()), tmp_path, dtype="bfloat16"), dtype=torch.bfloat16)
    h_BSD = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        expected = ours.routers[1](h_BSD)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = theirs.model.routers[1](h_BSD)
        for mine, other in zip(expected, found, strict=True):
            assert other.dtype == torch.float32
            torch.testing.assert_close(other, mine, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, ours.logits(tokens()), rtol=0.05, atol=0.1)


def test_states_and_attentions_are_given_on_request(tmp_path: Path) -> None:
    ours = build(model_config())
    theirs = load(export(ours, tmp_path), attn_implementation="eager")
    with torch.no_grad():
        out = theirs(tokens(), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 5 and len(out.attentions) == 4
    torch.testing.assert_close(out.hidden_states[0], ours.embedding(tokens()))
    torch.testing.assert_close(theirs.lm_head(out.hidden_states[-1]), out.logits)
    torch.testing.assert_close(out.attentions[3].sum(-1), torch.ones(2, 4, 20))


def test_saved_again_it_loads_again(tmp_path: Path) -> None:
    theirs = load(export(build(llama_config(no_weight_tying=False)), tmp_path))
    theirs.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    state = again.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    assert again.lm_head.weight is again.model.embed_in.weight
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, theirs(tokens()).logits)
    base = AutoModel.from_pretrained(tmp_path / "export", trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        h_BSD = base(tokens()).last_hidden_state
    torch.testing.assert_close(theirs.lm_head(h_BSD), theirs(tokens()).logits)


@pytest.mark.parametrize("scheme", ["mesh", "static", "dynamic"])
def test_a_model_that_is_not_loaded_starts_as_its_configuration_records(scheme: str, tmp_path: Path) -> None:
    recursion = RecursionConfig(
        recursion="1+1R2+1", recursion_scheme=scheme, mesh_router_init="slot", mesh_router_slot_bias=3.0
    )
    folder = export(build(model_config(), recursion), tmp_path, recursion)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    routers = fresh.model.routers
    if scheme == "mesh":
        assert [r.read.bias.tolist() for r in routers] == [[3.0 * (n == t + 1) for n in range(5)] for t in range(3)]
        assert not routers[0].write.weight.any()
    else:
        first = routers[0].weight if scheme == "static" else routers[0].bias
        assert first.tolist() == [1.0, 0.0, 0.0]
    with torch.no_grad():
        assert fresh(tokens()).logits.isfinite().all()


STANDALONE = """
import sys
sys.modules["megamesh"] = None  # importing it raises ImportError
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, = sys.argv[1:]
expected = torch.load("expected.pt")
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    torch.testing.assert_close(model(expected["tokens"]).logits, expected["logits"], rtol=1e-5, atol=1e-5)
inputs = tokenizer(["The end", "a"], return_tensors="pt", padding=True)
made = model.generate(**inputs, max_new_tokens=5, do_sample=False)
assert made.shape == (2, 12) and (made < tokenizer.vocab_size).all(), made
print("same logits")
"""


def test_the_export_needs_nothing_of_ours(tmp_path: Path) -> None:
    ours = build(llama_config())
    folder = export(ours, tmp_path)
    with torch.no_grad():
        torch.save({"tokens": tokens(), "logits": ours.logits(tokens())}, tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-c", STANDALONE, str(folder)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "same logits" in done.stdout


def test_ids_that_the_tokenizer_does_not_know_are_never_generated(tmp_path: Path) -> None:
    ours = build(model_config(vocab_size=64))
    with torch.no_grad():
        ours.head.weight[KNOWN:] = 100 * ours.head.weight[:1].sign()
    theirs = load(export(ours, tmp_path))
    assert (theirs.generate(tokens(), max_new_tokens=5, do_sample=False) < KNOWN).all()
