"""Files that change while the service runs: it looks at them now and then.

Looking, not being told: Kubernetes swaps a link above mounted files, of which inotify says nothing.
"""

from pathlib import Path

Stamp = tuple[int, int, int]


def stamp(file: Path) -> Stamp:
    """Another one for another content, through links; zeros for no file."""
    try:
        stat = file.stat()
    except OSError:
        return (0, 0, 0)  # what is wrong with it, reading it tells
    # Of all times this one notices whatever happens to a file, also that it has become readable.
    return (stat.st_ino, stat.st_size, stat.st_ctime_ns)
