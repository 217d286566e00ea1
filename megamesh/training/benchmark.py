"""How fast a model trains, beside others of the same compute depth: tokens/s, TFLOP/s, MFU and peak memory.

    parent ──"steps n"──▶ processes of candidate A   (a process group of their own, a TrainingEngine, random tokens)
           ──"steps n"──▶ processes of candidate B      in turn, round after round: A B C, A B C, …
           ◀──seconds──

A candidate lives in processes of its own, so that its peak memory is its own: what the device's allocator held at most, or on
a CPU the process's largest resident set. While one is timed the others wait. Figures are medians over rounds, ratios are
taken within each round, so that a machine whose speed drifts changes both sides alike.
"""

import multiprocessing
import os
import resource
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_any
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.config.batch import resolve_batch
from megamesh.config.sections import RecursionConfig, RunConfig
from megamesh.errors import MegaMeshError, TrainingError
from megamesh.model.build import build_model, torch_dtype
from megamesh.model.flops import flops_per_token
from megamesh.training.throughput import device_peak_tflops

Kind = Literal["config", "base", "mesh", "vanilla", "transformers"]
START_TIMEOUT_SECONDS = 600
STEP_TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Candidate:
    """A named model to time, and what it is made from."""

    name: str
    kind: Kind
    config: RunConfig
    vocab_size: int
    """Padded."""

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs of one token at compute depth; transformers' model is a plain stack of that depth."""
        recursion = RecursionConfig() if self.kind == "transformers" else self.config.recursion
        return flops_per_token(self.config.model, recursion, self.vocab_size).training


