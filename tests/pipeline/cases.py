"""A model cut over the ring beside the same model whole, on the processes of tests/distributed.py."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megamesh.config.keys import ModelConfig, ParallelConfig, RecursionConfig, TrainingConfig
from megamesh.model.build import build_model
from megamesh.model.transformer import Transformer
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import SINGLE, TensorParallel
from megamesh.pipeline.order import Schedule
from megamesh.pipeline.partition import build_partition
from megamesh.pipeline.ring import Ring
from megamesh.pipeline.stages import Partition

VOCAB, SEQUENCE, BATCH, HIDDEN = 61, 6, 2, 16
INIT_STD = 0.2  # so that routers' gradients are not mere rounding
MORE_KEYS = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model, and how it is cut."""

    recursion: str | None = "2+3R2+1"
    scheme: str = "mesh"
    num_ranks: int = 2
    partition: str = "cost"
    num_micro_batches: int = 4
    num_passes: int | None = None
    schedule: Schedule = "interleaved_1f1b"
    tensor_parallel_size: int = 1
    sequence_parallel: bool = False
    model: MORE_KEYS = field(default_factory=dict)
    training: MORE_KEYS = field(default_factory=dict)
    recursion_keys: MORE_KEYS = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [
            self.recursion or f"plain×{self.num_passes}",
            self.scheme if self.recursion else "",
            f"P{self.num_ranks}",
        ]
        parts += [
            f"tp{self.tensor_parallel_size}{'s' if self.sequence_parallel else ''}",
            f"M{self.num_micro_batches}",
            self.partition,
        ]
        parts += [
            self.schedule,
            *map(str, (*self.model.values(), *self.training.values(), *self.recursion_keys.values())),
        ]
        return " ".join(filter(None, parts))

    @property
    def recursion_config(self) -> RecursionConfig:
        if self.recursion is None:
            return RecursionConfig()
        return RecursionConfig(recursion=self.recursion, recursion_scheme=self.scheme, **self.recursion_keys)

    @property
    def model_config(self) -> ModelConfig:
        layout = self.recursion_config.layout
        keys: dict[str, Any] = {
            "max_position_embeddings": SEQUENCE,
            "no_weight_tying": True,
            "init_method_std": INIT_STD,
            "output_layer_init_method": "normal",
        }
        return ModelConfig(
            num_layers=layout.compute_depth if layout else 6,
            hidden_size=HIDDEN,
            num_attention_heads=4,
            **keys | self.model,
        )

    @property
    def parallel(self) -> ParallelConfig:
        return ParallelConfig(
            pipe_parallel_size=self.num_ranks,
            pipe_partition_method=self.partition,
            pipe_num_passes=self.num_passes,
            pipe_schedule=self.schedule,
            model_parallel_size=self.tensor_parallel_size,
            sequence_parallel=self.sequence_parallel,
        )

    @property
    def stages(self) -> Partition:
        return build_partition(self.model_config, self.recursion_config, self.parallel, VOCAB)

    def build(
        self, tp: TensorParallel = SINGLE, rank: int | None = None, dtype: torch.dtype = torch.float64
    ) -> Transformer:
        """The whole model, or a pipeline rank's part of it."""
        stages = self.stages
        return build_model(
            self.model_config,
            self.recursion_config,
            TrainingConfig(seed=5, loss_chunk_tokens=5, **self.training),
            VOCAB,
            dtype=dtype,
            padded_vocab_size=64 if tp.size > 1 else None,
            tp=tp,
            holds=None if rank is None else lambda name: stages.holds(rank, name),
        )

    def mesh(self) -> ProcessMesh:
        return ProcessMesh.build(
            "cpu", pipeline_parallel_size=self.num_ranks, tensor_parallel_size=self.tensor_parallel_size
        )

    def ring(self) -> Ring:
        """This process's part, on the ring. A collective."""
        mesh = self.mesh()
        tp = TensorParallel.on(mesh, sequence_parallel=self.sequence_parallel)
        return Ring(self.build(tp, mesh.rank("pp")), self.stages, mesh, self.schedule)

    def micro_batches(self, seed: int = 0) -> list[tuple[Tensor, ...]]:
        """Tokens, labels and a mask with holes, per micro-batch."""
        generator = torch.Generator().manual_seed(seed)
        found: list[tuple[Tensor, ...]] = []
        for _ in range(self.num_micro_batches):
            tokens = torch.randint(0, VOCAB, (BATCH, SEQUENCE + 1), generator=generator)
            mask = (torch.rand(BATCH, SEQUENCE, generator=generator) > 0.2).float()
            found.append((tokens[:, :-1], tokens[:, 1:], mask))
        return found

    def whole(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of losses, and the gradient of their mean, of the model in one process."""
        module, total = self.build(), torch.zeros((), dtype=torch.float64)
        for inputs in self.micro_batches():
            loss = module(*inputs)
            (loss / self.num_micro_batches).backward()
            total += loss.detach()
        return total, {name: parameter.grad for name, parameter in module.named_parameters()}
