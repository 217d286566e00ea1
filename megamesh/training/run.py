"""One training run from configuration to the last checkpoint.

    LoadedConfig ──▶ process group ──▶ folders, vocabulary ──▶ the checkpoint's meta.json ──▶ data ──▶ model, engine ──▶ tensors ──▶ Trainer

Everything that can be wrong is looked at in this order, cheap before expensive; the first error ends every rank alike.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megamesh.checkpoint.together import on_rank_zero
from megamesh.config.batch import ResolvedBatch, data_parallel_size, resolve_batch
from megamesh.config.load import LoadedConfig
from megamesh.config.resolved import describe_schedule
from megamesh.config.sections import RunConfig
from megamesh.config.tensor_parallel import padded_vocabulary
from megamesh.data.samples.batch import Batch
from megamesh.data.samples.build import DataSplits, build_datasets, num_train_samples
from megamesh.data.samples.dataset import TokenDataset
from megamesh.data.samples.loader import iterate_batches
from megamesh.data.samples.paths import say_whole_prefixes
from megamesh.engine.distributed import init_distributed, shut_down_distributed
from megamesh.engine.engine import TrainingEngine
from megamesh.engine.liveness import leaving_together
from megamesh.errors import ConfigError, DataError
from megamesh.launch import read_launch
from megamesh.model.counts import count_parameters
from megamesh.model.flops import flops_per_token
from megamesh.parallel.agree import node_by_node, on_every_rank, rank_zero_first
from megamesh.parallel.mesh import ProcessMesh
from megamesh.training.build import build_engine, build_mesh, cut_over_pipeline
from megamesh.training.hooks.checkpoint import CheckpointHook, when_saved
from megamesh.training.hooks.console import ConsoleHook
from megamesh.training.hooks.evaluation import EvaluationHook
from megamesh.training.hooks.memory import MemoryHook
from megamesh.training.hooks.metrics_file import MetricsFileHook
from megamesh.training.hooks.nonfinite import NonFiniteHook
from megamesh.training.hooks.progress import ProgressHook
from megamesh.training.hooks.save_clock import SaveClock
from megamesh.training.hooks.signals import SignalHook
from megamesh.training.hooks.tensorboard import TensorBoardHook
from megamesh.training.hooks.user import load_hooks
from megamesh.training.interrupt import Interrupts
from megamesh.training.resume import find_start, load_start
from megamesh.training.throughput import Throughput, device_peak_tflops
from megamesh.training.trainer import Hook, Trainer
from megamesh.training.vocabulary import vocabulary_size, warn_about_tokenizers

log = logging.getLogger(__name__)


def run(loaded: LoadedConfig) -> None:
    """A whole training process: join the process group, train, leave it. Raises MegaMeshError for what a user can mend."""
    signals = SignalHook()
    with Interrupts(signals):
        device = init_distributed()
        try:
            with leaving_together("The same command continues from the last checkpoint."):
                train(loaded, device, signals)
        finally:
            shut_down_distributed()


def train(loaded: LoadedConfig, device: torch.device, signals: SignalHook) -> Trainer:
    """Train in the process group that there is, to the end or to a signal; returns the trainer as it stands then."""
    trainer = prepare(loaded, device, signals)
    trainer.train()
    if trainer.stop_reason:
        what_next = "the same command continues" if signals.saves else "nothing is saved, as save is not given"
        log.info("%s: stopped after step %d; %s", trainer.stop_reason, trainer.state.step, what_next)
    return trainer


def prepare(loaded: LoadedConfig, device: torch.device, signals: SignalHook) -> Trainer:
    """Everything between the process group and the first step."""
    config = loaded.run
    signals.saves = config.checkpoint.save is not None
    batch = resolve_batch(config.batch, data_parallel_size(config.parallel, dist.get_world_size()))
    users_hooks = on_every_rank(partial(load_hooks, config.training.hooks))
    mesh = build_mesh(config, device)
    rank_zero_first(partial(_check_folders, config))
    local_rank = read_launch(os.environ).local_rank
    vocab_size, train_iters = node_by_node(partial(_sizes, config, batch), local_rank)
    if dist.get_rank() == 0:
        say_whole_prefixes(config.data)
        warn_about_tokenizers(config.data, config.tokenizer)
    padded_vocab_size = padded_vocabulary(config, vocab_size)
    cut_over_pipeline(config, batch, padded_vocab_size)  # whatever is wrong with it is told before data is looked at
    start = on_rank_zero(partial(find_start, config, batch, train_iters), "look for a checkpoint")
    state = start.state
    num_samples = state.consumed_samples + max(train_iters - state.step, 0) * batch.train_batch_size
    data = node_by_node(partial(_datasets, config, batch, num_samples, vocab_size), local_rank)
    engine = build_engine(config, mesh, batch, train_iters, vocab_size, padded_vocab_size, device)
    _say_what_is_trained(engine, config, padded_vocab_size)
    log.info("learning rate: %s", describe_schedule(config.optimizer, train_iters))
    load_start(engine, start, verify=config.checkpoint.verify_checkpoint)
    throughput = _throughput(config, batch, padded_vocab_size, device)
    hooks = _hooks(loaded, signals, data, mesh, batch, train_iters, throughput, users_hooks)
    assert data.train is not None, "build_datasets gives a training set wherever samples are wanted"
    batches = _batches(
        data.train, mesh, batch, state.consumed_samples, num_samples, config.data.num_workers, device.type == "cuda"
    )
    _say_what_follows(state.step, train_iters, batch, config)
    return Trainer(
        engine,
        mesh,
        batches,
        batch,
        state,
        hooks,
        train_iters=train_iters,
        sequence_length=config.model.sequence_length,
        masked=config.data.pack_impl != "packed" or config.data.train_label_data_paths is not None,
    )


def _say_what_follows(step: int, train_iters: int, batch: ResolvedBatch, config: RunConfig) -> None:
    if step >= train_iters:
        log.info("step %d of %d is done: nothing is left to train", step, train_iters)
        return
    parallel = config.parallel
    divided = f" × {parallel.model_parallel_size} tensor-parallel" if parallel.model_parallel_size > 1 else ""
    divided += f" × {parallel.pipe_parallel_size} pipeline" if parallel.pipe_parallel_size > 1 else ""
    split = ", states split by tokens" if parallel.sequence_parallel else ""
    log.info(
        "steps %d to %d, each of %d samples of %d tokens, on %d data-parallel%s ranks%s",
        step + 1, train_iters, batch.train_batch_size, config.model.sequence_length,
        batch.data_parallel_size, divided, split,
    )  # fmt: skip
    if config.checkpoint.save:
        log.info("saves to %s %s", config.checkpoint.save, when_saved(config.checkpoint))


def _hooks(
    loaded: LoadedConfig,
    signals: SignalHook,
    data: DataSplits,
    mesh: ProcessMesh,
    batch: ResolvedBatch,
    train_iters: int,
    throughput: Throughput,
    users_hooks: Sequence[Hook],
) -> list[Hook]:
    config = loaded.run
    num_evaluated = config.training.eval_iters * batch.train_batch_size
    valid, test = (
        None if dataset is None else partial(_batches, dataset, mesh, batch, 0, num_evaluated)
        for dataset in (data.valid, data.test)
    )
    valid_parts = {
        name: partial(_batches, dataset, mesh, batch, 0, num_evaluated) for name, dataset in data.valid_parts.items()
    }
    hooks: list[Hook] = [
        NonFiniteHook(config.training.max_nonfinite_steps),
        signals,
        ProgressHook(config.log.log_interval, throughput),
        EvaluationHook(config.training.eval_interval, valid, test, valid_parts),
        MemoryHook(config.log.log_interval),
        *users_hooks,
    ]
    if dist.get_rank() == 0:
        hooks += _sinks(config, train_iters)
    if config.checkpoint.save:
        signals.clock = SaveClock(config.checkpoint.minutes_between_saves)
        hooks.append(
            CheckpointHook(config.checkpoint, _saved_config(config, train_iters), loaded.sources, signals.clock)
        )
    elif dist.get_rank() == 0:
        log.warning("save is not given: this run writes no checkpoint")
    return hooks


def _batches(
    dataset: TokenDataset,
    mesh: ProcessMesh,
    batch: ResolvedBatch,
    consumed_samples: int,
    total_samples: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """This rank's micro-batches of samples `consumed_samples` to `total_samples`."""
    return iterate_batches(
        dataset,
        consumed_samples=consumed_samples,
        total_samples=total_samples,
        micro_batch_size=batch.micro_batch_size,
        dp_rank=mesh.rank("dp"),
        dp_size=mesh.size("dp"),
        num_workers=num_workers,
        pin_memory=pin_memory,
    )


