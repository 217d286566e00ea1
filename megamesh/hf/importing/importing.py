"""A transformers folder as a checkpoint of weights alone, which a run of any layout may start from.

    config.json ──▶ our configuration, as YAML ─┐
    tokenizer   ──copied──▶ tokenizer/ ─────────┼─▶ staging: run folder with global_step0 and latest ──same logits?──▶ output
    weights     ──one parameter at a time───────┘                        └── anything goes wrong: removed

Contract: every weight is kept bit for bit (in fp32, which holds fp16 and bf16 exactly); a tensor, key or token id that ours has no place
for is an error. While weights are written, tensors take at most twice the largest parameter in fp32, or once and two chunks of a
checkpoint, and the allocator a few dozen MB more; the comparison of logits takes what bound.py says.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from megamesh.checkpoint.boxes import MAX_CHUNK_BYTES
from megamesh.checkpoint.inference import open_checkpoint
from megamesh.checkpoint.weights import save_weights
from megamesh.config.keys import TokenizerConfig
from megamesh.errors import CheckpointError
from megamesh.hf.exporting.compare import Agreement
from megamesh.hf.exporting.configs import CLASSES
from megamesh.hf.importing.import_check import Check, check_import
from megamesh.hf.importing.imported_tokenizer import (
    TokenizerChoice,
    copy_tokenizer,
    find_tokenizer,
    moved,
    open_tokenizer,
)
from megamesh.hf.importing.imported_yaml import Origin, imported_config
from megamesh.hf.importing.pretrained import open_pretrained, read_pretrained_config
from megamesh.hf.names import Architecture
from megamesh.hf.staging import refuse_existing, staging
from megamesh.model.counts import Shape, count_parameters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportReport:
    """What was written, and how close our logits are to theirs; `agreement` is None where nothing was compared."""

    output: Path
    yaml_path: Path
    architecture: Architecture
    num_parameters: int
    tokenizer: TokenizerConfig
    agreement: Agreement | None

    @property
    def class_name(self) -> str:
        return CLASSES[self.architecture]


def writing_bound(shapes: Mapping[str, Shape]) -> int:
    """Most bytes of tensors at a time: a parameter's parts and the whole, or the whole and a chunk of it on its way to the disk."""
    largest = max(math.prod(shape) for shape in shapes.values()) * torch.float32.itemsize
    return largest + max(largest, 2 * min(largest, MAX_CHUNK_BYTES))


def import_model(
    folder: str | Path, output: str | Path, *, tokenizer: TokenizerChoice | None = None, check: Check = "auto"
) -> ImportReport:
    """Write `output`, a run's folder with checkpoint global_step0 and the tokenizer. It appears whole, or not at all.

    Raises ConfigError for a model that ours cannot compute, CheckpointError for a folder that is missing, damaged or not of its own
    configuration, or whose logits differ from ours, DataError for a tokenizer.
    """
    folder, output = Path(os.path.abspath(folder)), Path(os.path.abspath(output))
    refuse_existing(output)
    config = read_pretrained_config(folder)
    found = find_tokenizer(folder, tokenizer or TokenizerChoice())
    open_tokenizer(found, config.vocab_size)
    num_parameters = count_parameters(config.model, config.recursion, config.vocab_size).total
    origin, final = Origin(folder, output, num_parameters), moved(found, output)
    loaded = imported_config(config, final, origin)
    pretrained = open_pretrained(folder)
    try:
        with staging(output) as run_folder:
            copy_tokenizer(found, run_folder)
            log.info(
                "writing %s parameters of %s; at most %.0f MB of tensors are in memory meanwhile",
                f"{num_parameters:,}", CLASSES[config.architecture], writing_bound(pretrained.shapes) / 1e6,
            )  # fmt: skip
            save_weights(
                run_folder,
                pretrained.shapes,
                pretrained.read,
                config=loaded.run.model_dump(mode="json"),
                sources=loaded.sources,
                seed=loaded.run.training.seed,
            )
            here = moved(found, run_folder)
            opened = open_checkpoint(run_folder, vocab_file=here.vocab_file, merge_file=here.merge_file)
            with _reading(folder):
                agreement = check_import(pretrained, opened, check)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error}; nothing was kept") from error
    return ImportReport(output, origin.yaml_path, config.architecture, num_parameters, final, agreement)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Here nothing is written: an OSError is of what is read."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}; nothing was kept") from error
