"""chatrpc-server: a gRPC service in front of any OpenAI-compatible chat completions endpoint."""

__version__ = "0.1.0"
