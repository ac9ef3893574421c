"""Detects changes of files, because settings and certificates are replaced while the service runs."""

from pathlib import Path

Fingerprint = tuple[int, int, int]


def fingerprint(file: Path) -> Fingerprint:
    """Return a value that changes with the file's content, through symbolic links; zeros if there is no file."""
    try:
        stat = file.stat()
    except OSError:
        return (0, 0, 0)  # no error here, because the code that reads the file reports it
    # ctime, because it also changes with the permissions, and a file can become readable.
    return (stat.st_ino, stat.st_size, stat.st_ctime_ns)
