"""chatrpc from Python: a typed, streaming chat API over gRPC, with keyword arguments that read like OpenAI's SDK.

from chatrpc_client import Client

with Client("127.0.0.1:50051") as client:
    with client.stream(model="echo", messages=[{"role": "user", "content": "Hello!"}]) as stream:
        for piece in stream.texts():
            print(piece, end="", flush=True)
    print(stream.so_far.usage)
"""

from chatrpc_client.client import AsyncClient, AsyncStream, Client, Stream
from chatrpc_client.errors import (
    CancelledError,
    ChatError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    RateLimitError,
    UnavailableError,
    UnimplementedError,
)
from chatrpc_client.transcript import Transcript

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "AsyncStream",
    "CancelledError",
    "ChatError",
    "Client",
    "DeadlineError",
    "InternalError",
    "InvalidRequestError",
    "NotFoundError",
    "PermissionDeniedError",
    "PreconditionError",
    "RateLimitError",
    "Stream",
    "Transcript",
    "UnavailableError",
    "UnimplementedError",
]
