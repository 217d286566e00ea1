"""Continuations of prompts, several at a time.

    prompts of different lengths ──padded on the left──▶ [B, S] ──prefill──▶ KV cache, last logits ──sample──▶ token ─┐
                                                                               ▲                                      │
                                                                               └── one token per sequence ◀───────────┘

Contract: a batch gives each prompt the tokens that it would get alone (up to rounding), greedy or sampled; a sequence ends after
`stop_id`, which is not part of the result. Only ids below `vocab_size`, the tokenizer's, are produced; the model may have more.

A model that is divided over tensor or pipeline ranks is called with the same arguments on every rank, and each gets the same result: the
cache holds the rank's layers and key/value heads, and the first tensor rank's choice of a token counts.

Letters: B batch, S sequence, V vocabulary.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megamesh.config.keys import ModelConfig
from megamesh.errors import ConfigError
from megamesh.generation.cache import KVCache
from megamesh.generation.sampling import Sampler, Sampling
from megamesh.model.attention import KeyValueCache
from megamesh.parallel.tensor import TensorParallel

log = logging.getLogger(__name__)
AS_TRAINED = Sampling()  # the model's own distribution


class LanguageModel(Protocol):
    """What generation asks of a model: a Transformer, or a Ring that runs one over pipeline ranks."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tp(self) -> TensorParallel: ...

    @property
    def device(self) -> torch.device: ...

    def last_logits(
        self, tokens_BS: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """Logits [B, V] of the last token, on every rank."""
        ...


@dataclass(frozen=True)
class Continuation:
    """The new tokens of one prompt; `stopped` where the model ended it, else the limit on new tokens did."""

    tokens: list[int]
    stopped: bool


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    vocab_size: int,
    stop_id: int | None,
    sampling: Sampling = AS_TRAINED,
    batch_size: int = 8,
) -> list[Continuation]:
    """Continue every prompt (token ids, at least one each); results in the order of the prompts.

    A collective where the model is divided. Raises ConfigError for an empty prompt, one that leaves no room within the positions, or a
    model whose states are divided by tokens.
    """
    results: dict[int, list[int]] = {index: [] for index in range(len(prompts))}
    stopped: set[int] = set()
    for first in range(0, len(prompts), batch_size):
        indices = list(range(first, min(first + batch_size, len(prompts))))
        batch = [prompts[index] for index in indices]
        for step in _steps(model, batch, indices, max_new_tokens, vocab_size, stop_id, sampling):
            for index, token in step.items():
                if token == stop_id:
                    stopped.add(index)
                else:
                    results[index].append(token)
    return [Continuation(tokens, index in stopped) for index, tokens in results.items()]


def room_for(model: ModelConfig, prompts: Iterable[Sequence[int]], most: int = 128) -> int:
    """New tokens where none are asked for: `most`, or as many as the longest prompt leaves positions for; at least 1."""
    return max(min(most, model.longest_sequence - max(map(len, prompts), default=0)), 1)


def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    vocab_size: int,
    stop_id: int | None,
    sampling: Sampling = AS_TRAINED,
    index: int = 0,
) -> Iterator[int]:
    """The tokens of `generate` for one prompt, each as soon as it is known. `index` keys the random stream."""
    for step in _steps(model, [prompt], [index], max_new_tokens, vocab_size, stop_id, sampling):
        if step[index] != stop_id:
            yield step[index]


def _steps(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    indices: list[int],
    max_new_tokens: int,
    vocab_size: int,
    stop_id: int | None,
    sampling: Sampling,
) -> Iterator[dict[int, int]]:
    """Per step, the next token of every sequence that is still going, keyed by the prompt's index."""
    _check(model, prompts, max_new_tokens)
    sampler = Sampler(sampling, indices)
    state = _Decoder(model, pad_left(prompts, model.device), [len(prompt) for prompt in prompts], max_new_tokens)
    for _ in range(max_new_tokens):
        tokens_B = _agreed(sampler(state.next_logits()[:, :vocab_size]), model)
        tokens = tokens_B.tolist()
        yield dict(zip(indices, tokens, strict=True))
        going = [row for row, token in enumerate(tokens) if token != stop_id]
        if not going:
            return
        if len(going) < len(tokens):
            state.keep_rows(going)
            sampler.keep_rows(going)
            indices = [indices[row] for row in going]
            tokens_B = tokens_B[going]
        state.append(tokens_B)


