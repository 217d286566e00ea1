"""A checkpoint folder, and nothing else, as a model that is ready to read text.

    save/ or save/global_stepN/ ──open_checkpoint──▶ configuration, tokenizer, shapes (checked)
                                ──load_for_inference──▶ Transformer with its weights, on its device

The run's configuration is inside the checkpoint. Its tokenizer is where that configuration says, or where the caller says it is now.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from megamesh.checkpoint.folder import resolve_checkpoint
from megamesh.checkpoint.reader import read_meta, read_weights, weight_shapes
from megamesh.config.sections import RunConfig
from megamesh.errors import CheckpointError, ConfigError, DataError
from megamesh.model.build import empty_model
from megamesh.model.transformer import Transformer
from megamesh.tokenizer import Tokenizer, build_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint whose parts fit together; no tensor has been read yet. `vocab_size` counts the embedding's rows."""

    path: Path
    step: int
    run: RunConfig
    tokenizer: Tokenizer
    vocab_size: int

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters by name, fp32, one at a time; each call starts anew."""
        return read_weights(self.path)


def open_checkpoint(
    folder: str | Path, *, vocab_file: str | None = None, merge_file: str | None = None
) -> OpenCheckpoint:
    """Read and check what a checkpoint says. `vocab_file` and `merge_file` replace the paths of a tokenizer that has moved.

    Raises CheckpointError for a missing, damaged or foreign checkpoint, DataError for a tokenizer that is missing or not the model's.
    """
    path = resolve_checkpoint(folder)
    meta = read_meta(path)
    try:
        run = RunConfig.model_validate(meta.config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: the configuration inside does not fit this version of MegaMesh ({key}: {first['msg']})"
        ) from error
    shapes = weight_shapes(path)
    vocab_size = shapes.get("embedding.weight", (0,))[0]
    _check_shapes(path, run, shapes, vocab_size)
    moved = {key: value for key, value in (("vocab_file", vocab_file), ("merge_file", merge_file)) if value}
    return OpenCheckpoint(path, meta.state.step, run, _tokenizer(run, moved, vocab_size), vocab_size)


def _check_shapes(path: Path, run: RunConfig, shapes: dict[str, tuple[int, ...]], vocab_size: int) -> None:
    module = empty_model(run.model, run.recursion, max(vocab_size, 1), device="meta")
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    for name in [*expected, *shapes]:
        if expected.get(name) != shapes.get(name):
            raise CheckpointError(
                f"{path}: {name} is {shapes.get(name, 'missing')}, its configuration asks for {expected.get(name, 'no such parameter')}; "
                "the checkpoint is damaged"
            )


def _tokenizer(run: RunConfig, moved: dict[str, str], vocab_size: int) -> Tokenizer:
    try:
        tokenizer = build_tokenizer(run.tokenizer.model_copy(update=moved))
    except (ConfigError, DataError) as error:
        raise DataError(f"{error} (a tokenizer that is elsewhere now can be named with --vocab-file)") from error
    expected = run.model.padded_vocab_size(
        run.model.vocab_size or tokenizer.vocab_size, run.parallel.model_parallel_size
    )
    if tokenizer.vocab_size > vocab_size or expected != vocab_size:
        raise DataError(
            f"{tokenizer.name} has {tokenizer.vocab_size} token ids, which does not fit the checkpoint's {vocab_size} rows "
            "of the embedding; name the tokenizer that the model was trained with"
        )
    return tokenizer


def load_for_inference(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    vocab_file: str | None = None,
    merge_file: str | None = None,
) -> tuple[Transformer, RunConfig, Tokenizer]:
    """The model of a checkpoint in evaluation mode, its run's configuration and its tokenizer. Raises what `open_checkpoint` does."""
    opened = open_checkpoint(folder, vocab_file=vocab_file, merge_file=merge_file)
    return load_model(opened, device, dtype), opened.run, opened.tokenizer


@torch.no_grad()
def load_model(opened: OpenCheckpoint, device: torch.device | str, dtype: torch.dtype) -> Transformer:
    """The model with its weights, in evaluation mode; one tensor in fp32 exists beside it at a time."""
    model = empty_model(opened.run.model, opened.run.recursion, opened.vocab_size, device=device, dtype=dtype)
    parameters = dict(model.named_parameters())
    for name, tensor in opened.weights():
        parameters[name].copy_(tensor)
    log.info("loaded %s (step %d)", opened.path, opened.step)
    return model.eval()
