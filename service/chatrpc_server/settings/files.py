"""Reads files of settings, and detects their changes, because they are replaced while the service runs."""

import os
import stat
from pathlib import Path

Fingerprint = tuple[int, int, int]

MAX_BYTES = 4 << 20
"""Size limit of a file that a setting names. Lists of certificate authorities have about 300 KB."""


class UnusableFile(OSError):
    """A file that is no regular file or too large. Its `strerror` gives the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


def read(file: str | Path, limit_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file, through symbolic links.

    Never waits, because the read of a FIFO or a terminal would outlast the service. Raises OSError if the file cannot
    be read, is no regular file or is larger than the limit, and ValueError if the path is invalid.
    """
    _require_regular(os.stat(file))  # before the file is opened, because the open of a device can have effects
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor))  # again, because it could have been replaced
        content = bytearray()
        while part := os.read(descriptor, min(limit_bytes + 1 - len(content), 1 << 20)):
            content += part
            if len(content) > limit_bytes:
                raise UnusableFile(f"Larger than {limit_bytes} bytes")
        return bytes(content)
    finally:
        os.close(descriptor)


class SettingFileError(OSError):
    """A file that cannot be read. The message names its setting."""

    def __str__(self) -> str:
        return str(self.strerror)


def read_for(setting: str, file: Path) -> bytes:
    """Return the content of a setting's file as `read` does. Raises `SettingFileError`."""
    try:
        return read(file)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else 0
        problem = f"{setting}: {file}: cannot be read: {reason(error)}; name a readable file"
        raise SettingFileError(number, problem) from None


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UnusableFile("Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFile("Is not a regular file")


def reason(error: Exception) -> str:
    """Return the cause of a failed read, without the path and the bytes that exceptions quote."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "not UTF-8 text" if isinstance(error, UnicodeError) else "not a valid path"


def fingerprint(file: Path) -> Fingerprint:
    """Return a value that changes with the file's content, through symbolic links; zeros if there is no file."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return (0, 0, 0)  # no error here, because the code that reads the file reports it
    # ctime, because it also changes with the permissions, and a file can become readable.
    return (status.st_ino, status.st_size, status.st_ctime_ns)
