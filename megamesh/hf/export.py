"""Our checkpoint as a transformers folder, proven before it appears under its name.

    checkpoint ──▶ staging folder: weights, config, remote code, tokenizer, card ──▶ same logits as ours? ──▶ output
                        └──────────────── anything goes wrong: removed ◀──────────────────┘

Contract: the tensors are those of the checkpoint bit for bit in float32 (rounded once for bfloat16; √D is folded into the embedding of a
gpt_neox or llama export). `vocab_size` in config.json is the model's true vocabulary: checkpoints hold no padding. Where the tokenizer
knows fewer ids, generation_config.json suppresses the others, which no text encodes to. Both models are compared in fp32, ours with the
export's rounding.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from megamesh.config.sections import ModelConfig, RecursionConfig
from megamesh.errors import CheckpointError
from megamesh.hf.card import model_card
from megamesh.hf.configs import CLASSES, SpecialTokens, to_hf_config
from megamesh.hf.names import Architecture, Entry, as_exported, exact_architecture, export_tensors, names_table
from megamesh.hf.weights import write_sharded
from megamesh.model.build import empty_model
from megamesh.model.transformer import Transformer
from megamesh.tokenizer import Tokenizer

log = logging.getLogger(__name__)
DType = Literal["float32", "bfloat16"]
DTYPES: dict[DType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REMOTE_CODE = tuple(f"{part}_megamesh.py" for part in ("configuration", "blocks", "recursion", "modeling"))
RELATIVE_TOLERANCE = 1e-4
COMPARED_SEQUENCES, COMPARED_LENGTH = 2, 64


@dataclass(frozen=True)
class ModelSource:
    """A trained model to export. `weights` starts a new pass over its (name, fp32 tensor) pairs each time it is called."""

    model: ModelConfig
    recursion: RecursionConfig
    vocab_size: int  # rows of the embedding: the true vocabulary
    weights: Callable[[], Iterator[tuple[str, Tensor]]]
    description: str = "model"

    def checked_weights(self) -> Iterator[tuple[str, Tensor]]:
        """One pass over the weights. CheckpointError for a parameter whose shape is not the model's."""
        shapes = dict(empty_model(self.model, self.recursion, self.vocab_size, device="meta").named_parameters())
        for name, tensor in self.weights():
            if name in shapes and shapes[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{self.description}: {name} has shape {tuple(tensor.shape)}, its configuration asks for {tuple(shapes[name].shape)}"
                )
            yield name, tensor


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how close its logits come to ours."""

    output: Path
    architecture: Architecture
    weight_bytes: int
    max_difference: float
    max_logit: float

    @property
    def class_name(self) -> str:
        return CLASSES[self.architecture]


def refuse_existing(output: Path) -> None:
    """CheckpointError where something stands under the name of the export."""
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"--output={output} exists; name a folder that does not, or remove it first")


def export_model(
    source: ModelSource,
    tokenizer: Tokenizer,
    output: str | Path,
    *,
    dtype: DType = "float32",
    max_shard_bytes: int = 5 * 10**9,
) -> ExportReport:
    """Write `source` as a transformers folder. CheckpointError, and no folder, where anything fails or the logits differ."""
    output = Path(os.path.abspath(output))
    refuse_existing(output)
    if tokenizer.vocab_size > source.vocab_size:
        raise CheckpointError(
            f"{tokenizer.name} has {tokenizer.vocab_size} token ids, the checkpoint's embedding {source.vocab_size} rows; "
            "name the tokenizer it was trained with"
        )
    # A folder of the final name inside another: transformers caches remote code under the last part of the path.
    staging = output.parent / f".{output.name}.partial-{os.getpid()}"
    folder = staging / output.name
    try:
        folder.mkdir(parents=True)
        report = _write_and_compare(source, tokenizer, folder, output, dtype, max_shard_bytes)
        refuse_existing(output)
        folder.rename(output)
    except OSError as error:
        raise CheckpointError(f"{output}: the export could not be written ({error}); nothing was left there") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _write_and_compare(
    source: ModelSource, tokenizer: Tokenizer, folder: Path, output: Path, dtype: DType, max_shard_bytes: int
) -> ExportReport:
    architecture = exact_architecture(source.model, source.recursion)
    table = names_table(architecture, source.model, source.recursion)
    _write_configuration(source, tokenizer, folder, architecture, dtype)
    (folder / "README.md").write_text(
        model_card(
            output.name, architecture, source.model, source.recursion, source.vocab_size, tokenizer.vocab_size, dtype
        ),
        encoding="utf-8",
    )
    log.info("writing weights of %s as %s (%s)", source.description, CLASSES[architecture], dtype)
    num_bytes = write_sharded(folder, export_tensors(table, source.checked_weights(), DTYPES[dtype]), max_shard_bytes)
    log.info("comparing logits in fp32")
    tokens_BS = _tokens_to_compare(source)
    ours_BSV = _our_logits(source, table, DTYPES[dtype], tokens_BS)
    theirs_BSV = _their_logits(folder, tokens_BS)
    difference, largest = (ours_BSV - theirs_BSV).abs().max().item(), ours_BSV.abs().max().item()
    if not math.isfinite(largest):
        raise CheckpointError(f"{source.description}: its logits are not finite; export an earlier checkpoint")
    if not difference <= RELATIVE_TOLERANCE * largest:
        raise CheckpointError(
            f"{source.description}: the export's logits differ from ours by {difference:.3g} (largest logit {largest:.3g}); "
            "nothing was kept"
        )
    return ExportReport(output, architecture, num_bytes, difference, largest)


def _write_configuration(
    source: ModelSource, tokenizer: Tokenizer, folder: Path, architecture: Architecture, dtype: DType
) -> None:
    """config.json, generation_config.json, the tokenizer's files and, for our own architecture, the code."""
    special = SpecialTokens(tokenizer.bos_id, tokenizer.eod_id, tokenizer.pad_id)
    to_hf_config(architecture, source.model, source.recursion, source.vocab_size, special, dtype).save_pretrained(
        folder
    )
    never_in_text = list(range(tokenizer.vocab_size, source.vocab_size))
    GenerationConfig(
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        pad_token_id=special.eos if special.pad is None else special.pad,
        suppress_tokens=never_in_text or None,
    ).save_pretrained(folder)
    if architecture == "megamesh":
        for file in REMOTE_CODE:
            shutil.copyfile(Path(__file__).with_name(file), folder / file)
    tokenizer.save_pretrained(folder)
    _complete_tokenizer_config(folder / "tokenizer_config.json", source.model.max_position_embeddings)


