"""The next token from logits: greedy, or sampled at a temperature from the top k tokens and the top p of the probability.

    logits [B, V] ──÷ temperature──▶ top k ──▶ softmax ──▶ top p ──▶ inverse of the cumulative distribution at u [B] ──▶ token [B]

Each sequence draws its u from a stream of its own, keyed by (seed, index of the prompt): what a prompt yields does not depend on which
prompts share its batch, and the process's random state is not touched.

Letters: B batch, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megamesh.errors import ConfigError
from megamesh.parallel.random import keyed_generator


@dataclass(frozen=True)
class Sampling:
    """How a next token is drawn. Temperature 0 is greedy; top_k None and top_p 1 leave everything in."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature={self.temperature} is not a number from 0 (greedy) up")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k={self.top_k} leaves no token; use 1 or more, or leave it out")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p} is not in (0, 1]")
        if self.seed < 0:
            problems.append(f"seed={self.seed} is negative")
        if problems:
            raise ConfigError(problems)


class Sampler:
    """Draws the next token of several sequences; `indices` names the prompts, which key the random streams."""

    def __init__(self, sampling: Sampling, indices: list[int]):
        self.sampling = sampling
        self._streams = [keyed_generator("sample", sampling.seed, index) for index in indices]

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Logits [B, V] → token ids [B]."""
        if self.sampling.temperature == 0:
            return logits_BV.argmax(-1)
        probs_BV, ids_BV = candidate_probabilities(logits_BV, self.sampling)
        u_B = torch.stack([torch.rand((), generator=stream, dtype=torch.float64) for stream in self._streams])
        cumulative_BV = probs_BV.double().cumsum(-1)
        target_B1 = u_B.to(logits_BV.device)[:, None] * cumulative_BV[:, -1:]
        place_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp(max=ids_BV.shape[-1] - 1)
        return ids_BV.gather(-1, place_B1)[:, 0]

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these sequences only."""
        self._streams = [self._streams[row] for row in rows]


def candidate_probabilities(logits_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities and ids of the tokens that may be drawn, most probable first, [B, k]; tokens outside top p have probability 0.

    Top p keeps the smallest set of most probable tokens whose probabilities reach p (Holtzman et al. 2020); always at least one.
    """
    count = min(sampling.top_k or logits_BV.shape[-1], logits_BV.shape[-1])
    below_best_BV = logits_BV.float() - logits_BV.amax(-1, keepdim=True)  # at most 0: no temperature makes it overflow
    scaled_BV = (below_best_BV.double() / sampling.temperature).float()
    values_Bk, ids_Bk = scaled_BV.topk(count) if count < scaled_BV.shape[-1] else scaled_BV.sort(-1, descending=True)
    probs_Bk = values_Bk.softmax(-1)
    if sampling.top_p < 1:
        before_Bk = probs_Bk.cumsum(-1) - probs_Bk
        probs_Bk = probs_Bk.masked_fill(before_Bk >= sampling.top_p, 0.0)
    return probs_Bk, ids_Bk
