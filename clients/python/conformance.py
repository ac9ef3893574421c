"""The Python driver of clients/conformance: reads one call per line, writes one result per line."""

import json
import sys
import time
from base64 import b64decode, b64encode
from threading import Timer
from typing import Any

import grpc

from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_client.channel import OPTIONS
from chatrpc_client.errors import from_rpc_error


def main() -> int:
    """Make all calls."""
    if len(sys.argv) != 2:
        print("usage: conformance.py HOST:PORT < calls", file=sys.stderr)
        return 2
    with grpc.insecure_channel(sys.argv[1], OPTIONS) as channel:
        stub = ChatCompletionServiceStub(channel)
        for line in sys.stdin:
            print(json.dumps(_result(stub, json.loads(line))), flush=True)
    return 0


def _result(stub: ChatCompletionServiceStub, call: dict[str, Any]) -> dict[str, Any]:
    request = CreateChatCompletionRequest.FromString(b64decode(call["request"]))
    options: dict[str, Any] = {
        "timeout": call["timeout_ms"] / 1000 or None,
        "metadata": tuple(call["metadata"].items()),
    }
    result: dict[str, Any] = {
        "name": call["name"],
        "code": "OK",
        "message": "",
        "reason": "",
        "mapped_reason": "",
        "retry_after_ms": None,
        "fields": [],
        "upstream_status": None,
        "request_id": "",
        "messages": [],
    }
    try:
        if call["method"] == "CreateChatCompletion":
            response, rpc = stub.CreateChatCompletion.with_call(request, **options)
            _add(result, response)
        else:
            rpc = stub.CreateChatCompletionStream(request, **options)
            if "cancel_after_ms" in call:
                Timer(call["cancel_after_ms"] / 1000, rpc.cancel).start()
            _read(rpc, call, result)
        result["request_id"] = dict(rpc.initial_metadata()).get("x-request-id", "")
    except grpc.RpcError as error:
        failed = from_rpc_error(error)
        result |= {
            "code": failed.code.name,
            "message": failed.message,
            "reason": failed.reason,
            "mapped_reason": failed.mapped_reason,
            "retry_after_ms": None if failed.retry_after is None else round(failed.retry_after * 1000),
            "fields": failed.fields,
            "upstream_status": failed.upstream_status,
            "request_id": failed.request_id,
        }
    return result


def _read(rpc: Any, call: dict[str, Any], result: dict[str, Any]) -> None:
    while True:
        time.sleep(call.get("pause_ms", 0) / 1000)
        try:
            _add(result, next(rpc))
        except StopIteration:
            return
        if len(result["messages"]) == call.get("cancel_after"):
            rpc.cancel()


def _add(result: dict[str, Any], message: Any) -> None:
    result["messages"].append(b64encode(message.SerializeToString()).decode())


if __name__ == "__main__":
    sys.exit(main())
