"""A checkpoint folder of a small model, written without an engine."""

import json
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from megamesh.checkpoint.files import Checksums, ChunkWriter, file_checksum
from megamesh.checkpoint.meta import CheckpointMeta, RunState
from megamesh.config.keys import ModelConfig, RecursionConfig, TokenizerConfig
from megamesh.config.sections import SECTIONS, RunConfig
from megamesh.model.transformer import Transformer


def run_config(model: ModelConfig, recursion: RecursionConfig, vocab_file: Path) -> RunConfig:
    tokenizer = TokenizerConfig(tokenizer_type="CharLevelTokenizer", vocab_file=str(vocab_file))
    given = {"model": model, "recursion": recursion, "tokenizer": tokenizer}
    return RunConfig(
        **{name: given.get(name) or section() for name, section in SECTIONS.items() if name in given or name != "model"}
    )


def write_checkpoint(
    save: Path, module: Transformer, recursion: RecursionConfig, vocab_file: Path, step: int = 10
) -> Path:
    """save/global_step{step} with the module's weights, named by save/latest."""
    folder = save / f"global_step{step}"
    folder.mkdir(parents=True)
    config = run_config(module.config, recursion, vocab_file).model_dump(mode="json")
    meta = CheckpointMeta(RunState(step, step * 8, 1234), step, config, {}, {})
    (folder / "meta.json").write_text(meta.to_json())
    weights = {f"fp32.{name}": parameter.detach() for name, parameter in module.named_parameters()}
    save_tensors(weights, storage_writer=ChunkWriter(folder), no_dist=True)
    (save / "latest").write_text(f"{folder.name}\n")
    return folder


def rewrite_meta(path: Path, values: Any) -> None:
    """Replace a checkpoint's meta.json, as if it had been saved so."""
    (path / "meta.json").write_text(json.dumps(values))
    checksums = Checksums.read(path)
    checksums.files["meta.json"] = file_checksum(path, "meta.json")
    checksums.write(path)
