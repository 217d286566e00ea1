"""Processes that each hold a part of one candidate: a process group of their own, a TrainingEngine, random tokens.

    parent ──("steps", 3)──▶ every process calls that method of its TimedEngine ──▶ parent: what each said, by rank

A candidate lives in processes of its own, so that its peak memory is its own and candidates can be asked in turn.
"""

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_any
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.child_signals import children_without
from megamesh.config.batch import ResolvedBatch, data_parallel_size, resolve_batch
from megamesh.config.keys import RecursionConfig
from megamesh.config.sections import RunConfig
from megamesh.config.tensor_parallel import padded_vocabulary
from megamesh.diagnostics.highway_memory import watch_highways
from megamesh.engine.peak_memory import own_peak_bytes
from megamesh.errors import MegaMeshError, TrainingError
from megamesh.model.attention import AttentionInputs
from megamesh.model.build import torch_dtype
from megamesh.model.counts import count_parameters
from megamesh.model.flops import flops_per_token
from megamesh.model.transformer import Transformer
from megamesh.parallel.collectives import Communication, count_communication
from megamesh.parallel.mesh import ProcessMesh
from megamesh.pipeline.order import Action
from megamesh.training.throughput import device_peak_tflops

if TYPE_CHECKING:
    from megamesh.engine.engine import TrainingEngine

Kind = str
"""config, vanilla, transformers, or a recursion scheme."""
START_TIMEOUT_SECONDS = 600
STEP_TIMEOUT_SECONDS = 3600
BACKWARD_SLEEPS = 2.0
"""A sleeping block's backward takes so many times its forward."""


@dataclass(frozen=True)
class Candidate:
    """A named model to time, and what it is made from."""

    name: str
    kind: Kind
    config: RunConfig
    vocab_size: int

    @property
    def padded_vocab_size(self) -> int:
        return padded_vocabulary(self.config, self.vocab_size)

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs of one token at compute depth; transformers' model is a plain stack of that depth."""
        recursion = RecursionConfig() if self.kind == "transformers" else self.config.recursion
        return flops_per_token(self.config.model, recursion, self.padded_vocab_size).training


class Facts(NamedTuple):
    """What is known of a candidate once it is built."""

    num_parameters: int  # of the whole model
    tokens_per_step: int
    peak_tflops: float | None


def make_candidate(kind: Kind, config: RunConfig, vocab_size: int) -> Candidate:
    """The configuration itself, or another model of the same compute depth and width."""
    recursion = config.recursion
    if kind == "vanilla":
        recursion = RecursionConfig()
    elif kind not in ("config", "transformers"):
        if recursion.recursion is None:
            raise TrainingError(
                f"the configuration has no recursion to compare with {kind}; set recursion, or leave --against {kind} out"
            )
        recursion = recursion.model_copy(update={"recursion_scheme": kind, "recursion_scheme_params": None})
    elif kind == "transformers" and (config.model.norm != "layernorm" or config.model.gated):
        raise TrainingError(
            f"norm={config.model.norm}, activation={config.model.activation}: transformers' GPTNeoX has layernorm and a plain MLP; "
            "use --against base, or other models of ours"
        )
    if kind == "transformers" and config.parallel.model_parallel_size > 1:
        raise TrainingError(
            f"model_parallel_size={config.parallel.model_parallel_size}: transformers' model is not divided here; "
            "use --against base, or other models of ours"
        )
    own = recursion.recursion and f"{recursion.recursion} {recursion.recursion_scheme}"
    name = "transformers GPTNeoX" if kind == "transformers" else own or "vanilla"
    return Candidate(name, kind, config.model_copy(update={"recursion": recursion}), vocab_size)


