"""The whole configuration of a run.

    YAML files ──load.py──▶ flat {key: value} ──▶ one frozen section per subject (keys/) ──checks/──▶ RunConfig

Code below `training/` receives the section that it needs, never the whole `RunConfig`.
"""

from megamesh.config.keys import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    RecursionConfig,
    Section,
    TokenizerConfig,
    TrainingConfig,
)


class RunConfig(Section):
    """One run: everything that the YAML files said, validated."""

    parallel: ParallelConfig
    model: ModelConfig
    recursion: RecursionConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    precision: PrecisionConfig
    training: TrainingConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    checkpoint: CheckpointConfig
    log: LogConfig


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation for name, field in RunConfig.model_fields.items() if isinstance(field.annotation, type)
}
