"""Small training runs for the tests of engine and checkpoint: a recursive model, fixed data, any layout, and the oracle.

Functions at the top level run inside the workers of tests/distributed.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megamesh.config.batch import ResolvedBatch
from megamesh.config.keys import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    RecursionConfig,
    TrainingConfig,
)
from megamesh.engine.engine import StepResult, TrainingEngine
from megamesh.engine.optimizer import parameter_groups
from megamesh.engine.zero_access import STATE_KEYS, Fragment
from megamesh.model.build import build_model
from megamesh.model.counts import parameter_shapes
from megamesh.model.transformer import Transformer
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import SINGLE, TensorParallel
from megamesh.pipeline.partition import build_partition
from megamesh.pipeline.ring import Ring
from tests.model.sharded import join_shards

VOCAB, PADDED_VOCAB, SEQUENCE, GLOBAL_BATCH = 64, 80, 16, 4  # padded where the model is divided over the tensor axis
PEAK, CLIP, DECAY = 3e-3, 0.9, 0.1
MICRO_BATCHES = 2  # gradient accumulation steps on two data-parallel ranks, twice as many on one

# Weights with which gradients of routers are not mere rounding.
BOLD: dict[str, Any] = {"init_method_std": 0.1, "output_layer_init_method": "normal"}
# Divided in every way there is: query heads fused with fewer keys and values, gate fused with up, rows.
GATED: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_kv_heads": 4,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "intermediate_size": 88,
}


@dataclass(frozen=True)
class Setup:
    """One way to train the test model."""

    stage: int = 0
    precision: str = "fp32"
    checkpoint_activations: bool = False
    recompute_per: str = "block"
    tied: bool = False
    zero: dict[str, Any] = field(default_factory=dict)  # more keys of the ZeRO block
    seed: int = 7
    scaling: dict[str, Any] = field(default_factory=dict)  # keys of fp16's loss scale
    tensor_parallel_size: int = 1
    sequence_parallel: bool = False
    scheme: str | None = "mesh"
    compile: bool = False
    pipe_parallel_size: int = 1
    partition: str = "cost"
    schedule: str = "interleaved_1f1b"
    num_passes: int | None = None
    recursion: str = "1+1R2+1"
    model: dict[str, Any] = field(default_factory=dict)  # more keys of the model
    recursion_keys: dict[str, Any] = field(default_factory=dict)

    def parallel(self) -> ParallelConfig:
        return ParallelConfig(
            pipe_parallel_size=self.pipe_parallel_size,
            pipe_partition_method=self.partition,
            pipe_schedule=self.schedule,
            pipe_num_passes=self.num_passes,
        )

    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(
            optimizer={"type": "AdamW", "params": {"lr": PEAK, "betas": [0.9, 0.95], "eps": 1e-6}},
            zero_optimization={"stage": self.stage, "stage3_param_persistence_threshold": 100} | self.zero,
            gradient_clipping=CLIP,
            weight_decay=DECAY,
            lr_decay_style="constant",
            warmup=0.0,
        )


def model_configs(setup: Setup) -> tuple[ModelConfig, RecursionConfig]:
    keys: dict[str, Any] = {"num_attention_heads": 4, "pos_emb": "rotary", "rotary_pct": 0.5} | setup.model
    recursion = RecursionConfig()
    if setup.scheme is not None:
        recursion = RecursionConfig(recursion=setup.recursion, recursion_scheme=setup.scheme, **setup.recursion_keys)
    model = ModelConfig(
        num_layers=recursion.layout.compute_depth if recursion.layout else 4,
        hidden_size=32,
        max_position_embeddings=SEQUENCE,
        no_weight_tying=not setup.tied,
        **keys,
    )
    return model, recursion


def transformer(setup: Setup, tp: TensorParallel = SINGLE, holds: Callable[[str], bool] | None = None) -> Transformer:
    """The whole model, or what a rank holds of it."""
    training = TrainingConfig(
        seed=setup.seed,
        checkpoint_activations=setup.checkpoint_activations,
        checkpoint_activations_per=setup.recompute_per,
        compile=setup.compile,
    )
    padded = PADDED_VOCAB if tp.size > 1 else None
    return build_model(*model_configs(setup), training, VOCAB, padded_vocab_size=padded, tp=tp, holds=holds)


@contextmanager
def training(setup: Setup, module: nn.Module | None = None) -> Iterator[TrainingEngine]:
    """An engine over all processes of the group, for global batches of GLOBAL_BATCH samples. By default of the test model."""
    mesh = ProcessMesh.build(
        "cpu", pipeline_parallel_size=setup.pipe_parallel_size, tensor_parallel_size=setup.tensor_parallel_size
    )
    ranks = mesh.size("dp")
    accumulation = MICRO_BATCHES * 2 // ranks
    shards = ring = names = None
    if module is None:
        tp, stages = TensorParallel.on(mesh, sequence_parallel=setup.sequence_parallel), None
        if setup.pipe_parallel_size > 1:
            stages = build_partition(*model_configs(setup), setup.parallel(), VOCAB)
        module = model = transformer(setup, tp, stages and partial(stages.holds, mesh.rank("pp")))
        shards, names = model.shards(), list(parameter_shapes(*model_configs(setup), VOCAB))
        ring = stages and Ring(model, stages, mesh, setup.parallel().pipe_schedule)
    engine = TrainingEngine(
        module,
        optimizer=setup.optimizer(),
        precision=PrecisionConfig(precision=setup.precision, **setup.scaling),
        batch=ResolvedBatch(GLOBAL_BATCH, GLOBAL_BATCH // (accumulation * ranks), accumulation, ranks),
        mesh=mesh,
        train_iters=100,
        device=torch.device("cpu"),
        shards=shards,
        ring=ring,
        names=names,
    )
    try:
        yield engine
    finally:
        engine.close()


def global_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and mask of one optimizer step."""
    tokens = torch.randint(0, VOCAB, (GLOBAL_BATCH, SEQUENCE + 1), generator=torch.Generator().manual_seed(100 + step))
    return tokens[:, :-1], tokens[:, 1:], torch.ones(GLOBAL_BATCH, SEQUENCE)