@dataclass(frozen=True)
class Measurement:
    """What one candidate did. Seconds per optimizer step by round; memory is the largest of its processes."""

    candidate: Candidate
    num_parameters: int
    tokens_per_step: int
    num_devices: int
    seconds_per_step: list[float]
    peak_bytes: int
    peak_tflops: float | None

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds_per_step)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.median_seconds

    @property
    def tflops_per_device(self) -> float:
        return self.tokens_per_second * self.candidate.flops_per_token / self.num_devices / 1e12

    def ratio_to(self, other: "Measurement") -> float:
        """Speed as a multiple of another candidate's: the median of the ratios of each round."""
        pairs = zip(other.seconds_per_step, self.seconds_per_step, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def make_candidate(kind: Kind, config: RunConfig, vocab_size: int) -> Candidate:
    """The configuration itself, or another model of the same compute depth and width."""
    recursion = config.recursion
    if kind == "vanilla":
        recursion = RecursionConfig()
    elif kind in ("base", "mesh"):
        if recursion.recursion is None:
            raise TrainingError(
                f"the configuration has no recursion to compare with {kind}; set recursion, or leave --against {kind} out"
            )
        recursion = recursion.model_copy(update={"recursion_scheme": kind})
    elif kind == "transformers" and (config.model.norm != "layernorm" or config.model.gated):
        raise TrainingError(
            f"norm={config.model.norm}, activation={config.model.activation}: transformers' GPTNeoX has layernorm and a plain MLP; "
            "leave --against transformers out"
        )
    own = recursion.recursion and f"{recursion.recursion} {recursion.recursion_scheme}"
    name = "transformers GPTNeoX" if kind == "transformers" else own or "vanilla"
    return Candidate(name, kind, config.model_copy(update={"recursion": recursion}), vocab_size)


def benchmark(
    candidates: Sequence[Candidate], *, num_processes: int, num_rounds: int, steps_per_round: int, num_warmup_steps: int
) -> list[Measurement]:
    """Time every candidate `num_rounds` times, in turn. Raises TrainingError with the text of a process that failed."""
    groups: list[_Group] = []
    try:
        for candidate in candidates:
            groups.append(_Group(candidate, num_processes))
            groups[-1].wait_until_built()
            groups[-1].steps(num_warmup_steps)
        seconds: list[list[float]] = [[] for _ in groups]
        for _ in range(num_rounds):
            for group, times in zip(groups, seconds, strict=True):
                times.append(group.steps(steps_per_round) / steps_per_round)
        return [group.measurement(times) for group, times in zip(groups, seconds, strict=True)]
    finally:
        for group in groups:
            group.stop()


class _Group:
    """The processes of one candidate."""

    def __init__(self, candidate: Candidate, num_processes: int):
        self.candidate = candidate
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, candidate, rank, num_processes, port), daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def wait_until_built(self) -> None:
        self.facts = self._answers(START_TIMEOUT_SECONDS)[0]

    def steps(self, count: int) -> float:
        """Seconds that `count` steps took on the slowest process."""
        seconds: list[float] = self._ask("steps", count)
        return max(seconds)

    def measurement(self, seconds_per_step: list[float]) -> Measurement:
        peak_bytes = max(self._ask("memory"))
        num_parameters, tokens_per_step, peak_tflops = self.facts
        return Measurement(
            self.candidate,
            num_parameters,
            tokens_per_step,
            len(self.processes),
            seconds_per_step,
            peak_bytes,
            peak_tflops,
        )

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def _ask(self, *request: Any) -> list:
        for connection in self.connections:
            connection.send(request)
        return self._answers(STEP_TIMEOUT_SECONDS)

    def _answers(self, timeout_seconds: float) -> list:
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
    """One process: build the engine, then answer ("steps", n) with seconds and ("memory",) with bytes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max((os.cpu_count() or 1) // world_size, 1))
    try:
        timed = _TimedEngine(candidate)
        connection.send(timed.facts)
        while True:
            kind, *arguments = connection.recv()
            connection.send(timed.steps(*arguments) if kind == "steps" else timed.peak_bytes())
    except EOFError:
        return
    except MegaMeshError as error:
        connection.send(TrainingError(str(error)))
    except Exception as error:  # whatever it is, the parent must hear of it
        connection.send(TrainingError(f"{type(error).__name__}: {error}"))


class _TimedEngine:
    """A candidate's engine, training on random tokens."""

    def __init__(self, candidate: Candidate):
        from megamesh.engine.distributed import init_distributed  # DeepSpeed is needed only in these processes
        from megamesh.engine.engine import TrainingEngine
        from megamesh.parallel.mesh import ProcessMesh

        config = candidate.config
        self.device = init_distributed()
        mesh = ProcessMesh.build(self.device.type)
        self.batch = resolve_batch(config.batch, mesh.size("dp"))
        module = _module(candidate, self.device)
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        tokens = self.batch.train_batch_size * config.model.sequence_length
        peak = config.log.peak_tflops or device_peak_tflops(self.device, config.precision)
        self.facts = (num_parameters, tokens, peak)
        self.engine = TrainingEngine(
            module,
            optimizer=config.optimizer,
            precision=config.precision,
            batch=self.batch,
            mesh=mesh,
            train_iters=10**6,
            device=self.device,
        )
        shape = (self.batch.micro_batch_size, config.model.sequence_length + 1)
        ids = torch.randint(0, candidate.vocab_size, shape, device=self.device)
        self.inputs = (ids[:, :-1], ids[:, 1:], torch.ones(shape[0], shape[1] - 1, device=self.device))

    def steps(self, count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            self.engine.train_step([self.inputs] * self.batch.gradient_accumulation_steps)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _TransformersLoss(nn.Module):
    """transformers' model as the engine wants it: (tokens, labels, mask) → mean loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor, loss_mask_BS: Tensor) -> Tensor:
        logits = self.model(input_ids=tokens_BS, use_cache=False).logits.float().flatten(0, 1)
        nll = F.cross_entropy(logits, labels_BS.flatten(), reduction="none")
        return (nll * loss_mask_BS.flatten()).sum() / loss_mask_BS.sum()


def _module(candidate: Candidate, device: torch.device) -> nn.Module:
    config = candidate.config
    dtype = torch_dtype(config.precision)
    if candidate.kind != "transformers":
        return build_model(
            config.model, config.recursion, config.training, candidate.vocab_size, device=device, dtype=dtype
        )
    from transformers import AutoModelForCausalLM

    from megamesh.hf.configs import SpecialTokens, to_hf_config

    theirs = to_hf_config("gpt_neox", config.model, RecursionConfig(), candidate.vocab_size, SpecialTokens(), "float32")
    model = AutoModelForCausalLM.from_config(theirs, attn_implementation="sdpa")
    if config.training.checkpoint_activations:
        model.gradient_checkpointing_enable()
    return _TransformersLoss(model.to(device=device, dtype=dtype))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
