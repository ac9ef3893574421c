"""The memory that this process has allocated, among it the buffers of gRPC's core, which Python does not show."""

import ctypes
import resource
from collections.abc import Callable

_PEAK_UNIT_BYTES = 1024


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2` (mallinfo(3)), since glibc 2.33."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


def _create() -> Callable[[], int]:
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # another C library
        # The peak of the resident memory: it shows growth too, but never a decrease.
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT_BYTES
    mallinfo2.restype = _Mallinfo2

    def allocated() -> int:
        info = mallinfo2()
        return int(info.uordblks + info.hblkhd)  # from the heaps, and mapped on their own

    return allocated


allocated_bytes = _create()
"""Return the bytes that native code has allocated and not freed. A call takes about 1 µs."""
