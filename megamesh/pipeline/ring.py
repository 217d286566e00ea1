"""The runtime of the ring: runs a rank's list of actions, moves states between ranks.

    order.py's list for this rank ──action by action──▶ receive … forward … send … backward …

    RECEIVE   allocate a buffer, post the receive          FORWARD    wait for it, run the stage, keep its graph's ends
    SEND      start to send, let go once it is done        BACKWARD   wait for gradients, run the graph, keep what it found for the sender

Contract: the loss is the mean over micro-batches, and each parameter's gradient the sum over all its stages and micro-batches, added up by
autograd where the parameter lives; only the order of additions differs from one process. Memory: receive buffers exist from their receive
action on, so that their number follows from the order, not from the number of micro-batches; what was sent is let go as soon as it is out.

Bytes sent per step: every edge between stages carries h forward and its gradient backward once per micro-batch, M · T · D values each, the
edges of pass 0 h_emb too where the scheme reads it; see `traffic.py`. The state buffer itself never crosses a wire.

Dropout draws from a stream that follows from the micro-batch's and the stage, so that the same layout repeats itself bit for bit.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megamesh.config.keys import ModelConfig
from megamesh.model.attention import KeyValueCache, attention_inputs
from megamesh.model.transformer import Transformer
from megamesh.parallel.collectives import Direction, Running
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.random import derive_seed
from megamesh.parallel.tensor import TensorParallel
from megamesh.parallel.wire import start_receive, start_send
from megamesh.pipeline.highway import RingHighway
from megamesh.pipeline.order import Action, ComputeKind, Schedule, forward_order, training_order
from megamesh.pipeline.stage import Finish, Graph, MicroBatch, StageRunner
from megamesh.pipeline.stages import ENTER, Partition, Stage

Inputs = tuple[Tensor, ...]
"""Tokens, labels and loss mask, each [B, S]."""


class Ring:
    """This rank's part of a model on the ring, and how it is run. Every method is a collective of the pipeline axis."""

    def __init__(self, model: Transformer, partition: Partition, mesh: ProcessMesh, schedule: Schedule):
        self.model, self.partition, self.schedule = model, partition, schedule
        self.group, self.rank = mesh.group("pp"), mesh.rank("pp")
        self.runners = {stage.index: StageRunner(model, stage) for stage in partition.of_rank(self.rank)}
        self.head_rank = next(stage.rank for stage in partition.stages if stage.has_head)
        # Told of every forward and backward with its start and end in seconds, where somebody asks; devices are waited for then.
        self.watch: Callable[[Action, float, float], None] | None = None
        self.peak_receive_bytes = 0  # of receives that were posted and not yet used
        self.peak_highway_bytes = 0  # of one micro-batch's highway

    def train(self, micro_batches: Iterable[Inputs], num_micro_batches: int, scale: float) -> Tensor:
        """Forward, and backward from mean loss × scale, of all micro-batches; the sum of their losses where the head is, elsewhere 0.

        A micro-batch's random stream is the one that is set when it is drawn.
        """
        order = training_order(self.schedule, self.partition.num_ranks, self.partition.num_passes, num_micro_batches)
        step = _Step(self, iter(micro_batches), self._loss, scale / num_micro_batches)
        step.run(order[self.rank])
        losses = torch.zeros(num_micro_batches, dtype=torch.float64, device=self.device)
        for index, loss in step.results.items():
            losses[index] = loss
        return losses.sum()

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Inputs]) -> Tensor:
        """Losses of micro-batches, in fp32 and on every rank."""
        step = _Step(self, iter(micro_batches), self._loss)
        step.run(forward_order(self.partition.num_ranks, self.partition.num_passes, len(micro_batches))[self.rank])
        losses = torch.zeros(len(micro_batches), device=self.device)
        for index, loss in step.results.items():
            losses[index] = loss
        dist.broadcast(losses, group=self.group, group_src=self.head_rank)
        return losses

    @torch.no_grad()
    def last_logits(
        self, tokens_BS: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """Logits [B, V] of the last token, on every rank; the cache holds the layers of this rank."""
        attention = attention_inputs(self.config, len(tokens_BS), positions, mask, cache)
        micro_batch = MicroBatch(tokens_BS, positions, attention, seed=0)
        step = _Step(
            self, iter([]), lambda _: lambda h_TD: self.model.head.logits(h_TD.unflatten(0, tokens_BS.shape)[:, -1])
        )
        step.micro_batches.append((micro_batch, ()))
        step.run(forward_order(self.partition.num_ranks, self.partition.num_passes, 1)[self.rank])
        shape = (len(tokens_BS), self.model.vocab_size)
        logits = step.results.get(0, torch.empty(shape, dtype=self.dtype, device=self.device)).contiguous()
        dist.broadcast(logits, group=self.group, group_src=self.head_rank)
        return logits

    @property
    def config(self) -> ModelConfig:
        """Of the whole model."""
        return self.model.config

    @property
    def tp(self) -> TensorParallel:
        return self.model.tp

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the states that ranks send each other: the model's."""
        return next(self.model.parameters()).dtype

    def state_shape(self, micro_batch: MicroBatch) -> tuple[int, int]:
        """Of the states that ranks send each other: this tensor rank's [T, D]."""
        tp = self.model.tp
        tokens = micro_batch.tokens_BS.numel() // (tp.size if tp.sequence_parallel else 1)
        return tokens, self.model.config.hidden_size

    def _loss(self, inputs: Inputs) -> Finish:
        _, labels_BS, loss_mask_BS = inputs
        return lambda h_TD: self.model.head(h_TD, labels_BS.flatten(), loss_mask_BS.flatten())


class _Step:
    """One run through a list of actions."""

    def __init__(
        self,
        ring: Ring,
        inputs: Iterator[Inputs],
        finish: Callable[[Inputs], Finish],
        loss_scale: float = 1.0,
    ):
        self.ring, self.inputs, self.finish, self.loss_scale = ring, inputs, finish, loss_scale
        self.micro_batches: list[tuple[MicroBatch, Inputs]] = []
        self.highways: dict[int, RingHighway] = {}
        self.graphs: dict[tuple[int, int], Graph] = {}
        self.arriving: dict[Action, list[Running]] = {}
        self.leaving: dict[tuple[str, int, int], list[Tensor]] = {}
        self.sending: list[Running] = []
        self.results: dict[int, Tensor] = {}
        config = ring.model.config
        self.has_dropout = ring.model.training and max(config.attention_dropout, config.hidden_dropout) > 0

    def run(self, actions: Sequence[Action]) -> None:
        """Everything in its order; returns when all that was sent is out."""
        for action in actions:
            self._do(action)
            self.sending = [running for running in self.sending if not running.work.is_completed()]
        for running in self.sending:
            running.wait()

    def _do(self, action: Action) -> None:
        stage, index = self.ring.partition.stages[action.stage], action.micro_batch
        if action.kind == "send_forward":
            self._send("forward", stage, index, to_rank=stage.rank + 1)
        elif action.kind == "send_backward":
            self._send("backward", stage, index, to_rank=stage.rank - 1)
        elif action.kind == "receive_forward":
            before = self.ring.partition.stages[stage.index - 1]
            self._receive("forward", stage, index, before.num_outputs, from_rank=before.rank)
        elif action.kind == "receive_backward":
            self._receive("backward", stage, index, stage.num_outputs, from_rank=stage.rank + 1)
        else:
            received = [running.wait() for running in self.arriving.pop(action, [])]
            compute, started = self._forward if action.kind == "forward" else self._backward, time.perf_counter()
            compute(stage, index, received)
            if self.ring.watch is not None:
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                self.ring.watch(action, started, time.perf_counter())

    def _forward(self, stage: Stage, index: int, received: list[Tensor]) -> None:
        ring, runner = self.ring, self.ring.runners[stage.index]
        micro_batch, inputs = self._micro_batch(index)
        if torch.is_grad_enabled():
            received = [state.requires_grad_() for state in received]
        if self.has_dropout:
            torch.manual_seed(derive_seed("stage", micro_batch.seed, stage.index))
        if stage.boundary == ENTER:
            self.highways[index] = RingHighway(ring.model.tp)
        highway = None if stage.boundary is None else self.highways[index]
        outputs = runner.forward(micro_batch, received, highway, self.finish(inputs) if stage.has_head else _no_head)
        if torch.is_grad_enabled():
            self.graphs[stage.index, index] = Graph.between(received, outputs, has_boundary=highway is not None)
        elif runner.is_last_boundary:
            del self.highways[index]
        if highway is not None:
            ring.peak_highway_bytes = max(ring.peak_highway_bytes, highway.num_bytes)
        if stage.has_head:
            (self.results[index],) = (output.detach() for output in outputs)
        elif outputs:
            self.leaving["forward", stage.index, index] = [output.detach() for output in outputs]

    def _backward(self, stage: Stage, index: int, gradients: list[Tensor]) -> None:
        graph = self.graphs.pop((stage.index, index))
        if stage.has_head:
            gradients = [torch.full_like(self.results[index], self.loss_scale)]
        if stage.boundary is None:
            found = graph.backward(gradients)
        else:
            highway = self.highways[index]
            found = graph.backward(gradients, *highway.outputs(stage.pass_index))
            highway.leave_gradients(stage.pass_index)
            if stage.boundary == ENTER:
                del self.highways[index]
        if stage.index:
            self.leaving["backward", stage.index, index] = found

    def _send(self, direction: Direction, stage: Stage, index: int, to_rank: int) -> None:
        to_rank %= self.ring.partition.num_ranks
        for state in self.leaving.pop((direction, stage.index, index), []):
            self.sending.append(start_send(state, to_rank, self.ring.group, "states", direction))

    def _receive(self, kind: ComputeKind, stage: Stage, index: int, num_states: int, from_rank: int) -> None:
        ring, from_rank = self.ring, from_rank % self.ring.partition.num_ranks
        shape = ring.state_shape(self._micro_batch(index)[0])
        buffers = [torch.empty(shape, dtype=ring.dtype, device=ring.device) for _ in range(num_states)]
        self.arriving[Action(kind, stage.index, index)] = [
            start_receive(buffer, from_rank, ring.group) for buffer in buffers
        ]
        waiting = sum(running.result.nbytes for states in self.arriving.values() for running in states)
        ring.peak_receive_bytes = max(ring.peak_receive_bytes, waiting)

    def _micro_batch(self, index: int) -> tuple[MicroBatch, Inputs]:
        """Drawn when it is first needed, all before it first."""
        while len(self.micro_batches) <= index:
            inputs = next(self.inputs, None)
            assert inputs is not None, f"there are {len(self.micro_batches)} micro-batches only"
            previous = self.micro_batches[-1][0] if self.micro_batches else None
            micro_batch = MicroBatch.after(previous, self.ring.model, inputs[0], torch.initial_seed())
            self.micro_batches.append((micro_batch, inputs))
        return self.micro_batches[index]


def _no_head(_: Tensor) -> Tensor:
    raise AssertionError("this stage has no head")