def _complete_tokenizer_config(path: Path, max_length: int) -> None:
    """Say what batched generation needs: padding on the left, a token to pad with, the longest sequence, the model's inputs."""
    config = json.loads(path.read_text(encoding="utf-8"))
    inputs = ["input_ids", "attention_mask"]
    config |= {"padding_side": "left", "model_max_length": max_length, "model_input_names": inputs}
    config.setdefault("pad_token", config["eos_token"])
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokens_to_compare(source: ModelSource) -> Tensor:
    length = min(COMPARED_LENGTH, source.model.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, source.vocab_size, (COMPARED_SEQUENCES, length), generator=generator)


@torch.no_grad()
def _our_logits(source: ModelSource, table: dict[str, Entry], dtype: torch.dtype, tokens_BS: Tensor) -> Tensor:
    """Logits of our model in fp32, its weights rounded as they are in the export."""
    module: Transformer = empty_model(source.model, source.recursion, source.vocab_size).eval()
    parameters = dict(module.named_parameters())
    for name, tensor in source.weights():
        parameters[name].copy_(as_exported(table[name], tensor, dtype))
    return module.logits(tokens_BS)


@torch.no_grad()
def _their_logits(folder: Path, tokens_BS: Tensor) -> Tensor:
    """Logits of the folder as a user would load it, in fp32."""
    module, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys and kind != "error_msgs"}
    if problems:
        raise CheckpointError(f"transformers reads the export only in part: {problems}; nothing was kept")
    logits_BSV: Tensor = module.eval()(tokens_BS, use_cache=False).logits
    return logits_BSV