def _say_what_is_trained(engine: TrainingEngine, config: RunConfig, padded_vocab_size: int) -> None:
    num_parameters = count_parameters(config.model, config.recursion, padded_vocab_size).total
    own = sum(math.prod(engine.access.local_shape(parameter)) for _, parameter in engine.named_parameters())
    part = "" if own == num_parameters else f", {own:,} of them on this rank"
    log.info("%s parameters%s, in %s on %s", f"{num_parameters:,}", part, config.precision.precision, engine.device)


def _saved_config(config: RunConfig, train_iters: int) -> dict[str, Any]:
    """The configuration as a checkpoint keeps it: with the steps that train_epochs comes to, so that a reader needs no data."""
    saved = config.model_dump(mode="json")
    return saved | {"training": saved["training"] | {"train_iters": train_iters}}


def _throughput(config: RunConfig, batch: ResolvedBatch, vocab_size: int, device: torch.device) -> Throughput:
    return Throughput(
        sequence_length=config.model.sequence_length,
        samples_per_step=batch.train_batch_size,
        flops_per_token=flops_per_token(config.model, config.recursion, vocab_size).training,
        num_devices=dist.get_world_size(),
        peak_tflops=config.log.peak_tflops or device_peak_tflops(device, config.precision),
    )


def _sinks(config: RunConfig, train_iters: int) -> list[Hook]:
    """Hooks that show metrics; they run on rank 0 only."""
    sinks: list[Hook] = [ConsoleHook(train_iters)]
    if config.log.tensorboard_dir:
        sinks.append(TensorBoardHook(config.log.tensorboard_dir))
    if config.checkpoint.save:
        sinks.append(MetricsFileHook(Path(config.checkpoint.save)))
    return sinks


