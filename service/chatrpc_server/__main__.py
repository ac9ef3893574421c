"""`python -m chatrpc_server` and the console script."""

import os
import signal
import sys


def main() -> int:
    """Run one command; return the exit code."""
    # Until the command handles SIGTERM itself, because the other imports take a second. In a container this is process
    # 1, and the kernel does not deliver a signal to process 1 if its handler is the default.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        from chatrpc_server import cli

        return cli.main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
