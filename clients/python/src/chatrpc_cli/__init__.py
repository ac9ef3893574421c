"""The command `chatrpc`. gRPC's core, when it is imported, asks here whether to write to standard error by itself."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
