"""Connections over which the processes of a run see each other's end (megamesh.engine.liveness).

    keepers: rank 0, and the first rank on another host (rank 1 where there is one host)

    rank r ──▶ rank 0            every rank but 0
    rank r ──▶ second keeper     every rank but the keepers

The ports are ephemeral, found through the process group, and closed to newcomers before anything else happens: gloo and NCCL
connect in the same way, so hosts that can train together can do this. A stranger that knocks is turned away by a secret.
"""

import ipaddress
import os
import secrets
import socket
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")
MEET_SECONDS = 60.0
HELLO_SECONDS = 5.0
SECRET_BYTES, RANK_BYTES = 16, 4
ANSWER_WITHIN = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 30, socket.TCP_KEEPCNT: 8}
"""A host is lost when its kernel has answered nothing for 60 + 8·30 seconds: 5 minutes."""


@dataclass(frozen=True)
class Meeting:
    """Who sits where, and this process's open connections to others, by rank."""

    hosts: list[str]
    keepers: tuple[int, int]
    connections: dict[int, socket.socket]


@dataclass(frozen=True)
class _Seat:
    host: str
    address: str
    port: int
    secret: bytes


def meet() -> Meeting | str:
    """Connect every process with the keepers; where that fails anywhere, the reason, the same on all. A collective."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    with closing(_door(num_ranks)) as door:
        own = _Seat(socket.gethostname(), _own_address(), door.getsockname()[1], secrets.token_bytes(SECRET_BYTES))
        seats = _gathered(own)
        keepers = (0, next((r for r, seat in enumerate(seats) if seat.host != seats[0].host), 1))
        connections: dict[int, socket.socket] = {}
        try:
            for position, keeper in enumerate(keepers):
                if rank not in keepers[: position + 1]:
                    connections[keeper] = _knock(seats[keeper], rank)
            if rank in keepers:
                guests = set(range(num_ranks)) - set(keepers[: keepers.index(rank) + 1])
                connections |= _let_in(door, guests, own.secret)
            problem = None
        except OSError as error:
            problem = f"rank {rank} on {own.host}: {error}"
    problems = [found for found in _gathered(problem) if found is not None]
    if not problems:
        return Meeting([seat.host for seat in seats], keepers, connections)
    for connection in connections.values():
        connection.close()
    return problems[0]


def _gathered(own: T) -> list[T]:
    everyones: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(everyones, own)
    return everyones


def _door(num_ranks: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=num_ranks)
    return socket.create_server(("", 0), backlog=num_ranks)


def _own_address() -> str:
    """Where others reach this host: its end of the way to MASTER_ADDR, or that name itself where it means this host.

    Rank 0 need not live there: under torchrun with a c10d rendezvous, it is the host of the rendezvous.
    """
    master = os.environ["MASTER_ADDR"]
    for family, kind, _, _, where in socket.getaddrinfo(master, int(os.environ["MASTER_PORT"]), type=socket.SOCK_DGRAM):
        with suppress(OSError), socket.socket(family, kind) as probe:
            probe.connect(where)  # of a datagram socket: chooses a route, sends nothing
            own: str = probe.getsockname()[0]
            return master if ipaddress.ip_address(own).is_loopback else own
    return master


def _knock(seat: _Seat, rank: int) -> socket.socket:
    try:
        connection = socket.create_connection((seat.address, seat.port), timeout=MEET_SECONDS)
    except OSError as error:
        raise OSError(f"no connection to {seat.host} at {seat.address}, port {seat.port}: {error}") from error
    connection.sendall(seat.secret + rank.to_bytes(RANK_BYTES))
    return _kept_alive(connection)


def _let_in(door: socket.socket, guests: set[int], secret: bytes) -> dict[int, socket.socket]:
    connections: dict[int, socket.socket] = {}
    deadline = time.monotonic() + MEET_SECONDS
    while missing := guests - connections.keys():
        door.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            connection, _ = door.accept()
        except TimeoutError:
            raise OSError(f"ranks {sorted(missing)} have not connected within {MEET_SECONDS:.0f} seconds") from None
        rank = _hello(connection, secret)
        if rank in missing:
            connections[rank] = _kept_alive(connection)
        else:
            connection.close()
    return connections


def _hello(connection: socket.socket, secret: bytes) -> int | None:
    """The rank of who knocked; None for a stranger."""
    connection.settimeout(HELLO_SECONDS)
    said = b""
    try:
        while len(said) < SECRET_BYTES + RANK_BYTES:
            if not (piece := connection.recv(SECRET_BYTES + RANK_BYTES - len(said))):
                return None
            said += piece
    except OSError:
        return None
    return int.from_bytes(said[SECRET_BYTES:]) if secrets.compare_digest(said[:SECRET_BYTES], secret) else None


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ANSWER_WITHIN.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setblocking(False)
    return connection
