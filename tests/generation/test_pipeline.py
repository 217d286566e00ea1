"""A model cut over pipeline ranks continues prompts as one process does."""

import pytest

from megamesh.generation.generate import LanguageModel, generate
from megamesh.generation.sampling import Sampling
from tests.distributed import run
from tests.pipeline.cases import VOCAB, Case

PROMPTS = [[5, 9, 30], [11, 12, 13, 14, 15], [40], [5, 9, 31]]
SAMPLINGS = [Sampling(temperature=0), Sampling(seed=3)]
LONG = {"max_position_embeddings": 16}  # a prompt and what follows it
CASES = [
    Case("1+2R2+1", "mesh", model=LONG | {"pos_emb": "rotary"}),
    Case("0+3R2+0", "anchor*", model=LONG | {"pos_emb": "rotary", "no_weight_tying": False}),
    Case(None, num_passes=2, model=LONG | {"pos_emb": "none"}),
]


def _continuations(model: LanguageModel) -> list:
    limits = {"max_new_tokens": 6, "vocab_size": VOCAB, "stop_id": 2, "batch_size": 3}
    return [generate(model, PROMPTS, sampling=sampling, **limits) for sampling in SAMPLINGS]


def _on_ring(case: Case) -> list:
    ring = case.ring()
    ring.model.eval()
    return _continuations(ring)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rank_gets_what_one_process_gets(case) -> None:
    expected = _continuations(case.build().eval())
    assert len({tuple(found.tokens) for found in expected[0]}) > 1
    assert run(2, _on_ring, case) == [expected, expected]


def test_pipeline_and_tensor_ranks_together() -> None:
    case = Case("1+2R2+1", "mesh", tensor_parallel_size=2, model=LONG | {"pos_emb": "rotary"})
    expected = _continuations(case.build().eval())
    assert run(4, _on_ring, case) == [expected] * 4
