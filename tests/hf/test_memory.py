"""Memory that may still be used: the machine's, or a cgroup's where that is less."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401 - for its size

from megamesh.hf.memory import available_bytes, peak_bytes

GIB = 2**30


def machine(root, groups: dict[str, str], membership: str) -> None:
    files = groups | {
        "proc/meminfo": "MemTotal: 99999999 kB\nMemAvailable:   8388608 kB\nHugePages_Total: 0\n",
        "proc/self/cgroup": membership,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def version_2(folder: str, limit: str) -> dict[str, str]:
    stat = f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\n"
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": f"{2 * GIB}\n", f"{folder}/memory.stat": stat}


@pytest.mark.parametrize(
    ("groups", "membership", "expected"),
    [
        ({}, "", 8 * GIB),
        ({}, "0::/\n", 8 * GIB),
        (version_2("sys/fs/cgroup", "max\n"), "0::/\n", 8 * GIB),
        (version_2("sys/fs/cgroup", f"{4 * GIB}\n"), "0::/\n", 2.75 * GIB),
        (version_2("sys/fs/cgroup", f"{4 * GIB}\n"), "0::/not/shown/here\n", 2.75 * GIB),
        (
            version_2("sys/fs/cgroup/user/job", "max\n") | version_2("sys/fs/cgroup/user", f"{3 * GIB}\n"),
            "0::/user/job\n",
            1.75 * GIB,
        ),
        (version_2("sys/fs/cgroup/a", f"{GIB}\n"), "0::/a\n", 0),
        (
            {
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{5 * GIB}\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{3 * GIB}\n",
                "sys/fs/cgroup/memory/job/memory.stat": f"total_inactive_file {GIB}\ntotal_active_file 0\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{30 * GIB}\n",
            },
            "12:cpuset:/job\n4:memory:/job\n0::/job\n",
            3 * GIB,
        ),
    ],
)
def test_the_least_limit_counts_and_cached_files_give_way(groups, membership: str, expected, tmp_path: Path) -> None:
    machine(tmp_path, groups, membership)
    assert available_bytes(tmp_path) == expected


GROWS = """
from megamesh.hf.memory import peak_bytes
before = peak_bytes()
block = b"1" * 2**27
during = peak_bytes()
del block
print(before, during, peak_bytes())
"""


def test_the_peak_is_this_processs_own_and_never_falls() -> None:
    assert peak_bytes() > 2**27, "torch and transformers are loaded here, and not in the process below"
    answer = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True, check=True).stdout
    before, during, after = map(int, answer.split())
    assert before < 2**26 and 0.9 * 2**27 < during - before < 1.5 * 2**27 and after > during - 2**22
