"""One optimizer step over DeepSpeed: accumulate, reduce, look, clip or skip, step.

    micro-batches ──module──▶ loss ──backward──▶ averaged gradients, in this rank's fragments
                                                      │  one all-reduce: [loss, ‖g‖² of every parameter]
                                                      ▼
                              non-finite? ──yes──▶ the fragments become NaN: DeepSpeed drops the step on every rank
                                    └──no──▶ fragments × min(1, clip / ‖g‖) ──▶ Adam on fp32 masters ──▶ weights

Exact: gradients are the mean over micro-batches and data-parallel ranks; the norm is that of all parameters, before clipping,
at every ZeRO stage; a skipped step leaves weights, moments and Adam's step count untouched on all ranks. DeepSpeed's own
clipping is off, because its norm does not cover every layout.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import megamesh
from megamesh.config.batch import ResolvedBatch
from megamesh.config.deepspeed import deepspeed_config
from megamesh.config.sections import OptimizerConfig, PrecisionConfig
from megamesh.engine.optimizer import build_optimizer
from megamesh.engine.quiet_deepspeed import deepspeed
from megamesh.engine.schedule import learning_rate
from megamesh.engine.zero_access import open_access
from megamesh.parallel.mesh import AXES, ProcessMesh
from megamesh.parallel.shards import ShardSpec

CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did. Where it was skipped, `bad_parameter` is the first in model order, or "loss"."""

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    bad_parameter: str | None


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
    ):
        """Wraps and moves the module; its parameters become bf16 where the precision says so. A collective."""
        self.mesh, self.device, self.train_iters = mesh, device, train_iters
        self.num_steps = 0
        self._optimizer_config, self._accumulation = optimizer, batch.gradient_accumulation_steps
        self._names = [name for name, _ in module.named_parameters()]
        self.shards = {name: ShardSpec(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()}
        module.to(device)
        config = _engine_config(deepspeed_config(optimizer, precision, batch), module)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=build_optimizer(module, optimizer), config=config, dist_init_required=False
        )
        self.access = open_access(self._engine.optimizer)

    @property
    def module(self) -> nn.Module:
        """The module as it was given (its parameters empty between uses under ZeRO 3)."""
        module: nn.Module = self._engine.module
        return module

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by their layout-independent names, in model order, each once."""
        return self.module.named_parameters()

    def layout(self) -> dict[str, int]:
        """How this run divides its state; recorded in checkpoints."""
        sizes = {f"{axis}_size": self.mesh.size(axis) for axis in AXES}
        return sizes | {"zero_stage": self._engine.zero_optimization_stage()}

    def versions(self) -> dict[str, str]:
        """Versions of what a checkpoint's numbers may depend on."""
        return {"megamesh": megamesh.__version__, "torch": torch.__version__, "deepspeed": deepspeed.__version__}

    def train_step(self, micro_batches: Iterable[tuple[Tensor, ...]]) -> StepResult:
        """One optimizer step on gradient_accumulation_steps micro-batches of this data-parallel rank. A collective."""
        rate = learning_rate(self.num_steps, self._optimizer_config, self.train_iters)
        for group in self.access.adam.param_groups:
            group["lr"] = rate
        loss = self._accumulate(micro_batches)
        gradients = [self.access.gradient(parameter) for parameter in self.module.parameters()]
        loss_mean, norms = self._inspect(loss, gradients)
        bad_parameter = next((name for name, norm in norms.items() if not math.isfinite(norm)), None)
        if bad_parameter is None and not math.isfinite(loss_mean):
            bad_parameter = "loss"
        grad_norm = math.sqrt(sum(norm**2 for norm in norms.values()))
        if bad_parameter is None:
            self._clip(grad_norm, gradients)
        else:
            self._poison(gradients)
        self._engine.step()
        self.num_steps += 1
        return StepResult(loss_mean, grad_norm, rate, bad_parameter is not None, bad_parameter)

    @torch.no_grad()
    def evaluate(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Loss of one micro-batch of this rank, without gradients or dropout; a scalar in fp32. A collective under ZeRO 3."""
        self._engine.eval()
        loss: Tensor = self._engine(*inputs)
        return loss.float()

    def close(self) -> None:
        """Release DeepSpeed's hooks on the module."""
        self._engine.destroy()

    def _accumulate(self, micro_batches: Iterable[tuple[Tensor, ...]]) -> Tensor:
        """Forward and backward of all micro-batches; returns the sum of their losses."""
        self._engine.train()
        losses = []
        for index, inputs in enumerate(micro_batches):
            if index:
                self._engine.step()  # not at the boundary of the accumulation: DeepSpeed only counts
            loss = self._engine(*inputs)
            losses.append(loss.detach().double())
            self._engine.backward(loss)
        assert len(losses) == self._accumulation, f"{len(losses)} micro-batches for {self._accumulation}"
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _inspect(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> tuple[float, dict[str, float]]:
        """Mean loss and every parameter's gradient norm over all ranks: one all-reduce, one look from the host."""
        found = [(index, gradient) for index, gradient in enumerate(gradients) if gradient is not None]
        report = torch.zeros(1 + len(self._names), dtype=torch.float64, device=self.device)
        data_parallel_size = self.mesh.size("dp")
        report[0] = loss / (self._accumulation * data_parallel_size)
        if found:
            squares = torch.stack(torch._foreach_norm([gradient for _, gradient in found])).double().square()
            indices = torch.tensor([1 + index for index, _ in found], device=self.device)
            report[indices] = squares / (data_parallel_size if self.access.replicated else 1)
        dist.all_reduce(report, group=self.mesh.group("dp"))
        loss_mean, *squares_all = report.tolist()
        return loss_mean, {name: _root(square) for name, square in zip(self._names, squares_all, strict=True)}

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


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan


def _engine_config(config: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """DeepSpeed's dict for this module: buckets are no larger than the model, unless the user gave their size."""
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    zero = {"reduce_bucket_size": min(500_000_000, num_parameters)} | dict(config["zero_optimization"])
    return {**config, "zero_optimization": zero}
