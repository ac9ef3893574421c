"""A scripted load that changes every metric, and its upstream."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import grpc

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from support import Exchange, request
from support.faults import FAULTS, SOUND, Faults, ResponseWriter, chunk, event

MODELS = ["gpt-4o", "gpt-4o-mini"]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACED = (("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01"),)
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 20,
    "total_tokens": 50,
    "prompt_tokens_details": {"cached_tokens": 10},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
LEFT = ("x-ratelimit-remaining-requests: 99", "x-ratelimit-remaining-tokens: 9999")


async def _response(response: ResponseWriter) -> None:
    """Send a valid response with every kind of token."""
    await response.head("", *LEFT)
    if response.streaming:
        await response.body(
            chunk("0 "), chunk("1 ", "stop"), event({"choices": [], "usage": USAGE}), b"data: [DONE]\n\n"
        )
    else:
        message = {"index": 0, "message": {"role": "assistant", "content": "0 1 "}, "finish_reason": "stop"}
        await response.body(json.dumps({"choices": [message], "usage": USAGE}).encode())
    await response.end()


async def _no_usage(response: ResponseWriter) -> None:
    await response.head()
    if response.streaming:
        await response.body(chunk("0 ", "stop"), b"data: [DONE]\n\n")
    else:
        message = {"index": 0, "message": {"role": "assistant", "content": "0 "}, "finish_reason": "stop"}
        await response.body(json.dumps({"choices": [message]}).encode())
    await response.end()


async def _bad_request(response: ResponseWriter) -> None:
    await response.status("400 Bad Request", b'{"error": {"message": "No.", "type": "invalid_request_error"}}')


RESPONSES = {**dict.fromkeys(MODELS, _response), "unlisted": _response, "no-usage": _no_usage, "400": _bad_request}
FAILING = (
    ("400", "401", "429"),
    ("500", "503-then-ok", "error-in-stream"),
    ("garbage-event", "truncated", "html"),
    ("silent-after-chunks", "silent-before-headers"),
)
"""Models called at the same time, because they take long; together within the limit of calls in flight."""


class Upstream(Faults):
    """The faulty upstream with further models for this load."""

    def choose(self, exchange: Exchange) -> Callable[[Exchange], Awaitable[None]]:
        """Return the response for the exchange's model, as `Faults.choose` does."""
        model = json.loads(exchange.body)["model"]
        if model in SOUND or model in FAULTS:
            return super().choose(exchange)
        return lambda exchange: RESPONSES[model](ResponseWriter(exchange, 1))


@contextmanager
def upstream() -> Iterator[str]:
    """Run the upstream in a thread; yield its base URL."""
    ready, loop, done = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    base_url = ""

    async def serve() -> None:
        nonlocal base_url
        async with Upstream() as scripted:
            base_url = scripted.base_url
            ready.set()
            await done.wait()
        if exchanges := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(exchanges, timeout=10)  # they finish when the service closes its connections

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert ready.wait(10), "the upstream did not start"
        yield base_url
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


class Load:
    """Player of calls over a channel, which counts them."""

    AT_ONCE = 8
    """The service's limit of calls in flight, which the load exceeds once per round."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.calls = 0
        self._stub: Any = ChatCompletionServiceStub(channel)

    def play(self) -> None:
        """Play one round, which takes about three seconds."""
        for model in (*MODELS, "unlisted", "no-usage", "ok") * 2:
            _end(self._unary(model), self._stream(model))
        for models in FAILING:
            _end(*[begin(model, timeout=1.2) for model in models for begin in (self._unary, self._stream)])
        _end(self._unary("gpt-4o", timeout=0.15))  # below the minimum, but enough to arrive
        _end(self._unary("silent-before-headers", timeout=0.3), self._stream("silent-after-chunks", timeout=0.3))
        self._cancel()
        _end(*[self._unary("long") for _ in range(self.AT_ONCE + 2)])  # above the limit

    def _cancel(self) -> None:
        stream = self._begin_stream("long", 10)
        next(stream)
        stream.cancel()

    def _unary(self, model: str, timeout: float = 10) -> Callable[[], object]:
        self.calls += 1
        call = self._stub.CreateChatCompletion.future(request(model=model), timeout=timeout, metadata=TRACED)
        end: Callable[[], object] = call.exception
        return end

    def _stream(self, model: str, timeout: float = 10) -> Callable[[], object]:
        return partial(list, self._begin_stream(model, timeout))

    def _begin_stream(self, model: str, timeout: float) -> Any:
        self.calls += 1
        return self._stub.CreateChatCompletionStream(request(model=model), timeout=timeout, metadata=TRACED)


def _end(*calls: Callable[[], object]) -> None:
    """Wait until all calls have finished, with any status."""
    for call in calls:
        with suppress(grpc.RpcError):
            call()
