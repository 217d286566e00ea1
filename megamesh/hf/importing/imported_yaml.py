"""The YAML file of an imported model: what it is, where its tokenizer and weights are, and how to go on with it.

    ImportedConfig + tokenizer ──▶ YAML text ──load_text, as for training──▶ LoadedConfig: what the checkpoint keeps

So what is written is known to load, and a run that reads the file has the architecture that the checkpoint says it has.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megamesh.config.keys import ModelConfig, RecursionConfig, Section, TokenizerConfig
from megamesh.config.load import LoadedConfig, load_text
from megamesh.config.schemes import scheme_class
from megamesh.config.yaml_files import yaml_text
from megamesh.errors import ConfigError
from megamesh.hf.exporting.configs import CLASSES
from megamesh.hf.importing.imported_config import ImportedConfig

YAML_NAME = "imported.yml"
_HEADER = """\
# {class_name} of {source}, {num_parameters:,} parameters, as tools/convert_from_hf.py imported it.
#
# Train on from it, on any layout, with a second file that says the rest: data, batch size, length, optimizer, precision, `save`.
#     python tools/train.py {path} data.yml
# The run starts at step 0 with these weights; the same command again continues from the last checkpoint in `save`.
# Samples are max_position_embeddings tokens long, unless data.yml says seq_length{trained}.
"""
_LEFT_TO_THE_RUN = {"seq_length", "attention_config", "mlp_multiple_of", "make_vocab_size_divisible_by"}
_INITIAL = {"init_method", "output_layer_init_method"}  # of weights that are not drawn


@dataclass(frozen=True)
class Origin:
    """What the file says of where it comes from and where it goes."""

    source: Path
    run_folder: Path  # absolute
    num_parameters: int

    @property
    def yaml_path(self) -> Path:
        """Where the file will be: inside the checkpoint."""
        return self.run_folder / "global_step0" / "configs" / YAML_NAME


def imported_config(imported: ImportedConfig, tokenizer: TokenizerConfig, origin: Origin) -> LoadedConfig:
    """The run's configuration and its YAML text. ConfigError for a model that breaks a rule of ours."""
    text = _text(imported, tokenizer, origin)
    try:
        loaded = load_text(text, YAML_NAME, for_training=False)
    except ConfigError as error:
        raise ConfigError([f"{origin.source}: {problem}" for problem in error.problems]) from error
    described = imported.model.model_copy(
        update={"seq_length": None}
    )  # that of the next run is for its own file to say
    assert loaded.run.model == described, "the file says what config.json says"
    assert loaded.run.recursion == imported.recursion, "the file says what config.json says"
    return replace(loaded, run=loaded.run.model_copy(update={"model": imported.model}))


def _text(imported: ImportedConfig, tokenizer: TokenizerConfig, origin: Origin) -> str:
    length = imported.model.seq_length
    header = _HEADER.format(
        class_name=CLASSES[imported.architecture],
        source=origin.source,
        num_parameters=origin.num_parameters,
        path=shlex.quote(str(origin.yaml_path)),
        trained="" if length is None else f"; it was trained with seq_length: {length}",
    )
    model = _keys(imported.model, _LEFT_TO_THE_RUN | _INITIAL | _without_effect(imported.model))
    parts = [_lines(model)]
    if imported.recursion.recursion is not None:
        parts.append(_lines(_keys(imported.recursion, _without_scheme(imported.recursion))))
    parts.append(_lines(_keys(tokenizer, set())))
    parts.append("# the weights that a new run starts from\n" + _lines({"load": str(origin.run_folder)}))
    return "\n".join([header, *parts])


def _keys(section: Section, left_out: set[str]) -> dict[str, Any]:
    return {key: value for key, value in section if key not in left_out and value is not None}


def _lines(keys: dict[str, Any]) -> str:
    return "".join(f"{key}: {yaml_text(value)}\n" for key, value in keys.items())


def _without_effect(model: ModelConfig) -> set[str]:
    """Keys at their default of which this model computes nothing."""
    unused = {"rms_norm_epsilon"} if model.norm == "layernorm" else {"layernorm_epsilon", "use_bias_in_norms"}
    if model.pos_emb != "rotary":
        unused |= {"rotary_pct", "rotary_emb_base"}
    return {key for key in unused if getattr(model, key) == ModelConfig.model_fields[key].default}


def _without_scheme(recursion: RecursionConfig) -> set[str]:
    """Keys that the scheme does not read."""
    read = {"recursion", "recursion_scheme", "recursion_scheme_params", *scheme_class(recursion.recursion_scheme).keys}
    return RecursionConfig.model_fields.keys() - read
