"""Generation against the slow, obvious way: read the whole text anew for every token."""

import pytest
import torch

from megamesh.config.keys import RecursionConfig
from megamesh.errors import ConfigError
from megamesh.generation.generate import _warn_of_length, generate, room_for, stream
from megamesh.generation.sampling import Sampling
from tests.hf.small_models import KNOWN, MESH, PLAIN, build, greedy_oracle, llama_config, model_config

PROMPTS = [[5, 9, 30], [11, 12, 13, 14, 15, 16, 17], [40], [5, 9, 31]]
GREEDY = Sampling(temperature=0)
MODELS = {
    "mesh": (model_config(), MESH),
    "unshared": (model_config(), RecursionConfig(recursion="1+1+1+1", recursion_scheme="anchor")),
    "llama": (llama_config(use_qk_layernorm=True), MESH),
    "learned": (model_config(pos_emb="learned"), PLAIN),
    "no-positions": (model_config(pos_emb="none"), MESH),
}


def continue_all(model, prompts=PROMPTS, count=8, stop=None, **options):
    return generate(model, prompts, max_new_tokens=count, vocab_size=KNOWN, stop_id=stop, **options)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_with_cache_and_padding_equals_reading_everything_anew(name: str) -> None:
    model = build(*MODELS[name])
    expected = [greedy_oracle(model.logits, prompt, 8, stop=-1) for prompt in PROMPTS]
    for batch_size in (1, 3, 8):
        assert [r.tokens for r in continue_all(model, sampling=GREEDY, batch_size=batch_size)] == expected


def test_a_sequence_ends_at_the_stop_token_and_the_others_go_on() -> None:
    model = build(model_config(vocab_size=64))
    free = [r.tokens for r in continue_all(model, sampling=GREEDY)]
    stop = free[1][3]
    expected = [greedy_oracle(model.logits, prompt, 8, stop=stop) for prompt in PROMPTS]
    results = continue_all(model, sampling=GREEDY, stop=stop)
    assert [r.tokens for r in results] == expected
    assert [r.stopped for r in results] == [len(tokens) < 8 for tokens in expected]
    assert results[1].stopped and not all(r.stopped for r in results)


def test_what_is_drawn_depends_on_the_seed_and_the_prompts_index_alone() -> None:
    model = build(model_config())
    before = torch.random.get_rng_state()
    drawn = continue_all(model, sampling=Sampling(seed=3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert continue_all(model, sampling=Sampling(seed=3), batch_size=1) == drawn
    assert continue_all(model, sampling=Sampling(seed=4)) != drawn
    again = list(
        stream(model, PROMPTS[3], max_new_tokens=8, vocab_size=KNOWN, stop_id=None, sampling=Sampling(seed=3), index=3)
    )
    assert again == drawn[3].tokens
    twins = continue_all(model, prompts=[PROMPTS[0]] * 2, sampling=Sampling(seed=3))
    assert twins[0] != twins[1]


def test_draws_go_on_unchanged_when_a_neighbour_ends() -> None:
    model = build(model_config())
    prompts, sampling = [[n + 2] for n in range(12)], Sampling(seed=3)
    drawn = continue_all(model, prompts=prompts, sampling=sampling, batch_size=12)
    stop = drawn[4].tokens[2]
    alone = continue_all(model, prompts=prompts, sampling=sampling, batch_size=1, stop=stop)
    assert continue_all(model, prompts=prompts, sampling=sampling, batch_size=12, stop=stop) == alone
    assert 0 < sum(result.stopped for result in alone) < 12


def test_ids_that_the_tokenizer_does_not_know_are_never_produced() -> None:
    model = build(model_config(vocab_size=64))
    with torch.no_grad():
        model.head.weight[KNOWN:] = 100 * model.head.weight[:1].sign()
    assert all(token < KNOWN for result in continue_all(model) for token in result.tokens)


def test_texts_go_beyond_the_trained_length_with_one_warning_but_not_beyond_the_positions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _warn_of_length.cache_clear()
    model = build(model_config(seq_length=32))
    with caplog.at_level("WARNING"):
        assert len(continue_all(model, prompts=[[3] * 28], count=4)[0].tokens) == 4
        assert caplog.messages == []
        assert len(continue_all(model, prompts=[[3] * 28] * 3, count=36, batch_size=1)[0].tokens) == 36
    (warning,) = caplog.messages
    assert "longer than the 32 tokens that the model was trained on (seq_length; it takes 64)" in warning
    assert room_for(model.config, [[3] * 28, [3]]) == 36 and room_for(model.config, [[3]], most=5) == 5
    assert room_for(model.config, [[3] * 64]) == 1 and room_for(model.config, []) == 64


@pytest.mark.parametrize("pos_emb", ["learned", "rotary", "none"])
def test_requests_that_cannot_be_met_are_refused(pos_emb: str) -> None:
    model = build(model_config(pos_emb=pos_emb), PLAIN)
    with pytest.raises(ConfigError, match="64 positions"):
        continue_all(model, prompts=[[3] * 60], count=5)
    with pytest.raises(ConfigError, match="no tokens"):
        continue_all(model, prompts=[[]])
    with pytest.raises(ConfigError, match="max_new_tokens=0"):
        continue_all(model, count=0)
    assert len(continue_all(model, prompts=[[3] * 60], count=4)[0].tokens) == 4
