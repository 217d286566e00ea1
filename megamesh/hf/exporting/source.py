"""What an export is made from: a configuration, weights as a stream, and what is known of their training."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from megamesh.checkpoint.inference import OpenCheckpoint
from megamesh.checkpoint.reader import read_meta
from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.errors import CheckpointError
from megamesh.hf.exporting.facts import training_facts
from megamesh.model.counts import Shape, parameter_shapes


class WeightStream(Protocol):
    """(name, fp32 tensor) of all parameters, or of `names`, one at a time; each call starts a new pass."""

    def __call__(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]: ...


@dataclass(frozen=True)
class ModelSource:
    """A trained model to export."""

    model: ModelConfig
    recursion: RecursionConfig
    vocab_size: int  # rows of the embedding: the true vocabulary
    weights: WeightStream
    description: str = "model"
    facts: Mapping[str, str] = field(default_factory=dict)  # of its training, for the model card

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of every parameter that the configuration asks for, in the model's order."""
        return parameter_shapes(self.model, self.recursion, self.vocab_size)

    def checked_weights(self) -> Iterator[tuple[str, Tensor]]:
        """One pass over the weights. CheckpointError for a parameter whose shape is not the model's."""
        shapes = self.shapes
        for name, tensor in self.weights():
            expected, found = shapes.get(name), tuple(tensor.shape)
            if expected not in (None, found):
                raise CheckpointError(
                    f"{self.description}: {name} has shape {found}, its configuration asks for {expected}"
                )
            yield name, tensor
            del tensor  # before the stream makes the next one


def checkpoint_source(opened: OpenCheckpoint) -> ModelSource:
    """The model of a checkpoint of any layout. Raises CheckpointError."""
    meta, run = read_meta(opened.path), opened.run
    facts = training_facts(meta.state, meta.versions, run)
    return ModelSource(run.model, run.recursion, opened.vocab_size, opened.weights, str(opened.path), facts)
