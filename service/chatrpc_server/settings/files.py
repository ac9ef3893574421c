"""Detects changed files: settings and certificates that are replaced while the service runs."""

from pathlib import Path

Fingerprint = tuple[int, int, int]


def fingerprint(file: Path) -> Fingerprint:
    """Return a value that changes with the file's content, through symbolic links; zeros if there is no file."""
    try:
        stat = file.stat()
    except OSError:
        return (0, 0, 0)  # reading the file reports the cause
    # ctime, because it also changes when only the permissions do: a file may become readable.
    return (stat.st_ino, stat.st_size, stat.st_ctime_ns)
