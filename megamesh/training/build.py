"""This rank's part of a run's model, in its engine: the one place where configuration and process mesh meet the model."""

from functools import partial

import torch

from megamesh.config.batch import ResolvedBatch
from megamesh.config.sections import RunConfig
from megamesh.engine.engine import TrainingEngine
from megamesh.model.build import build_model, torch_dtype
from megamesh.model.counts import parameter_shapes
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import TensorParallel
from megamesh.pipeline.checks import check_micro_batches
from megamesh.pipeline.partition import build_partition
from megamesh.pipeline.ring import Ring
from megamesh.pipeline.stages import Partition


def build_mesh(config: RunConfig, device: torch.device) -> ProcessMesh:
    """All processes, arranged as the configuration says. A collective."""
    parallel = config.parallel
    return ProcessMesh.build(
        device.type,
        pipeline_parallel_size=max(parallel.pipe_parallel_size, 1),
        tensor_parallel_size=parallel.model_parallel_size,
    )


def cut_over_pipeline(config: RunConfig, batch: ResolvedBatch, padded_vocab_size: int) -> Partition | None:
    """Which layers live on which pipeline rank; None without pipeline. Raises ConfigError where model or batch cannot be cut so."""
    if config.parallel.pipe_parallel_size < 2:
        return None
    partition = build_partition(config.model, config.recursion, config.parallel, padded_vocab_size)
    steps, samples = batch.gradient_accumulation_steps, batch.samples_per_step(config.batch)
    check_micro_batches(config.parallel, partition.num_passes, steps, samples)
    return partition


def build_engine(
    config: RunConfig,
    mesh: ProcessMesh,
    batch: ResolvedBatch,
    train_iters: int,
    vocab_size: int,
    padded_vocab_size: int,
    device: torch.device,
) -> TrainingEngine:
    """The model with initial weights, as far as this rank holds it, in its engine. A collective; raises ConfigError."""
    parallel = config.parallel
    partition = cut_over_pipeline(config, batch, padded_vocab_size)
    model = build_model(
        config.model,
        config.recursion,
        config.training,
        vocab_size,
        device=device,
        dtype=torch_dtype(config.precision),
        padded_vocab_size=padded_vocab_size,
        tp=TensorParallel.on(mesh, sequence_parallel=parallel.sequence_parallel),
        holds=None if partition is None else partial(partition.holds, mesh.rank("pp")),
    )
    return TrainingEngine(
        model,
        optimizer=config.optimizer,
        precision=config.precision,
        batch=batch,
        mesh=mesh,
        train_iters=train_iters,
        device=device,
        shards=model.shards(),
        ring=None if partition is None else Ring(model, partition, mesh, parallel.pipe_schedule),
        names=list(parameter_shapes(config.model, config.recursion, padded_vocab_size)),
    )