def _agreed(tokens_B: Tensor, model: LanguageModel) -> Tensor:
    """The first tensor rank's tokens, on all of them: a GPU may round sums over the vocabulary otherwise each time."""
    if model.tp.group is not None:
        dist.broadcast(tokens_B, group=model.tp.group, group_src=0)
    return tokens_B


def _check(model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if model.tp.sequence_parallel:
        raise ConfigError(
            "sequence_parallel=true: tokens that come one by one cannot be divided over ranks; load the checkpoint without it"
        )
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens} asks for nothing; use 1 or more")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ConfigError("a prompt has no tokens; start from the end-of-document token to write a new document")
    longest, limit = max(len(prompt) for prompt in prompts) + max_new_tokens, model.config.longest_sequence
    if longest > limit:
        raise ConfigError(
            f"a prompt and max_new_tokens={max_new_tokens} make {longest} tokens, "
            f"more than the {limit} positions that the model takes (max_position_embeddings); shorten one of them"
        )
    if longest > model.config.sequence_length and model.tp.rank == 0:
        _warn_of_length(model.config.sequence_length, limit)


@cache
def _warn_of_length(trained: int, limit: int) -> None:
    """Once in a process: the next batch or prompt is no news."""
    log.warning(
        "texts may become longer than the %d tokens that the model was trained on (seq_length; it takes %d); quality may fall",
        trained, limit,
    )  # fmt: skip


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """Prompts of different lengths as [B, S], the shorter ones filled with id 0 on the left."""
    longest = max(len(prompt) for prompt in prompts)
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows, dtype=torch.int64, device=device)


class _Decoder:
    """The sequences of a batch, their cache, and the tokens that the model has not read yet."""

    def __init__(self, model: LanguageModel, tokens_BS: Tensor, lengths: list[int], max_new_tokens: int):
        self.model, self.unread_BS = model, tokens_BS
        self.padding_B1 = tokens_BS.shape[1] - torch.tensor(lengths, device=tokens_BS.device)[:, None]
        self.padded = bool((self.padding_B1 > 0).any())
        self.cache = KVCache(model.config.num_layers, tokens_BS.shape[1] + max_new_tokens)

    def next_logits(self) -> Tensor:
        """Read what is unread; logits [B, V] for the token after it."""
        start, end = self.cache.length, self.cache.length + self.unread_BS.shape[1]
        places_S = torch.arange(start, end, device=self.unread_BS.device)
        positions = (places_S - self.padding_B1).clamp(min=0) if self.padded else places_S
        mask = left_padding_mask(self.padding_B1, places_S) if self.padded else None
        logits_BV = self.model.last_logits(self.unread_BS, positions, mask, self.cache)
        self.cache.advance(end - start)
        return logits_BV

    def append(self, tokens_B: Tensor) -> None:
        self.unread_BS = tokens_B[:, None]

    def keep_rows(self, rows: list[int]) -> None:
        index = torch.tensor(rows, device=self.padding_B1.device)
        self.padding_B1 = self.padding_B1[index]
        self.cache.keep_rows(index)


def left_padding_mask(padding_B1: Tensor, places_S: Tensor) -> Tensor:
    """Who attends to whom, bool [B, 1, S, keys], for queries at `places_S` of rows that begin with `padding_B1` filler tokens.

    Filler attends to itself, so that no row of the softmax is empty; nothing else attends to it.
    """
    keys = torch.arange(int(places_S[-1]) + 1, device=places_S.device)
    causal = keys[None, :] <= places_S[:, None]
    real = keys[None, None, :] >= padding_B1[:, :, None]
    itself = keys[None, :] == places_S[:, None]
    return ((causal & real) | itself)[:, None]
