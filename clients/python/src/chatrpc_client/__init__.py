"""Client of chatrpc: a typed, streaming chat API over gRPC with the keyword arguments of OpenAI's SDK.

from chatrpc_client import Client

with Client("127.0.0.1:50051") as client:
    with client.stream(model="echo", messages=[{"role": "user", "content": "Hello!"}]) as stream:
        for piece in stream.text_stream():
            print(piece, end="", flush=True)
    print(stream.snapshot.usage)
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
from chatrpc_client.metadata import Metadata
from chatrpc_client.snapshot import Snapshot

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
    "Metadata",
    "NotFoundError",
    "PermissionDeniedError",
    "PreconditionError",
    "RateLimitError",
    "Snapshot",
    "Stream",
    "UnavailableError",
    "UnimplementedError",
]
