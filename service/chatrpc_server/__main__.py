"""`python -m chatrpc_server` and the console script."""

import os
import signal
import sys


def main() -> int:
    """Run one command; return the exit code."""
    _open_standard_streams()
    # Handle SIGTERM during the other imports, which take a second, because the command handles it only later. In a
    # container this is process 1, to which the kernel does not deliver a signal with the default handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    # Ignore SIGHUP from the start, because its default action ends the process; a serving one logs it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        from chatrpc_server import cli

        return cli.main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _open_standard_streams() -> None:
    """Open those of stdin, stdout and stderr that are closed, because other files would get their descriptors."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor is this one
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
