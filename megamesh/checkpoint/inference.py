"""A checkpoint folder, and nothing else, as a model that is ready to read text.

    save/ or save/global_stepN/ ──open_checkpoint──▶ configuration, tokenizer, shapes (checked)
                                ──load_for_inference──▶ Transformer with its weights, on its device; or this rank's part of one

The run's configuration is inside the checkpoint. Its tokenizer is where that configuration says, or where the caller says it is now.
How the run was laid out over processes does not matter: its checkpoint is the same, without any padding of the vocabulary.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from megamesh import __version__
from megamesh.checkpoint.folder import resolve_checkpoint
from megamesh.checkpoint.reader import read_meta, read_parts, read_weights, weight_shapes
from megamesh.checkpoint.together import on_every_rank
from megamesh.config.keys import ModelConfig
from megamesh.config.rule import either
from megamesh.config.sections import RunConfig
from megamesh.config.tensor_parallel import divided_parts, dividing_sizes
from megamesh.errors import CheckpointError, ConfigError, DataError
from megamesh.model.build import empty_model
from megamesh.model.transformer import Transformer
from megamesh.parallel.tensor import SINGLE, TensorParallel
from megamesh.tokenizer import Tokenizer, build_tokenizer
from megamesh.tokenizer.base import TokenizerFileError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint whose parts fit together; no tensor has been read yet.

    `vocab_size` counts the embedding's rows: the tokenizer's ids, or more where the configuration's `vocab_size` says so.
    """

    path: Path
    step: int
    run: RunConfig
    tokenizer: Tokenizer
    vocab_size: int

    def weights(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """All parameters by name, or `names`, fp32, one at a time; each call starts anew."""
        return read_weights(self.path, names)


def open_checkpoint(
    folder: str | Path, *, vocab_file: str | None = None, merge_file: str | None = None
) -> OpenCheckpoint:
    """Read and check what a checkpoint says. `vocab_file` and `merge_file` replace the paths of a tokenizer that has moved.

    Raises CheckpointError for a missing, damaged or foreign checkpoint, DataError for a tokenizer that is missing or not the model's.
    """
    path = resolve_checkpoint(folder)
    meta = read_meta(path)
    meta.refuse_newer_keys(path)
    try:
        run = RunConfig.model_validate(meta.config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: the configuration inside, of MegaMesh {meta.written_by}, says {key}={first['input']!r}, which does not fit MegaMesh "
            f"{__version__} ({first['msg']}); update MegaMesh, or read it with the version that wrote it"
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
        problem = error.problem if isinstance(error, TokenizerFileError) else str(error)
        raise DataError(f"{problem}; where the tokenizer is elsewhere now, name it with --vocab-file") from error
    if tokenizer.vocab_size > vocab_size or (run.model.vocab_size or tokenizer.vocab_size) != vocab_size:
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
    tp: TensorParallel = SINGLE,
) -> tuple[Transformer, RunConfig, Tokenizer]:
    """The model of a checkpoint, its run's configuration and its tokenizer. Raises what `open_checkpoint` and `load_model` do."""
    opened = open_checkpoint(folder, vocab_file=vocab_file, merge_file=merge_file)
    return load_model(opened, device, dtype, tp), opened.run, opened.tokenizer


@torch.no_grad()
def load_model(
    opened: OpenCheckpoint,
    device: torch.device | str,
    dtype: torch.dtype,
    tp: TensorParallel = SINGLE,
    holds: Callable[[str], bool] | None = None,
) -> Transformer:
    """The model, or this rank's part of it, with its weights and in evaluation mode. A collective over the tensor axis.

    Of a model that is cut over pipeline ranks, `holds` says what this one has (`Transformer.keep_only`), and all ranks must call it.
    Beside the model exists one stored piece of one tensor at a time, at most a whole one. Raises ConfigError where the ranks cannot
    divide the model, and CheckpointError, on all of them, for damaged files.
    """
    config, recursion, num_rows = opened.run.model, opened.run.recursion, opened.vocab_size
    padded = divided_rows(config, num_rows, tp.size)
    model = empty_model(
        config, recursion, num_rows, device=device, dtype=dtype, padded_vocab_size=padded, tp=tp, holds=holds
    )
    places = model.shards()
    parts = [(places[name], parameter.zero_()) for name, parameter in model.named_parameters()]  # padding stays zero
    together = tp.group if holds is None else dist.group.WORLD
    on_every_rank(lambda: read_parts(opened.path, parts), together)
    log.info("loaded %s (step %d)%s", opened.path, opened.step, f" on {together.size()} processes" if together else "")
    return model.eval()


def divided_rows(model: ModelConfig, vocab_size: int, size: int) -> int:
    """The least rows of an embedding that `size` ranks divide evenly. ConfigError where they cannot divide the model."""
    parts = divided_parts(model)
    fitting = dividing_sizes(parts.values(), vocab_size, multiple=1)
    if size in fitting:
        return -(-vocab_size // size) * size
    uneven = [f"{name}={count}" for name, count in parts.items() if count % size]
    reason = ", ".join(uneven) or f"the vocabulary of {vocab_size} is too small"
    raise ConfigError(f"{size} processes cannot divide this model ({reason}); start {either(fitting)} instead")
