"""`python -m chatrpc_server` and the console script."""

import sys

from chatrpc_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
