"""The command `chatrpc`. Silences gRPC's core before its import, because it writes to standard error by itself."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
