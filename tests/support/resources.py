"""The memory of a process."""

from pathlib import Path


def resident_mebibytes(pid: int) -> float:
    """Return the resident memory."""
    return _kibibytes(pid, "VmRSS") / 1024


def peak_mebibytes(pid: int) -> float:
    """Return the largest resident memory so far."""
    return _kibibytes(pid, "VmHWM") / 1024


def _kibibytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"no {name}")
