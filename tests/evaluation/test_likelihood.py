"""The likelihood of a continuation does not depend on what else is in the batch, and a document's windows predict each token once."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megamesh.checkpoint.inference import load_for_inference
from megamesh.errors import DataError
from megamesh.evaluation.likelihood import Request, encode_pair, log_likelihoods, windows
from megamesh.model.transformer import Transformer
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import TensorParallel
from tests.distributed import run
from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import KNOWN, MESH, build, llama_config, model_config, tokenizer, tokenizer_file

MAX_LENGTH = 24


def requests(count: int) -> list[Request]:
    """Contexts and continuations of all lengths; some too long together, so that their beginning is cut off."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, KNOWN, (count, 60), generator=draw).tolist()
    return [Request(row[: 1 + 7 * n % 30], row[30 : 31 + 5 * n % MAX_LENGTH]) for n, row in enumerate(ids)]


def token_by_token(model: Transformer, request: Request) -> float:
    """Each token of the continuation predicted on its own, in float64, from the last MAX_LENGTH tokens that one model call may read."""
    tokens = [*request.context, *request.continuation]
    start = max(len(tokens) - MAX_LENGTH - 1, 0)
    total = 0.0
    with torch.no_grad():
        for place in range(len(request.context), len(tokens)):
            logits = model.logits(torch.tensor([tokens[start:place]]))[0, -1]
            total += logits.log_softmax(-1)[tokens[place]].item()
    return total


@pytest.mark.parametrize(
    "config", [model_config(pos_emb="learned"), llama_config()], ids=["learned positions", "llama"]
)
def test_batches_give_what_each_request_gives_alone(config) -> None:
    model = build(config)
    asked = requests(70)  # more than are sorted at once
    found = list(log_likelihoods(model, iter(asked), max_length=MAX_LENGTH, batch_size=4))
    exact = model.double()
    assert found == pytest.approx([token_by_token(exact, request) for request in asked], rel=1e-5)


def _divided(save: Path) -> list[float]:
    mesh = ProcessMesh.build("cpu", tensor_parallel_size=dist.get_world_size())
    model, _, _ = load_for_inference(save, tp=TensorParallel.on(mesh))
    return list(log_likelihoods(model, requests(20), max_length=MAX_LENGTH, batch_size=6))


def test_a_model_that_is_divided_over_processes_gives_the_same(tmp_path: Path) -> None:
    model = build(model_config())
    write_checkpoint(tmp_path / "save", model, MESH, tokenizer_file(tmp_path))
    expected = pytest.approx(list(log_likelihoods(model, requests(20), max_length=MAX_LENGTH, batch_size=6)), rel=1e-5)
    assert run(2, _divided, tmp_path / "save") == [expected, expected]


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 20, 25])
def test_windows_predict_every_token_once_with_what_stands_before_it(length: int) -> None:
    tokens = list(range(100, 100 + length))
    found = list(windows(tokens, prefix=7, max_length=10))
    assert [token for request in found for token in request.continuation] == tokens
    whole, predicted = [7, *tokens], 1
    for request in found:
        assert whole[:predicted][-len(request.context) :] == request.context
        predicted += len(request.continuation)
        # The first begins with the document, all others are filled: with one token and predictions, the last with what came before.
        assert len(request.inputs(10)) == min(predicted - 1, 10)


@pytest.mark.parametrize(
    ("context", "continuation", "given", "asked"),
    [
        ("The end", " of it", "The end", " of it"),
        ("The end ", "of it", "The end", " of it"),
        ("The end\n ", "of it", "The end", "\n of it"),
        ("", "The end", None, "The end"),
        (" ", "The end", None, " The end"),
    ],
)
def test_white_space_goes_with_the_continuation(
    tmp_path: Path, context: str, continuation: str, given: str | None, asked: str
) -> None:
    letters = tokenizer(tmp_path)
    expected = [letters.eod_id] if given is None else letters.encode(given)
    assert encode_pair(letters, context, continuation) == Request(expected, letters.encode(asked))


def test_what_begins_with_the_prefix_token_needs_no_other(tmp_path: Path) -> None:
    class WithBos:
        """A tokenizer that puts a BOS before every text."""

        bos_id = eod_id = 1

        def encode(self, text: str) -> list[int]:
            return [1, *tokenizer(tmp_path).encode(text)]

    letters = tokenizer(tmp_path)
    assert encode_pair(WithBos(), "", "ab") == Request([1], letters.encode("ab"))
    assert encode_pair(WithBos(), "a", "b") == Request([1, *letters.encode("a")], letters.encode("b"))


def test_what_cannot_be_predicted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="adds no token"):
        encode_pair(tokenizer(tmp_path), "The end", "")
    with pytest.raises(DataError, match="11 tokens, more than the 10"):
        list(log_likelihoods(build(model_config()), [Request([1], [2] * 11)], max_length=10, batch_size=2))
