"""A transformers folder (GPTNeoX, Llama, or an export of ours) as our configuration and our parameters.

    config.json ──▶ ImportedConfig ──names table──┐
    weight files ──headers──▶ names, shapes ──────┴─▶ all there, nothing left over ──▶ Pretrained.read(our name) ──▶ fp32

Before any tensor is read, every one that the configuration asks for must be there in its shape, and no other may be, apart from buffers
that older versions of transformers saved and from a second copy of a tied head. fp32, fp16 and bf16 values are kept exactly.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megamesh.errors import CheckpointError, ConfigError
from megamesh.hf.importing.imported_config import ImportedConfig, from_hf_config
from megamesh.hf.names import IN_MEMORY_NAMES, Architecture, Entry, import_tensors, names_table
from megamesh.hf.tensor_files import PretrainedWeights
from megamesh.model.counts import parameter_shapes

CONFIG_FILE = "config.json"
EXACT_TYPES = ("float32", "float16", "bfloat16")
BUFFERS: dict[Architecture, str] = {
    "gpt_neox": r"gpt_neox\.(layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq)",
    "llama": r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    "megamesh": r"(?!)",
}
"""Masks and frequencies that transformers computes today; the pattern of megamesh matches nothing."""
TIED: dict[Architecture, tuple[str, str]] = {
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "megamesh": ("model.embed_in.weight", "lm_head.weight"),
}
"""Embedding and head, on disk: one tensor where they are tied."""


def read_pretrained_config(folder: str | Path) -> ImportedConfig:
    """The configuration of a transformers folder. CheckpointError where it is missing, ConfigError where ours cannot compute it."""
    if not Path(folder).is_dir():
        raise CheckpointError(
            f"{folder} is not a folder here; download the model first: hf download NAME --local-dir FOLDER"
        )
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); name a folder that save_pretrained wrote") from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} is damaged: it is not an object of keys; name a folder that save_pretrained wrote"
        )
    try:
        return from_hf_config(config)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error


def read_pretrained_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Our parameters of a transformers folder, in fp32, tensor by tensor. Raises what `open_pretrained` does."""
    pretrained = open_pretrained(folder)
    for name in pretrained.shapes:
        yield name, pretrained.read(name)


@dataclass(frozen=True)
class Pretrained:
    """A transformers folder whose files fit its configuration. `shapes`: our parameters and their shapes, in the model's order."""

    folder: Path
    config: ImportedConfig
    shapes: dict[str, tuple[int, ...]]
    table: dict[str, Entry]
    weights: PretrainedWeights
    names: dict[str, str]
    """Their tensors: the name in the table → the name in the files."""

    def read(self, name: str) -> Tensor:
        """One parameter of ours, fp32. At most twice its size is in memory meanwhile."""
        ((_, tensor),) = import_tensors(
            {name: self.table[name]}, lambda theirs: self.weights.read(self.names[theirs]).float()
        )
        return tensor


def open_pretrained(folder: str | Path) -> Pretrained:
    """Read what the folder's headers say and check it; no tensor is read, except for a tied head that is stored twice.

    Raises CheckpointError for missing, damaged or surplus files and tensors, ConfigError for a model that ours cannot compute.
    """
    folder = Path(folder)
    config = read_pretrained_config(folder)
    shapes = parameter_shapes(config.model, config.recursion, config.vocab_size)
    table = names_table(config.architecture, config.model, config.recursion)
    weights = PretrainedWeights(folder)
    names = _names_in_files(folder, config, table, weights)
    for name, shape in shapes.items():
        _check_tensors(table[name], shape, names, weights)
    return Pretrained(folder, config, shapes, table, weights, names)


def _names_in_files(
    folder: Path, config: ImportedConfig, table: dict[str, Entry], weights: PretrainedWeights
) -> dict[str, str]:
    """Where each tensor of the table is; CheckpointError for those that are missing or left over."""
    tied = not config.model.no_weight_tying
    names: dict[str, str] = {}
    for theirs in (theirs for entry in table.values() for theirs in entry.theirs):
        others = [theirs, *_spellings(theirs)]
        if tied and theirs == TIED[config.architecture][0]:
            others += _head_names(config.architecture)
        names[theirs] = next((other for other in others if other in weights), theirs)
    missing = [name for name in names.values() if name not in weights]
    surplus = sorted(
        name
        for name in weights.stored.keys() - set(names.values())
        if not re.fullmatch(BUFFERS[config.architecture], name)
        and not (tied and _is_second_copy(name, names, config, weights))
    )
    for kind, found in (("lacks", missing), ("also holds", surplus)):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise CheckpointError(
                f"{folder} {kind} {found[0]}{more}: its weights are not those of the model that its {CONFIG_FILE} describes"
            )
    return names


def _spellings(theirs: str) -> list[str]:
    return [IN_MEMORY_NAMES[theirs]] if theirs in IN_MEMORY_NAMES else []


def _head_names(architecture: Architecture) -> list[str]:
    head = TIED[architecture][1]
    return [head, *_spellings(head)]


def _is_second_copy(name: str, names: dict[str, str], config: ImportedConfig, weights: PretrainedWeights) -> bool:
    """Whether a tensor is the head of a tied model, stored beside the embedding that it is. CheckpointError where the two differ."""
    embedding = names[TIED[config.architecture][0]]
    if name not in _head_names(config.architecture) or embedding not in weights:
        return False
    if not torch.equal(weights.read(name), weights.read(embedding)):
        raise CheckpointError(
            f"{weights.stored[name].file}: {name} is not {embedding}, although {CONFIG_FILE} says tie_word_embeddings=true; "
            "set it to false there if the head is a weight of its own"
        )
    return True


def _check_tensors(entry: Entry, shape: tuple[int, ...], names: dict[str, str], weights: PretrainedWeights) -> None:
    """The stored parts of one parameter have the shapes that the configuration asks for, and types that fp32 holds exactly."""
    parts = entry.transform.split(torch.empty(shape, device="meta"))
    for theirs, part in zip(entry.theirs, parts, strict=True):
        name = names[theirs]
        stored = weights.stored[name]
        if stored.shape != tuple(part.shape):
            raise CheckpointError(
                f"{stored.file}: {name} has shape {stored.shape}, {CONFIG_FILE} asks for {tuple(part.shape)}; "
                "the two are not of the same model"
            )
        if stored.dtype not in EXACT_TYPES:
            raise CheckpointError(
                f"{stored.file}: {name} is of type {stored.dtype}; only {', '.join(EXACT_TYPES)} are read"
            )
