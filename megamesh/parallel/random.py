"""Random streams keyed by what they are for, never carried along.

    derive_seed("parameter", seed, name)        a parameter's initial values: the same whatever the layout
    derive_seed("dropout", seed, first_sample)  dropout of one micro-batch: the same after a resume, whatever came before

A stream that is a pure function of its keys needs no state in the checkpoint, and two ranks that ask for the same keys
get the same stream. Tensor-parallel ranks share the micro-batch's stream, so what they all hold is dropped alike; what each holds
a part of is dropped under `split_stream`, from a stream of the rank's own that follows from the shared one. torch.compile cannot follow a
change of streams, and ends its graph there.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._compile import _disable_dynamo as not_compiled


def derive_seed(*keys: str | int) -> int:
    """A 63-bit seed from keys: stable over processes, machines and Python versions; types count (1 differs from "1")."""
    digest = hashlib.blake2b(digest_size=8)
    for key in keys:
        text = f"{type(key).__name__}:{key}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def keyed_generator(*keys: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream that the keys name."""
    return torch.Generator("cpu").manual_seed(derive_seed(*keys))


def seed_micro_batch(seed: int, first_sample: int) -> None:
    """Set the process's random streams (dropout) for the micro-batch whose first sample has this global index."""
    value = derive_seed("micro_batch", seed, first_sample)
    random.seed(value)
    torch.manual_seed(value)


@not_compiled
@contextmanager
def split_stream(rank: int) -> Iterator[None]:
    """Inside, the process's torch streams are this rank's own; afterwards the shared ones go on.

    One number is drawn from the CPU's shared stream, so that each use differs, and activation checkpointing, which replays that stream,
    replays this one too.
    """
    use = int(torch.randint(2**62, (), device="cpu"))
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(derive_seed("split", use, rank))
        yield
