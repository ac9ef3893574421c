"""Requests, and the outcomes of calls."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb2
from google.rpc.status_pb2 import Status

from chatrpc.v1.chat_error_pb2 import UpstreamError
from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest


def request(text: str = "Hello!", model: str = "echo", **fields: Any) -> CreateChatCompletionRequest:
    """Return the shortest request."""
    return CreateChatCompletionRequest(model=model, messages=[ChatMessage(role="user", content=text)], **fields)


@dataclass
class Outcome:
    """The end of a call: the status, its details by type name, and the messages that had arrived."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any]
    trailers: dict[str, str | bytes]
    messages: list[Any] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """ErrorInfo.reason; empty for a success."""
        return "" if self.code is grpc.StatusCode.OK else str(self.details["ErrorInfo"].reason)


async def collect(stream: Any) -> list[Any]:
    """Return all messages of a stream that must succeed."""
    return [message async for message in stream]


async def failure(call: Any) -> Outcome:
    """Return the outcome of a call, unary or streaming, that must fail."""
    ended = await outcome(call)
    assert ended.code is not grpc.StatusCode.OK, "the call must fail"
    return ended


async def outcome(call: Any) -> Outcome:
    """Return the outcome of a call, unary or streaming."""
    messages: list[Any] = []
    try:
        if hasattr(call, "__aiter__"):
            async for chunk in call:
                messages.append(chunk)
        else:
            messages.append(await call)
    except grpc.aio.AioRpcError as error:
        return _failed(error, messages)
    return Outcome(grpc.StatusCode.OK, "", {}, {}, messages)


def _failed(error: grpc.aio.AioRpcError, chunks: list[Any]) -> Outcome:
    trailers = dict(error.trailing_metadata() or ())
    details: dict[str, Message] = {}
    if "grpc-status-details-bin" in trailers:
        status = Status.FromString(trailers["grpc-status-details-bin"])
        # rpc_status.from_call of every gRPC library rejects anything else.
        assert (status.code, status.message) == (error.code().value[0], error.details())
        kinds = [details_pb2.ErrorInfo, details_pb2.RetryInfo, details_pb2.BadRequest, details_pb2.QuotaFailure]
        for packed in status.details:
            for kind in (*kinds, details_pb2.RequestInfo, UpstreamError):
                message = kind()
                if packed.Unpack(message):
                    assert kind.DESCRIPTOR.name not in details, "a detail occurs twice"
                    details[kind.DESCRIPTOR.name] = message
        assert len(details) == len(status.details)
    travelling = {**trailers, "grpc-message": quote(error.details() or ""), "grpc-status": "13"}
    size = sum(
        # 32 more for each, as HTTP/2 counts a header list (RFC 9113, 6.5.2); bytes are sent as base64.
        32 + len(key) + (-(-len(value) // 3) * 4 if isinstance(value, bytes) else len(value))
        for key, value in travelling.items()
    )
    assert size <= 8192, f"{size} bytes of trailers are more than some clients accept"
    return Outcome(error.code(), error.details() or "", details, trailers, chunks)
