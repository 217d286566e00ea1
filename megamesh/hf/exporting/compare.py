"""The same logits from our model and from a transformers folder, in fp32. Here the folder is an export; import_check.py uses parts.

    checkpoint ──▶ our Transformer, rounded as the export is ──▶ logits ─┐
    folder ──▶ transformers, as a user would load it ──────────▶ logits ─┴▶ equal?        check_logits: the whole model
    some layers of both, some rows of the vocabulary ──────────────────────▶ the same     check_layers: what is too large for that

The two models are made one after the other. `check_layers` also builds the whole of theirs without memory: every tensor of the folder
must be one of its parameters, and the reverse. What it cannot see is a layer outside the sample under the name of another.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.errors import CheckpointError
from megamesh.hf.exporting.configs import SpecialTokens, to_hf_config
from megamesh.hf.exporting.sample import Sample, sample_layers
from megamesh.hf.exporting.source import ModelSource
from megamesh.hf.exporting.weights import mapped_tensor
from megamesh.hf.names import IN_MEMORY_NAMES, Architecture, Entry, as_exported
from megamesh.hf.tensor_files import PretrainedWeights
from megamesh.model.build import empty_model
from megamesh.model.counts import Shape
from megamesh.model.transformer import Transformer

RELATIVE_TOLERANCE = 1e-4
COMPARED_SEQUENCES, COMPARED_LENGTH = 2, 64
THEIR_STACKS = {"layers": "prelude"}
_LAYER = re.compile(r"(?P<before>.*\.)(?P<stack>layers|prelude|core|coda)\.(?P<index>\d+)\.(?P<after>.*)")
LOCAL: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}


@dataclass(frozen=True)
class Agreement:
    """The largest difference of two logits, the largest logit, and of what."""

    max_difference: float
    max_logit: float
    of: str


@dataclass(frozen=True)
class Written:
    """A finished folder, and how it was made: one entry of the table for each parameter of ours, rounded to `dtype`."""

    folder: Path
    architecture: Architecture
    table: Mapping[str, Entry]
    dtype: torch.dtype


def check_logits(source: ModelSource, written: Written) -> Agreement:
    """Compare the whole models. CheckpointError where they differ."""
    tokens_BS = tokens_to_compare(source.model, source.vocab_size)
    ours_BSV = _our_logits(
        empty_model(source.model, source.recursion, source.vocab_size),
        source.weights(),
        lambda name, tensor: (name, as_exported(written.table[name], tensor, written.dtype)),
        tokens_BS,
    )
    theirs, info = AutoModelForCausalLM.from_pretrained(
        written.folder, dtype=torch.float32, output_loading_info=True, **LOCAL
    )
    return judge(source.description, ours_BSV, their_logits(written.folder, theirs, info, tokens_BS), "the whole model")


def check_layers(source: ModelSource, written: Written) -> Agreement:
    """Compare a shallow model in both worlds, each from its own files. CheckpointError where they differ."""
    sample = sample_layers(source.model, source.recursion, source.vocab_size)
    tokens_BS = tokens_to_compare(sample.model, len(sample.rows))

    def place(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return sample.names[name], as_exported(written.table[name], sample.cut(name, tensor), written.dtype)

    module = empty_model(sample.model, sample.recursion, len(sample.rows))
    ours_BSV = _our_logits(module, source.weights(sample.names), place, tokens_BS)
    del module
    theirs, info = _their_sample(source, written, sample)
    return judge(
        source.description, ours_BSV, their_logits(written.folder, theirs, info, tokens_BS), f"a sample ({sample})"
    )


def tokens_to_compare(model: ModelConfig, vocab_size: int) -> Tensor:
    """Token ids [COMPARED_SEQUENCES, S], the same ones for the same model."""
    length = min(COMPARED_LENGTH, model.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (COMPARED_SEQUENCES, length), generator=generator)


@torch.no_grad()
def _our_logits(
    module: Transformer,
    weights: Iterator[tuple[str, Tensor]],
    place: Callable[[str, Tensor], tuple[str, Tensor]],
    tokens_BS: Tensor,
) -> Tensor:
    """`place` gives the name in this module, and the values, of a parameter of the checkpoint."""
    parameters = dict(module.named_parameters())
    for name, tensor in weights:
        target, values = place(name, tensor)
        parameters[target].copy_(values)
        del tensor, values  # before the source makes the next one
    return module.eval().logits(tokens_BS)


@torch.no_grad()
def their_logits(folder: Path, module: Any, info: Mapping[str, Any], tokens_BS: Tensor) -> Tensor:
    """Of a model of transformers, after a look at what it says of loading it. CheckpointError where it did not take every tensor."""
    problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys and kind != "error_msgs"}
    if problems:
        raise CheckpointError(f"transformers reads {folder.name} only in part: {problems}; nothing was kept")
    logits_BSV: Tensor = module.eval()(tokens_BS, use_cache=False).logits
    return logits_BSV


def _their_sample(source: ModelSource, written: Written, sample: Sample) -> tuple[Any, Mapping[str, Any]]:
    """Their model of the sampled layers, of the folder's code, configuration and tensors, and what they say of loading it.

    Which tensor belongs where is told by the names of their parameters: the table has no say in it, and would be found out.
    """
    stored = {
        IN_MEMORY_NAMES.get(name, name): (name, tensor)
        for name, tensor in PretrainedWeights(written.folder).stored.items()
    }
    config = AutoConfig.from_pretrained(written.folder, **LOCAL)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    expected = dict(whole.named_parameters())
    _compare_shapes(expected, {name: tensor.shape for name, (_, tensor) in stored.items()})
    by_row = {id(whole.get_input_embeddings().weight), id(whole.get_output_embeddings().weight)}
    state = {}
    for deep, parameter in expected.items():
        short, (name, place) = _short_name(deep, sample), stored[deep]
        if short is not None:
            tensor = mapped_tensor(place.file, name)
            state[short] = tensor[sample.rows] if id(parameter) in by_row else tensor
    keys = json.loads((written.folder / "config.json").read_text(encoding="utf-8"))
    module, info = type(whole).from_pretrained(
        None,
        config=type(config)(**(keys | sampled_keys(written.architecture, source, sample))),
        state_dict=state,
        dtype=torch.float32,
        output_loading_info=True,
    )
    return module, info


def _short_name(name: str, sample: Sample) -> str | None:
    """The name in the shallow model of a parameter of their deep one; None where it is of a layer outside the sample."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    stack, index = THEIR_STACKS.get(match["stack"], match["stack"]), int(match["index"])
    if index not in sample.layers[stack]:
        return None
    return f"{match['before']}{match['stack']}.{sample.layers[stack].index(index)}.{match['after']}"


