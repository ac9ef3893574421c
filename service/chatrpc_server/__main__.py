"""`python -m chatrpc_server` and the console script."""

import os
import signal
import sys


def main() -> int:
    """Run one command; return the exit code."""
    # Handle SIGTERM during the other imports, which take a second, because the command handles it only later. In a
    # container this is process 1, to which the kernel does not deliver a signal with the default handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        from chatrpc_server import cli

        return cli.main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