def _sizes(config: RunConfig, batch: ResolvedBatch) -> tuple[int, int]:
    """The unpadded vocabulary and the optimizer steps of the run."""
    vocab_size = vocabulary_size(config.model, config.tokenizer)
    return vocab_size, _train_iters(config, batch, vocab_size)


def _check_folders(config: RunConfig) -> None:
    """Make the folders that the run writes to; ConfigError, before any work, for one that cannot be written to."""
    for key, folder in (("save", config.checkpoint.save), ("tensorboard_dir", config.log.tensorboard_dir)):
        try:
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{key}={folder} cannot be made: {error.strerror}; name another folder") from error
        if folder is not None and not os.access(folder, os.W_OK):
            raise ConfigError(f"{key}={folder} cannot be written to; change its permissions, or name another folder")


def _train_iters(config: RunConfig, batch: ResolvedBatch, vocab_size: int) -> int:
    """Optimizer steps of the run: train_iters, or what train_epochs comes to."""
    if config.training.train_iters is not None:
        return config.training.train_iters
    assert config.training.train_epochs is not None, "the configuration has train_iters or train_epochs"
    samples = num_train_samples(
        config.data,
        sequence_length=config.model.sequence_length,
        seed=config.training.seed,
        epochs=config.training.train_epochs,
        vocab_size=vocab_size,
    )
    if samples < batch.train_batch_size:
        raise DataError(
            f"train_epochs={config.training.train_epochs} gives {samples} samples of {config.model.sequence_length} tokens, less than "
            f"one batch of {batch.train_batch_size}; use a smaller train_batch_size, more epochs or more text"
        )
    return samples // batch.train_batch_size


def _datasets(config: RunConfig, batch: ResolvedBatch, num_train_samples: int, vocab_size: int) -> DataSplits:
    eval_samples = config.training.eval_iters * batch.train_batch_size
    return build_datasets(
        config.data,
        sequence_length=config.model.sequence_length,
        seed=config.training.seed,
        num_samples=(num_train_samples, eval_samples, eval_samples),
        vocab_size=vocab_size,
        train_epochs=config.training.train_epochs,
    )
