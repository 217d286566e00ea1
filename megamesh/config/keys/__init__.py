"""Every key, its default and what it means: one frozen section per subject.

A key belongs to exactly one section and is spelled as in GPT-NeoX where NeoX has it. What follows from other values is a property.
"""

from megamesh.config.keys.batch import BatchConfig
from megamesh.config.keys.checkpoint import CheckpointConfig
from megamesh.config.keys.data import DataConfig
from megamesh.config.keys.log import LogConfig
from megamesh.config.keys.model import ModelConfig
from megamesh.config.keys.optimizer import OptimizerConfig
from megamesh.config.keys.parallel import ParallelConfig
from megamesh.config.keys.precision import PrecisionConfig
from megamesh.config.keys.recursion import RecursionConfig
from megamesh.config.keys.section import Section
from megamesh.config.keys.tokenizer import TokenizerConfig
from megamesh.config.keys.training import TrainingConfig

__all__ = [
    "BatchConfig",
    "CheckpointConfig",
    "DataConfig",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "RecursionConfig",
    "Section",
    "TokenizerConfig",
    "TrainingConfig",
]
