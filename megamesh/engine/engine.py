"""One optimizer step over DeepSpeed: accumulate, reduce, look, clip or skip, step.

    micro-batches ──passes.py──▶ loss × scale ──backward──▶ gradients averaged over dp, in this rank's fragments
                                                         │  ÷ scale, in fp32 (the scale is 1 but in fp16)
                                                         │  one all-reduce over tp: gradients of replicated parameters
                                                         │  one all-reduce over all ranks: [loss, ‖g‖² of every parameter]
                                                         ▼
                              non-finite? ──yes──▶ the fragments become NaN: DeepSpeed drops the step on every rank
                                    └──no──▶ fragments × min(1, clip / ‖g‖) ──▶ Adam on fp32 masters ──▶ weights

Exact: gradients are the mean over micro-batches and data-parallel ranks; the norm is that of all parameters, each counted once, before
clipping, at every ZeRO stage and every layout of tensor and pipeline ranks; replicated parameters stay bit-identical over the tensor axis;
a skipped step leaves weights, moments and Adam's step count untouched on all ranks. DeepSpeed's own clipping is off: its norm does not
cover every layout.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import megamesh
from megamesh.config.batch import ResolvedBatch
from megamesh.config.deepspeed import deepspeed_config, fit_to_rank
from megamesh.config.keys import OptimizerConfig, PrecisionConfig
from megamesh.engine.loss_scale import can_fall, first_loss_scale, next_loss_scale
from megamesh.engine.norms import ShardedNorms
from megamesh.engine.optimizer import build_optimizer
from megamesh.engine.passes import Passes, RingPasses, WholePasses
from megamesh.engine.quiet_deepspeed import deepspeed
from megamesh.engine.replicated import sum_replicated
from megamesh.engine.schedule import learning_rate
from megamesh.engine.zero_access import open_access
from megamesh.parallel.mesh import AXES, ProcessMesh
from megamesh.parallel.mpu import DataParallelMpu
from megamesh.parallel.shards import ShardSpec
from megamesh.pipeline.ring import Ring

log = logging.getLogger(__name__)

CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_
# Of one parameter; more is as good as infinite: DeepSpeed squares in fp32, and would skip on some ranks only.
LARGEST_NORM = 1e16


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did. Where it was skipped, `bad_parameter` is the first in model order, or "loss".

    `loss_scale` is that of the step, in fp16. `overflowed`: skipped because gradients did not fit into fp16 at this scale, while the loss
    is finite and the scale can still fall. That is how a dynamic scale finds its place, and says nothing bad about the run.
    `grad_norms`: of every parameter of the whole model, by name, over all ranks, before clipping; `grad_norm` is that of all together.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    bad_parameter: str | None
    loss_scale: float | None = None
    overflowed: bool = False
    grad_norms: Mapping[str, float] = field(default_factory=dict)


class TrainingEngine:
    """A module that is called as module(*inputs) → scalar loss, its optimizer, and the steps done so far."""

    def __init__(
        self,
        module: nn.Module,
        *,
        optimizer: OptimizerConfig,
        precision: PrecisionConfig,
        batch: ResolvedBatch,
        mesh: ProcessMesh,
        train_iters: int,
        device: torch.device,
        shards: Mapping[str, ShardSpec] | None = None,
        ring: Ring | None = None,
        names: Sequence[str] | None = None,
    ):
        """Wraps and moves the module; its parameters become 16 bits wide where the precision says so. A collective.

        `shards` says of every parameter how it sits in the global one; by default all are replicated over the tensor axis. Where the module
        is a pipeline rank's part of a model, `ring` runs it and `names` are the whole model's parameters, in model order.
        """
        self.mesh, self.device, self.train_iters, self.precision, self.ring = mesh, device, train_iters, precision, ring
        self.num_steps, self.loss_scale = 0, first_loss_scale(precision)
        self.accumulation_steps = batch.gradient_accumulation_steps
        self._optimizer_config = optimizer
        own_names = [name for name, _ in module.named_parameters()]
        self.shards = dict(shards) if shards is not None else _replicated(module, mesh)
        self._norms = ShardedNorms(own_names if names is None else names, self.shards, mesh, device)
        self._specs = [self.shards[name] for name in own_names]
        module.to(device)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, optimizer),
            config=_engine_config(deepspeed_config(optimizer, precision, batch), module, on_ring=ring is not None),
            mpu=DataParallelMpu(mesh),
            dist_init_required=False,
        )
        self.access = open_access(self._engine.optimizer)
        self._passes: Passes = WholePasses(self._engine) if ring is None else RingPasses(self._engine, ring)

    @property
    def module(self) -> nn.Module:
        """The module as it was given (its parameters empty between uses under ZeRO 3)."""
        module: nn.Module = self._engine.module
        return module

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by their layout-independent names, in model order, each once."""
        return self.module.named_parameters()

    def norms(self, pieces: Mapping[str, Tensor], *, alike_over_data_parallel: bool) -> dict[str, float]:
        """Norms over all ranks of something that each parameter has: named pieces, cut over ranks as the parameters are. A collective.

        `alike_over_data_parallel`: the pieces are this rank's whole part of a parameter, the same on all data-parallel ranks; else each
        data-parallel rank has its own range, as the fragments of `access` are under ZeRO. The names are the whole model's; 0 is the norm
        of what no rank has.
        """
        return self._norms.total(pieces, alike_over_data_parallel=alike_over_data_parallel)[0]

    def layout(self) -> dict[str, int]:
        """How this run divides its state; recorded in checkpoints."""
        sizes = {f"{axis}_size": self.mesh.size(axis) for axis in AXES}
        return sizes | {"zero_stage": self._engine.zero_optimization_stage()}

    def versions(self) -> dict[str, str]:
        """Versions of what a checkpoint's numbers may depend on."""
        return {"megamesh": megamesh.__version__, "torch": torch.__version__, "deepspeed": deepspeed.__version__}

    def train_step(self, micro_batches: Iterable[tuple[Tensor, ...]]) -> StepResult:
        """One optimizer step on gradient_accumulation_steps micro-batches of this data-parallel rank. A collective.

        Tensor-parallel ranks are given the same micro-batches.
        """
        rate = learning_rate(self.num_steps, self._optimizer_config, self.train_iters)
        for group in self.access.adam.param_groups:
            group["lr"] = rate
        scale = self.loss_scale.scale
        loss = self._passes.accumulate(micro_batches, self.accumulation_steps, scale)
        gradients = self._unscaled_gradients(scale)
        sum_replicated(gradients, self._specs, self.mesh)
        loss_mean, norms = self._inspect(loss, gradients)
        bad_parameter = _first_bad(loss_mean, norms)
        finite, grad_norm = bad_parameter is None, math.sqrt(sum(norm**2 for norm in norms.values()))
        if finite:
            self._clip(grad_norm, gradients)
        else:
            self._poison(gradients)
        self._engine.step()
        self.num_steps += 1
        overflowed = not finite and math.isfinite(loss_mean) and can_fall(self.loss_scale, self.precision)
        self.loss_scale = next_loss_scale(self.loss_scale, self.precision, finite=finite)
        shown_scale = scale if self.precision.precision == "fp16" else None
        return StepResult(loss_mean, grad_norm, rate, not finite, bad_parameter, shown_scale, overflowed, norms)

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """Losses of micro-batches of this data-parallel rank, without gradients or dropout, in fp32. A collective of all other axes."""
        return self._passes.evaluate(micro_batches)

    def close(self) -> None:
        """Release DeepSpeed's hooks on the module."""
        self._engine.destroy()

    @torch.no_grad()
    def _unscaled_gradients(self, scale: float) -> list[Tensor | None]:
        """This rank's fragments of the gradient of the loss itself, in the order of the parameters."""
        gradients = [self.access.gradient(parameter) for parameter in self.module.parameters()]
        if scale != 1:
            torch._foreach_div_([gradient for gradient in gradients if gradient is not None], scale)
        return gradients

    def _inspect(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> tuple[float, dict[str, float]]:
        """Mean loss and every parameter's gradient norm over all ranks: one all-reduce, one look from the host.

        Over the whole mesh, because all must agree. Of pipeline ranks the one with the head reports the loss.
        """
        own = {name: gradient for (name, _), gradient in zip(self.named_parameters(), gradients, strict=True)}
        found = {name: gradient for name, gradient in own.items() if gradient is not None}
        share = loss / (self.accumulation_steps * self.mesh.size("dp") * self.mesh.size("tp"))
        norms, loss_mean = self._norms.total(found, alike_over_data_parallel=self.access.replicated, share=share)
        return loss_mean, norms

    @torch.no_grad()
    def _clip(self, grad_norm: float, gradients: Sequence[Tensor | None]) -> None:
        """Scale this rank's fragments so that the norm over all parameters is at most gradient_clipping."""
        largest = self._optimizer_config.gradient_clipping
        factor = largest / (grad_norm + CLIP_EPSILON)
        if largest > 0 and factor < 1:
            torch._foreach_mul_([gradient for gradient in gradients if gradient is not None], factor)

    @torch.no_grad()
    def _poison(self, gradients: Sequence[Tensor | None]) -> None:
        """Make every fragment NaN. DeepSpeed's wrappers then drop the step; without one, the gradients are simply removed."""
        if self.access.replicated:
            for parameter in self.module.parameters():
                parameter.grad = None
            return
        for gradient in gradients:
            if gradient is not None:
                gradient.fill_(math.nan)


def _first_bad(loss: float, norms: Mapping[str, float]) -> str | None:
    """What keeps a step from being taken: the first parameter in model order whose gradient is not finite, or the loss."""
    for name, norm in norms.items():
        if not norm < LARGEST_NORM:  # so written, NaN is caught too
            return name
    return None if math.isfinite(loss) else "loss"


def _replicated(module: nn.Module, mesh: ProcessMesh) -> dict[str, ShardSpec]:
    """Every parameter whole on every tensor-parallel rank, saved by the first."""
    writes = mesh.rank("tp") == 0
    return {name: ShardSpec(name, tuple(value.shape), writes=writes) for name, value in module.named_parameters()}


def _engine_config(config: Mapping[str, Any], module: nn.Module, *, on_ring: bool) -> dict[str, Any]:
    """DeepSpeed's dict for what this rank holds."""
    if on_ring and config["zero_optimization"].get("overlap_comm"):
        log.info(
            "overlap_comm has no effect with a pipeline: gradients are complete, and reduced, after the last backward"
        )
    return fit_to_rank(config, sum(parameter.numel() for parameter in module.parameters()), on_ring=on_ring)
