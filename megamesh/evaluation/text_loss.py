"""The loss of a model on plain text, without an engine: what a tool says of a checkpoint.

    files ──read──▶ documents ──tokenizer──▶ one stream, an end-of-document id after each ──cut──▶ windows ──model──▶ mean loss

Windows are those of training: length + 1 tokens, the next one beginning with the last token of the one before, so that every token but the
first is predicted once. The last window may be shorter; its padding does not count. The mean is over tokens, and does not depend on how
windows are batched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from megamesh.data.samples.batch import Batch, make_batch
from megamesh.data.sources import ReadOptions, find_inputs, read_texts
from megamesh.errors import DataError
from megamesh.model.transformer import Transformer
from megamesh.tokenizer import Tokenizer

BATCH_SIZE = 4
_OPTIONS = ReadOptions(mend="the text must stand under text")


@dataclass(frozen=True)
class TextLoss:
    """Mean cross entropy in nats per token, and over how many tokens."""

    loss: float
    num_tokens: int


def read_windows(paths: Sequence[Path], tokenizer: Tokenizer, length: int, most: int | None = None) -> list[list[int]]:
    """The first `most` windows (all) of up to length + 1 token ids. DataError for files that cannot be read or hold no text."""
    windows, left = [], list[int]()
    for tokens in _documents(paths, tokenizer):
        left += tokens
        while len(left) > length + 1:  # a token beyond the window: what is left is at least two, enough to predict one
            windows.append(left[: length + 1])
            left = left[length:]
            if len(windows) == most:
                return windows
    if len(left) > 1:
        windows.append(left)
    if not windows:
        raise DataError(f"{', '.join(map(str, paths))}: no text to take a loss of; name a file with some")
    return windows


def _documents(paths: Sequence[Path], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for text in read_texts(find_inputs([str(path) for path in paths], "--text"), _OPTIONS):
        if text:
            yield [*tokenizer.encode(text), tokenizer.eod_id]


@torch.no_grad()
def text_loss(model: Transformer, windows: Sequence[Sequence[int]]) -> TextLoss:
    """The mean loss over windows of token ids; a loss that is not finite stays so."""
    total, num_tokens, remaining = 0.0, 0, iter(windows)
    while group := list(islice(remaining, BATCH_SIZE)):
        batch = _padded(group).to(model.device)
        total += float(model(*batch.inputs())) * batch.labels_BS.numel()
        num_tokens += sum(len(window) - 1 for window in group)
    return TextLoss(total / num_tokens, num_tokens)


def _padded(windows: Sequence[Sequence[int]]) -> Batch:
    """Windows as rows of the longest one's length; what is added comes last, where no token sees it, and does not count."""
    longest = max(map(len, windows))
    batch = make_batch([np.pad(np.asarray(window), (0, longest - len(window))) for window in windows])
    for row, window in zip(batch.loss_mask_BS, windows, strict=True):
        row[len(window) - 1 :] = 0.0
    return batch