class CandidateProcesses:
    """The processes of one candidate, as a context: built on entry, ended on exit.

    Raises ConfigError where the model, the batch or the vocabulary cannot be divided over so many processes, before any is
    started, and TrainingError with the text of a process that failed.
    """

    def __init__(self, candidate: Candidate, num_processes: int):
        padded_vocabulary(candidate.config, candidate.vocab_size)
        self.batch = resolve_batch(candidate.config.batch, data_parallel_size(candidate.config.parallel, num_processes))
        self.candidate, self.num_processes = candidate, num_processes
        self.connections: list[Connection] = []
        self.processes: list[Any] = []

    def __enter__(self) -> "CandidateProcesses":
        context, port = multiprocessing.get_context("spawn"), _free_port()
        try:
            for rank in range(self.num_processes):
                ours, theirs = context.Pipe()
                arguments = (theirs, self.candidate, rank, self.num_processes, port)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                with children_without({signal.SIGINT}):  # Ctrl-C ends the parent, which ends them
                    process.start()
                theirs.close()
                self.connections.append(ours)
                self.processes.append(process)
            self.facts: Facts = self._answers(START_TIMEOUT_SECONDS)[0]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every process's TimedEngine; what each returned, by rank."""
        for connection in self.connections:
            connection.send((method, *arguments))
        return self._answers(STEP_TIMEOUT_SECONDS)

    def _answers(self, timeout_seconds: float) -> list[Any]:
        """What every process says, by rank. The first that fails ends the wait: the others may be waiting for it."""
        answers: dict[int, Any] = {}
        while len(answers) < len(self.connections):
            waiting = {self.connections[rank]: rank for rank in range(len(self.connections)) if rank not in answers}
            ready = wait_any(list(waiting), timeout_seconds)
            if not ready:
                raise TrainingError(f"{self.candidate.name}: no answer within {timeout_seconds} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                try:
                    answer = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise TrainingError(f"{self.candidate.name}: a process died; is there enough memory?") from None
                if isinstance(answer, Exception):
                    raise TrainingError(f"{self.candidate.name}: {answer}") from answer
                answers[waiting[connection]] = answer
        return [answers[rank] for rank in sorted(answers)]


def _serve(connection: Connection, candidate: Candidate, rank: int, world_size: int, port: int) -> None:
    """One process: build the engine, tell its facts, then do what is asked."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max((os.cpu_count() or 1) // world_size, 1))
    try:
        timed = TimedEngine(candidate)
        connection.send(timed.facts)
        while True:
            method, *arguments = connection.recv()
            connection.send(getattr(timed, method)(*arguments))
    except EOFError:
        return
    except MegaMeshError as error:
        connection.send(TrainingError(str(error)))
    except Exception as error:  # whatever it is, the parent must hear of it
        connection.send(TrainingError(f"{type(error).__name__}: {error}"))


class TimedEngine:
    """This process's part of a candidate, training on random tokens."""

    def __init__(self, candidate: Candidate):
        from megamesh.engine.distributed import init_distributed  # DeepSpeed is needed only in these processes
        from megamesh.training.build import build_engine, build_mesh

        config, rows = candidate.config, candidate.padded_vocab_size
        self.device = init_distributed()
        mesh = build_mesh(config, self.device)
        self.batch = resolve_batch(config.batch, mesh.size("dp"))
        if candidate.kind == "transformers":
            self.engine = _transformers_engine(candidate, mesh, self.batch, self.device)
        else:
            self.engine = build_engine(config, mesh, self.batch, 10**6, candidate.vocab_size, rows, self.device)
        tokens = self.batch.train_batch_size * config.model.sequence_length
        peak = config.log.peak_tflops or device_peak_tflops(self.device, config.precision)
        self.facts = Facts(_num_parameters(candidate, self.engine.module), tokens, peak)
        shape = (self.batch.micro_batch_size, config.model.sequence_length + 1)
        generator = torch.Generator().manual_seed(mesh.rank("dp"))  # tensor-parallel ranks read the same samples
        ids = torch.randint(0, candidate.vocab_size, shape, generator=generator).to(self.device)
        self.inputs = (ids[:, :-1], ids[:, 1:], torch.ones(shape[0], shape[1] - 1, device=self.device))

    def steps(self, count: int) -> float:
        """Seconds that `count` optimizer steps take."""
        started = time.perf_counter()
        for _ in range(count):
            self.engine.train_step([self.inputs] * self.batch.gradient_accumulation_steps)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def watch_step(self, layer_seconds: float | None) -> list[tuple[Action, float, float]]:
        """One step of a pipeline, without the optimizer: this rank's forwards and backwards, each with its start and end.

        With `layer_seconds` blocks sleep instead of computing.
        """
        ring, found = self.engine.ring, []
        assert ring is not None, "there is no pipeline"
        if layer_seconds is not None:
            for runner in ring.runners.values():
                runner.blocks = nn.ModuleList(_SleepingBlock(layer_seconds) for _ in runner.blocks)
        ring.watch = lambda *action_start_end: found.append(action_start_end)
        dist.barrier()
        num_micro_batches = self.batch.gradient_accumulation_steps
        ring.train([self.inputs] * num_micro_batches, num_micro_batches, 1.0)
        return found

    def peak_bytes(self) -> int:
        """The most memory that this process has held."""
        return own_peak_bytes(self.device)

    def checkpoints(self, folder: str, num_rounds: int) -> tuple[list[Any], int]:
        """See megamesh.benchmark.checkpoint_timing."""
        from megamesh.benchmark.checkpoint_timing import time_checkpoints

        self.steps(1)
        return time_checkpoints(self.engine, Path(folder), num_rounds)

    def communication(self) -> tuple[Communication, int]:
        """What one optimizer step says over tensor and pipeline axis, and the bytes of one micro-batch's highway on this rank."""
        module, ring = self.engine.module, self.engine.ring
        assert isinstance(module, Transformer), "transformers' model has no tensor axis"
        with count_communication() as counted, watch_highways(module) as highways:
            self.steps(1)
        return counted, ring.peak_highway_bytes if ring is not None else highways[-1].num_bytes


class _SleepingBlock(nn.Module):
    """A block that takes its time and does nothing."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, h_TD: Tensor, _inputs: AttentionInputs, _layer: int) -> Tensor:
        slept: Tensor = _Sleep.apply(h_TD, self.seconds)
        return slept


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return h_TD.view_as(h_TD)

    @staticmethod
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None]:
        time.sleep(BACKWARD_SLEEPS * ctx.seconds)
        return gradient_TD, None


class _TransformersLoss(nn.Module):
    """transformers' model as the engine wants it: (tokens, labels, mask) → mean loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor, loss_mask_BS: Tensor) -> Tensor:
        logits = self.model(input_ids=tokens_BS, use_cache=False).logits.float().flatten(0, 1)
        nll = F.cross_entropy(logits, labels_BS.flatten(), reduction="none")
        return (nll * loss_mask_BS.flatten()).sum() / loss_mask_BS.sum()


def _num_parameters(candidate: Candidate, module: nn.Module) -> int:
    """Parameters of the whole model, padding of the vocabulary included."""
    if isinstance(module, Transformer):
        return count_parameters(candidate.config.model, candidate.config.recursion, candidate.padded_vocab_size).total
    return sum(parameter.numel() for parameter in module.parameters())


def _transformers_engine(
    candidate: Candidate, mesh: ProcessMesh, batch: ResolvedBatch, device: torch.device
) -> "TrainingEngine":
    from transformers import AutoModelForCausalLM

    from megamesh.engine.engine import TrainingEngine
    from megamesh.hf.exporting.configs import SpecialTokens, to_hf_config

    config, vocab_size = candidate.config, candidate.padded_vocab_size
    theirs = to_hf_config("gpt_neox", config.model, RecursionConfig(), vocab_size, SpecialTokens(), "float32")
    model = AutoModelForCausalLM.from_config(theirs, attn_implementation="sdpa")
    if config.training.checkpoint_activations:
        model.gradient_checkpointing_enable()
    return TrainingEngine(
        _TransformersLoss(model.to(device=device, dtype=torch_dtype(config.precision))),
        optimizer=config.optimizer,
        precision=config.precision,
        batch=batch,
        mesh=mesh,
        train_iters=10**6,
        device=device,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
