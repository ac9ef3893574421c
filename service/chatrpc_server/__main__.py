"""`python -m chatrpc_server` and the console script."""

import os
import signal
import sys


def main() -> int:
    """Runs one command; returns the exit code."""
    # Until there is something to stop: to process 1, as which a container runs this, the kernel delivers no signal
    # that is left at its default, and the rest of the imports takes a second.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        from chatrpc_server import cli

        return cli.main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