def sampled_keys(architecture: Architecture, source: ModelSource, sample: Sample) -> dict[str, Any]:
    """What a config.json says otherwise of the sample than of the whole model; special tokens may be beyond the sampled rows."""

    def keys(model: ModelConfig, recursion: RecursionConfig, vocab_size: int) -> dict[str, Any]:
        config = to_hf_config(architecture, model, recursion, vocab_size, SpecialTokens(), "float32")
        values: dict[str, Any] = config.to_dict()
        return values

    whole = keys(source.model, source.recursion, source.vocab_size)
    part = keys(sample.model, sample.recursion, len(sample.rows))
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return special | {key: value for key, value in part.items() if whole.get(key) != value}


def _compare_shapes(parameters: Mapping[str, Tensor], stored: Mapping[str, Shape]) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    wrong = sorted(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name))
    if wrong:
        raise CheckpointError(f"transformers reads the export only in part: {', '.join(wrong)}; nothing was kept")


def judge(of_what: str, ours_BSV: Tensor, theirs_BSV: Tensor, part: str) -> Agreement:
    """How close the logits of a model are, of which `part` says how much was compared. CheckpointError where they differ."""
    difference, largest = (ours_BSV - theirs_BSV).abs().max().item(), ours_BSV.abs().max().item()
    if not math.isfinite(largest):
        raise CheckpointError(f"{of_what}: its logits are not finite; use an earlier checkpoint")
    if not difference <= RELATIVE_TOLERANCE * largest:
        raise CheckpointError(
            f"{of_what}: our logits and those of transformers differ by {difference:.3g} (largest logit {largest:.3g}, {part}); "
            "nothing was kept"
        )
    return Agreement(difference, largest, part)
