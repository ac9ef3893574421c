"""The memory of a process."""

import resource
from pathlib import Path


def resident_mebibytes(pid: int) -> float:
    """Return the resident memory."""
    return _kibibytes(pid, "VmRSS") / 1024


def peak_mebibytes(pid: int) -> float:
    """Return the largest resident memory so far."""
    return _kibibytes(pid, "VmHWM") / 1024


def limit_address_space(pid: int, more_bytes: int) -> None:
    """Let the allocations of a running process fail once its address space has grown so much."""
    limit = (int(_kibibytes(pid, "VmSize")) << 10) + more_bytes
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def _kibibytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"no {name}")