def my_micro_batches(step: int, mesh: ProcessMesh | None = None) -> list[tuple[Tensor, ...]]:
    """This data-parallel rank's part: micro-step a takes consecutive samples, rank r the r-th slice of them."""
    size, rank = (mesh.size("dp"), mesh.rank("dp")) if mesh else (dist.get_world_size(), dist.get_rank())
    slices = zip(*(tensor.chunk(MICRO_BATCHES * 2) for tensor in global_batch(step)), strict=True)
    return [micro for index, micro in enumerate(slices) if index % size == rank]


def train(engine: TrainingEngine, first: int, last: int) -> list[StepResult]:
    return [engine.train_step(my_micro_batches(step, engine.mesh)) for step in range(first, last)]


def full_state(engine: TrainingEngine) -> dict[str, Tensor]:
    """Masters and moments of every parameter, gathered whole on every rank: not the product's way, hence a check on it."""
    engine.access.prepare_state()
    state = {}
    for name, parameter in engine.named_parameters():
        for key in STATE_KEYS:
            state[f"{key}.{name}"] = join(engine, name, parameter, engine.access.fragment(parameter, key))
    return state


def join(engine: TrainingEngine, name: str, parameter: nn.Parameter, fragment: Fragment | None) -> Tensor:
    """The global tensor of every rank's fragment. Copies of a replicated one must be the same, bit for bit."""
    shape, mesh = engine.access.local_shape(parameter), engine.mesh
    local = torch.zeros(shape).view(-1)
    if fragment is not None and (not engine.access.replicated or mesh.rank("dp") == 0):
        local[fragment.start : fragment.start + fragment.values.numel()] = fragment.values
    dist.all_reduce(local, group=mesh.group("dp"))
    return join_shards(local.view(shape), engine.shards[name], mesh.group("tp"))


def model_weights(engine: TrainingEngine) -> dict[str, Tensor]:
    """The weights that the model computes with; of divided ones this tensor rank's part."""
    weights = {}
    for name, parameter in engine.named_parameters():
        if hasattr(parameter, "ds_status"):
            parts = [torch.zeros_like(parameter.ds_tensor) for _ in range(engine.mesh.size("dp"))]
            dist.all_gather(parts, parameter.ds_tensor.data.clone(), group=engine.mesh.group("dp"))
            weights[name] = torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).clone()
        else:
            weights[name] = parameter.detach().clone()
    return weights


def fingerprint(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """Bit patterns, for comparisons that allow no difference at all."""
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor], model: ModelConfig) -> None:
    """After steps of Adam, relative to each tensor's norm: 1e-5; biases 1e-4, because they start at 0 and are nothing but moves, in
    which rounding shows where a gradient is small. Biases of keys without rotation add the same to all scores of a query: their gradients
    are rounding alone, by which Adam moves them anywhere, and they are left out."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        error = found[name] - weight
        if name.endswith("qkv.bias"):
            error.view(model.kv_heads, -1, model.head_dim)[:, -2, model.rotary_dim :] = 0
        tolerance = 1e-4 if name.endswith("bias") else 1e-5
        assert error.norm() <= tolerance * weight.norm(), f"{name} is off by {error.norm():g} of {weight.norm():g}"


def oracle(setup: Setup, num_steps: int, first: int = 0) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Plain torch, one process, whole batches from the `first` on: losses, gradient norms before clipping, final weights."""
    module = transformer(setup)
    optimizer = torch.optim.AdamW(
        parameter_groups(module.named_parameters(), DECAY, decay_all=False), lr=PEAK, betas=(0.9, 0.95), eps=1e-6
    )
    losses, norms = [], []
    for step in range(first, first + num_steps):
        optimizer.zero_grad()
        loss = module(*global_batch(step))
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(module.parameters(), CLIP).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
