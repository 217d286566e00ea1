"""Small training runs for the tests of engine and checkpoint: a recursive model, fixed data, any ZeRO stage, and the oracle.

Functions at the top level run inside the workers of tests/distributed.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megamesh.config.batch import ResolvedBatch
from megamesh.config.sections import ModelConfig, OptimizerConfig, PrecisionConfig, RecursionConfig, TrainingConfig
from megamesh.engine.engine import StepResult, TrainingEngine
from megamesh.engine.optimizer import parameter_groups
from megamesh.model.build import build_model
from megamesh.model.transformer import Transformer
from megamesh.parallel.mesh import ProcessMesh

VOCAB, SEQUENCE, GLOBAL_BATCH = 64, 16, 4
PEAK, CLIP, DECAY = 3e-3, 0.9, 0.1
MICRO_BATCHES = 2  # gradient accumulation steps on two processes, twice as many on one


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

    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(
            optimizer={"type": "AdamW", "params": {"lr": PEAK, "betas": [0.9, 0.95], "eps": 1e-6}},
            zero_optimization={"stage": self.stage, "stage3_param_persistence_threshold": 100} | self.zero,
            gradient_clipping=CLIP,
            weight_decay=DECAY,
            lr_decay_style="constant",
            warmup=0.0,
        )


def transformer(setup: Setup) -> Transformer:
    model = ModelConfig(
        num_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=SEQUENCE,
        pos_emb="rotary",
        rotary_pct=0.5,
        no_weight_tying=not setup.tied,
    )
    recursion = RecursionConfig(recursion="1+1R2+1", recursion_scheme="mesh")
    training = TrainingConfig(
        seed=setup.seed,
        checkpoint_activations=setup.checkpoint_activations,
        checkpoint_activations_per=setup.recompute_per,
    )
    return build_model(model, recursion, training, VOCAB)


@contextmanager
def training(setup: Setup, module: nn.Module | None = None) -> Iterator[TrainingEngine]:
    """An engine over all processes of the group, for global batches of GLOBAL_BATCH samples."""
    world_size = dist.get_world_size()
    accumulation = MICRO_BATCHES * 2 // world_size
    engine = TrainingEngine(
        transformer(setup) if module is None else module,
        optimizer=setup.optimizer(),
        precision=PrecisionConfig(precision=setup.precision),
        batch=ResolvedBatch(GLOBAL_BATCH, GLOBAL_BATCH // (accumulation * world_size), accumulation, world_size),
        mesh=ProcessMesh.build("cpu"),
        train_iters=100,
        device=torch.device("cpu"),
    )
    try:
        yield engine
    finally:
        engine.close()


def global_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and mask of one optimizer step."""
    tokens = torch.randint(0, VOCAB, (GLOBAL_BATCH, SEQUENCE + 1), generator=torch.Generator().manual_seed(100 + step))
    return tokens[:, :-1], tokens[:, 1:], torch.ones(GLOBAL_BATCH, SEQUENCE)


def my_micro_batches(step: int) -> list[tuple[Tensor, ...]]:
    """This rank's part: micro-step a takes consecutive samples, rank r the r-th slice of them."""
    size = dist.get_world_size()
    slices = zip(*(tensor.chunk(MICRO_BATCHES * 2) for tensor in global_batch(step)), strict=True)
    return [micro for index, micro in enumerate(slices) if index % size == dist.get_rank()]


def train(engine: TrainingEngine, first: int, last: int) -> list[StepResult]:
    return [engine.train_step(my_micro_batches(step)) for step in range(first, last)]


def full_state(engine: TrainingEngine) -> dict[str, Tensor]:
    """Masters and moments of every parameter, gathered whole on every rank: not the product's way, hence a check on it."""
    engine.access.prepare_state()
    state = {}
    for name, parameter in engine.named_parameters():
        shape = engine.access.local_shape(parameter)
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            whole = torch.zeros(shape).view(-1)
            fragment = engine.access.fragment(parameter, key)
            if fragment is not None and (not engine.access.replicated or dist.get_rank() == 0):
                whole[fragment.start : fragment.start + fragment.values.numel()] = fragment.values
            dist.all_reduce(whole)
            state[f"{key}.{name}"] = whole.view(shape)
    return state


def model_weights(engine: TrainingEngine) -> dict[str, Tensor]:
    """The weights that the model computes with, whole."""
    weights = {}
    for name, parameter in engine.named_parameters():
        if hasattr(parameter, "ds_status"):
            parts = [torch.zeros_like(parameter.ds_tensor) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, parameter.ds_tensor.data.clone())
            weights[name] = torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).clone()
        else:
            weights[name] = parameter.detach().clone()
    return weights


def fingerprint(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """Bit patterns, for comparisons that allow no difference at all."""
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def oracle(setup: Setup, num_steps: int) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Plain torch, one process, whole batches: losses, gradient norms before clipping, final weights."""
    module = transformer(setup)
    optimizer = torch.optim.AdamW(
        parameter_groups(module.named_parameters(), DECAY, decay_all=False), lr=PEAK, betas=(0.9, 0.95), eps=1e-6
    )
    losses, norms = [], []
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = module(*global_batch(step))
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(module.parameters(), CLIP).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
