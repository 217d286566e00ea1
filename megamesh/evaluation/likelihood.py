"""How likely a model finds the continuation of a context, for many of them at a time.

    Request(context, continuation) ──longest first, padded on the right──▶ [B, S] ──model──▶ Σ log p(token | all before it), in nats
    text ──encode_pair──▶ Request        document ──windows──▶ Requests that predict each of its tokens once

Contract: the conventions are those of lm-eval's `hf` model type, so that an export gives the same numbers there (in float32; of a bfloat16
model lm-eval rounds the log-probabilities too, unless it is told softmax_dtype=float32).
- What has nothing before it is predicted from the prefix token: the tokenizer's BOS, or its end of document where it has none.
- Of what is too long the end is read: at most `max_length` tokens go into the model, and the last of them predicts the last token.
- A document that is longer is cut into windows of `max_length` predictions. Each but the first is given one token of the one before; the
  last, which predicts fewer, as many as fit.
- White space between a context and its continuation goes with the continuation. Both are encoded together, then cut where the context ends.
Attention is causal, so that padding on the right changes no prediction.

Letters: B batch, S sequence, T tokens, N predicted tokens, D hidden size, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from megamesh.errors import DataError
from megamesh.model.transformer import Transformer
from megamesh.tokenizer import Tokenizer

BATCHES_SORTED_AT_ONCE = 8  # enough to bring together what is equally long, few enough to see progress
LOGITS_AT_ONCE = 1024  # predicted tokens


@dataclass(frozen=True)
class Request:
    """Token ids: what is given and what is to be predicted, at least one each."""

    context: list[int]
    continuation: list[int]

    def inputs(self, max_length: int) -> list[int]:
        """What the model reads: all but the last token, or the end of it."""
        return [*self.context, *self.continuation][-(max_length + 1) : -1]


def prefix_id(tokenizer: Tokenizer) -> int:
    """The token that stands before what has nothing before it."""
    return tokenizer.eod_id if tokenizer.bos_id is None else tokenizer.bos_id


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """A continuation in its context. Raises DataError where no token is left to predict."""
    given = context.rstrip()
    text = context + continuation
    num_given = len(tokenizer.encode(given)) if given else 0
    tokens = tokenizer.encode(text)
    if num_given == 0 and tokens[:1] != [prefix_id(tokenizer)]:
        tokens = [prefix_id(tokenizer), *tokens]
    num_given = max(num_given, 1)
    if len(tokens) <= num_given:
        raise DataError(f"{continuation!r} adds no token to {context[-40:]!r}; write out what is to be predicted")
    return Request(tokens[:num_given], tokens[num_given:])


def windows(tokens: Sequence[int], prefix: int, max_length: int) -> Iterator[Request]:
    """Requests that predict each token of a document once."""
    for start in range(0, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        context = list(tokens[end - max_length - 1 : start]) if start else [prefix]
        yield Request(context, list(tokens[start:end]))


def log_likelihoods(
    model: Transformer, requests: Iterable[Request], *, max_length: int, batch_size: int
) -> Iterator[float]:
    """log p(continuation | context) in nats for each request, in their order; they are drawn a few batches at a time.

    A collective where the model is divided over tensor ranks. Raises DataError for a continuation of more than `max_length` tokens.
    """
    remaining = iter(requests)
    while group := list(islice(remaining, batch_size * BATCHES_SORTED_AT_ONCE)):
        order = sorted(range(len(group)), key=lambda index: -len(group[index].inputs(max_length)))
        found = [0.0] * len(group)
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            sums = _score_batch(model, [group[index] for index in indices], max_length)
            for index, value in zip(indices, sums, strict=True):
                found[index] = value
        yield from found


@torch.no_grad()
def _score_batch(model: Transformer, batch: list[Request], max_length: int) -> list[float]:
    rows = [request.inputs(max_length) for request in batch]
    for request in batch:
        if len(request.continuation) > max_length:
            raise DataError(
                f"a continuation has {len(request.continuation)} tokens, more than the {max_length} that the model reads at once"
            )
    longest = max(map(len, rows))
    tokens_BS = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    places: list[int] = []
    for index, (row, request) in enumerate(zip(rows, batch, strict=True)):
        end = index * longest + len(row)
        places += range(end - len(request.continuation), end)
    h_ND = model.states(tokens_BS)[torch.tensor(places, device=model.device)]
    targets_N = torch.tensor([token for request in batch for token in request.continuation], device=model.device)
    log_p_N = _log_probabilities(model, h_ND, targets_N)
    return [part.sum().item() for part in log_p_N.double().split([len(request.continuation) for request in batch])]


def _log_probabilities(model: Transformer, h_ND: Tensor, targets_N: Tensor) -> Tensor:
    """log p of each target in fp32, without ever holding the logits of a whole batch."""
    parts = []
    for h, targets in zip(h_ND.split(LOGITS_AT_ONCE), targets_N.split(LOGITS_AT_ONCE), strict=True):
        log_p_NV = model.head.logits(h).float().log_softmax(-1)
        parts.append(log_p_NV.gather(-1, targets[:, None])[:, 0])
    return torch.cat(parts)
