"""Our checkpoint as a transformers folder, proven before it appears under its name.

    checkpoint, tensor by tensor ──▶ staging folder: weights, config, remote code, tokenizer, card
                                        │  every tensor read back: the same bits?
                                        │  logits of the whole model, or of a sample of its layers: the same as ours?
                                        └─▶ output              (anything goes wrong: removed)

Contract: the tensors are those of the checkpoint bit for bit in float32 (rounded once for the other types; √D is folded into the embedding
of a gpt_neox or llama export). The folder does not depend on the layout of the run that wrote the checkpoint. `vocab_size` in config.json
is the model's true vocabulary: checkpoints hold no padding. Where the tokenizer knows fewer ids, generation_config.json suppresses the
others, which no text encodes to. Both models are compared in fp32, ours with the export's rounding. While weights are written, one
parameter is in memory; bound.py says what that and the comparison come to.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import GenerationConfig

from megamesh.errors import CheckpointError
from megamesh.hf.exporting.bound import Check, choose_check, memory_bound
from megamesh.hf.exporting.card import model_card
from megamesh.hf.exporting.compare import Agreement, Written, check_layers, check_logits
from megamesh.hf.exporting.configs import CLASSES, SpecialTokens, to_hf_config
from megamesh.hf.exporting.remote_code import copy_remote_code, recursion_code
from megamesh.hf.exporting.source import ModelSource
from megamesh.hf.exporting.weights import Progress, ShardPlan, ShardWriter, check_written, no_progress, plan_shards
from megamesh.hf.memory import peak_bytes
from megamesh.hf.names import Architecture, exact_architecture, export_tensors, names_table, their_shapes
from megamesh.hf.staging import refuse_existing, staging
from megamesh.tokenizer import Tokenizer

log = logging.getLogger(__name__)
DType = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CHECKS = {"logits": check_logits, "layers": check_layers}


@dataclass(frozen=True)
class ExportReport:
    """What was written, how close its logits come to ours, and the memory it took: the stated bound, and this process's peak before and
    after."""

    output: Path
    architecture: Architecture
    weight_bytes: int
    agreement: Agreement
    bound_bytes: int
    peak_before_bytes: int
    peak_bytes: int

    @property
    def class_name(self) -> str:
        return CLASSES[self.architecture]


def export_model(
    source: ModelSource,
    tokenizer: Tokenizer,
    output: str | Path,
    *,
    dtype: DType = "float32",
    max_shard_bytes: int = 5 * 10**9,
    check: Check | Literal["auto"] = "auto",
    progress: Progress = no_progress,
) -> ExportReport:
    """Write `source` as a transformers folder. CheckpointError, and no folder, where anything fails or the logits differ.

    `check` says whether the logits of the whole model are compared, or those of a sample of its layers; `auto`: see `choose_check`.
    """
    output = Path(os.path.abspath(output))
    refuse_existing(output)
    if tokenizer.vocab_size > source.vocab_size:
        raise CheckpointError(
            f"{tokenizer.name} has {tokenizer.vocab_size} token ids, the checkpoint's embedding {source.vocab_size} rows; "
            "name the tokenizer it was trained with"
        )
    recursion_code(source.recursion)
    peak_before, torch_dtype = peak_bytes(), DTYPES[dtype]
    architecture = exact_architecture(source.model, source.recursion)
    table = names_table(architecture, source.model, source.recursion)
    plan = plan_shards(their_shapes(table, source.shapes), torch_dtype, max_shard_bytes)
    chosen = choose_check(source, table, torch_dtype) if check == "auto" else check
    bound = memory_bound(source, table, torch_dtype, chosen)
    log.info("at most %.0f MB of tensors are in memory at a time", bound / 1e6)
    try:
        with staging(output) as folder:
            _write_small_files(source, tokenizer, folder, architecture, dtype)
            log.info("writing weights of %s as %s (%s)", source.description, CLASSES[architecture], dtype)
            written = Written(folder, architecture, table, torch_dtype)
            _write_weights(source, written, plan, progress)
            log.info("comparing logits in fp32 (%s)", chosen)
            agreement = CHECKS[chosen](source, written)
    except OSError as error:
        raise CheckpointError(f"{output}: the export could not be written ({error}); nothing was left there") from error
    return ExportReport(output, architecture, plan.total_bytes, agreement, bound, peak_before, peak_bytes())


def _write_weights(source: ModelSource, written: Written, plan: ShardPlan, progress: Progress) -> None:
    """Fill the files of the plan, and read them back. CheckpointError where they are too large for the disk, or not what was written."""
    free = shutil.disk_usage(written.folder).free
    if plan.total_bytes > free:
        raise CheckpointError(
            f"{written.folder.parent.parent}: the weights are {plan.total_bytes / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there; "
            "free space, or write elsewhere"
        )
    writer = ShardWriter(written.folder, plan)
    for name, tensor in export_tensors(written.table, source.checked_weights(), written.dtype):
        writer.write(name, tensor)
        progress("writing", tensor.nbytes, plan.total_bytes)
        del tensor  # before the stream makes the next one
    writer.finish()
    check_written(written.folder, plan, writer.digests, progress)


def _write_small_files(
    source: ModelSource, tokenizer: Tokenizer, folder: Path, architecture: Architecture, dtype: DType
) -> None:
    """config.json, generation_config.json, the tokenizer's files, the card and, for our own architecture, the code."""
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
        copy_remote_code(source.recursion, folder)
    tokenizer.save_pretrained(folder)
    _complete_tokenizer_config(folder / "tokenizer_config.json", source.model.longest_sequence)
    card = model_card(
        folder.name,
        architecture,
        source.model,
        source.recursion,
        source.vocab_size,
        tokenizer.vocab_size,
        dtype,
        source.facts,
        tokenizer_code=any(folder.glob("tokenization_*.py")),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _complete_tokenizer_config(path: Path, max_length: int) -> None:
    """Say what batched generation needs: padding on the left, a token to pad with, the longest sequence, the model's inputs."""
    config = json.loads(path.read_text(encoding="utf-8"))
    inputs = ["input_ids", "attention_mask"]
    config |= {"padding_side": "left", "model_max_length": max_length, "model_input_names": inputs}
    config.setdefault("pad_token", config["eos_token"])
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
