"""How much memory there is, and how much this process has used. Linux: /proc and cgroups.

Both are estimates for a choice between ways of working; nothing is reserved.
"""

from pathlib import Path

_UNLIMITED = 2**60  # what a cgroup of version 1 without a limit says, and more
_VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def available_bytes(root: Path = Path("/")) -> int:
    """What a process may still allocate: the machine's MemAvailable, or less where a cgroup above this process allows less."""
    kilobytes = _fields(root / "proc/meminfo")["MemAvailable"]
    groups = root / "sys/fs/cgroup"
    left = [kilobytes * 1024]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += _left_in(groups, path, _VERSION_2)
        elif "memory" in controllers.split(","):
            left += _left_in(groups / "memory", path, _VERSION_1)
    return max(min(left), 0)


def peak_bytes() -> int:
    """The largest resident set of this process so far. Unlike getrusage's, it does not begin with that of the process that started it."""
    return _fields(Path("/proc/self/status"))["VmHWM"] * 1024


def _left_in(mount: Path, path: str, files: tuple[str, str, tuple[str, ...]]) -> list[int]:
    """What each group from `path` up to the mount still allows; cached files, which give way, count as free."""
    limit_file, usage_file, cached_keys = files
    here = Path(path.lstrip("/"))
    found = []
    for folder in (mount / part for part in (here, *here.parents)):
        limit, usage = _lines(folder / limit_file), _lines(folder / usage_file)
        if limit and usage and limit[0].isdecimal() and int(limit[0]) < _UNLIMITED:
            stat = _fields(folder / "memory.stat")
            found.append(int(limit[0]) - int(usage[0]) + sum(stat.get(key, 0) for key in cached_keys))
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _fields(file: Path) -> dict[str, int]:
    """Numbers by name, from lines such as `MemAvailable:  1234 kB`."""
    words = [line.split() for line in _lines(file)]
    return {name.rstrip(":"): int(value) for name, value, *_ in (w for w in words if len(w) > 1) if value.isdecimal()}
