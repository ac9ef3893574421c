"""The budget for the messages that one process holds in memory.

Without it the sum of permitted messages could exceed the memory limit, and a failed allocation in native code ends the
process.
"""

import sys

from chatrpc_server.core.errors import Overloaded


class ByteBudget:
    """The bytes of all messages in flight, and their limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    @property
    def free_bytes(self) -> int:
        """The bytes that can be taken now."""
        return self.limit_bytes - self.used_bytes

    def take(self, size_bytes: int) -> None:
        """Add a message. Raises `Overloaded`."""
        if size_bytes > self.free_bytes:
            raise Overloaded(
                f"this message of {size_bytes} bytes and the {self.used_bytes} bytes in flight exceed"
                f" limits.max_bytes_in_flight, which is {self.limit_bytes}; retry later",
                limit="bytes",
            )
        self.used_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Remove bytes that were taken."""
        self.used_bytes -= size_bytes


UNLIMITED = ByteBudget(sys.maxsize)
