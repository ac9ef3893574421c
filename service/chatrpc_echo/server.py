"""The HTTP server of echo: socket, routes, API key, and the record of received requests.

`completions` and `directives` decide the response; this module never reads a message.
"""

import asyncio
import contextlib
import hashlib
import hmac
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from chatrpc_echo import completions, encoding, errors, responses, validation
from chatrpc_echo.directives import Behaviour, behaviour_of

_MOST_REQUESTS_KEPT = 1000
_MOST_COUNTERS_KEPT = 10_000
_LARGEST_REQUEST_BYTES = 256 * 1024 * 1024
_BACKLOG = 1024  # load tests open all their connections at once
# Longest wait for a request that arrives during the stop. Open responses are cancelled before this wait.
_SHUTDOWN_SECONDS = 0.2


@dataclass(slots=True, eq=False)
class Received:
    """One received request, and the outcome of its response."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case. If a header is repeated, the last value."""
    body: Any
    """The parsed JSON. None if the body is missing or invalid."""
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the caller disconnected before the response was complete."""
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the response, or the requested fault, was written completely."""


class Echo:
    """An OpenAI-compatible server: `async with Echo() as echo: echo.base_url`.

    `port` 0 selects a free port. `pace_seconds` is the pause before each chunk of streams without the directive `pace`.
    If `api_key` is set, requests require it as their bearer token. An instance belongs to one event loop, and can be
    restarted after a stop.
    """

    requests: deque[Received]
    """The last 1000 requests; the newest is at the right."""

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, pace_seconds: float = 0.0, api_key: str | None = None
    ) -> None:
        self.requests = deque(maxlen=_MOST_REQUESTS_KEPT)
        self._host = host
        self._port = port
        self._pace_seconds = pace_seconds
        self._api_key = api_key
        self._runner: web.AppRunner | None = None
        self._base_url = ""
        self._stopping = False
        self._open: set[asyncio.Task[Any]] = set()
        self._received = 0
        self._arrival = asyncio.Event()
        self._request_counts: OrderedDict[tuple[str, str | None], int] = OrderedDict()

    async def start(self) -> None:
        """Start to listen; return when connections are accepted.

        Raises OSError if the address cannot be bound, RuntimeError if the server is already started.
        """
        if self._runner is not None:
            raise RuntimeError("Echo is already started")
        self._stopping = False
        app = web.Application(client_max_size=_LARGEST_REQUEST_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.on_response_prepare.append(_remove_noise_headers)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=_BACKLOG).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._base_url = f"http://{host}:{runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        """Stop listening and cancel open responses within a second. Do nothing if the server is not started."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        self._stopping = True
        for task in self._open:
            task.cancel()
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def base_url(self) -> str:
        """`http://HOST:PORT/v1` with the actual port.

        Raises RuntimeError if the server is not started.
        """
        if self._runner is None:
            raise RuntimeError("Echo is not started")
        return self._base_url

    async def arrived(self, count: int = 1) -> Received:
        """Wait until `count` requests have been received in total, and return the last of them.

        Raises IndexError if that request is no longer kept.
        """
        while self._received < count:
            self._arrival.clear()
            await self._arrival.wait()
        return self.requests[count - 1 - (self._received - len(self.requests))]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        """Record the request, send the response, and record its outcome."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        received = None
        try:
            raw = await request.read()
            received = self._record(request, raw)
            response = await self._respond(request, received, raw)
            # Write the response here and not in aiohttp, so that `finished` and `disconnected` can be distinguished.
            await response.prepare(request)
            await response.write_eof()
            received.finished.set()
            return response
        except responses.AbortedError:
            assert received is not None
            received.finished.set()
            return web.Response()
        except asyncio.CancelledError:
            if received is not None and not self._stopping:
                received.disconnected.set()
            raise
        except ConnectionError:
            if received is not None:
                received.disconnected.set()
            return web.Response()
        finally:
            self._open.discard(task)

    def _record(self, request: web.Request, raw: bytes) -> Received:
        body = None
        with contextlib.suppress(orjson.JSONDecodeError):
            body = orjson.loads(raw)
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = Received(request.method, request.path, headers, body)
        self.requests.append(received)
        self._received += 1
        self._arrival.set()
        return received

    async def _respond(self, request: web.Request, received: Received, raw: bytes) -> web.StreamResponse:
        identity = hashlib.blake2b(raw, digest_size=12).hexdigest()
        headers = responses.common_headers(request, identity)
        try:
            self._authorise(received)
            route = _ROUTES.get((request.method, request.path))
            if route is None:
                raise errors.unknown_url(request.method, request.rel_url.raw_path)
            return await route(self, request, raw, identity, headers)
        except errors.ApiError as error:
            return responses.json_response(error.body, {**headers, **error.headers}, error.status)

    def _authorise(self, received: Received) -> None:
        if self._api_key is None:
            return
        scheme, _, key = received.headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if not hmac.compare_digest(key.encode("utf-8", "replace"), self._api_key.encode()):
            raise errors.rejected_key(key)

    async def _models(
        self, request: web.Request, raw: bytes, identity: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        return responses.json_response(encoding.models_body(), headers)

    async def _chat(
        self, request: web.Request, raw: bytes, identity: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        body = validation.validate(raw)
        behaviour = self._behaviour(body)
        await responses.pause(behaviour.delay)
        if behaviour.is_error:
            raise _error(body["model"], behaviour)
        if behaviour.reject_usage and "stream_options" in body:
            raise errors.ApiError(
                400, "Unknown parameter: 'stream_options'.", param="stream_options", code="unknown_parameter"
            )
        if behaviour.html:
            return responses.html_page(headers)
        completion = completions.compose(body, identity, behaviour)
        if not body.get("stream"):
            return await responses.send_unary(request, completion, behaviour, headers)
        return await responses.send_stream(
            request,
            completion,
            behaviour,
            headers,
            include_usage=bool(body.get("stream_options", {}).get("include_usage")),
            pace_seconds=self._pace_seconds if behaviour.pace is None else behaviour.pace,
        )

    def _behaviour(self, body: dict[str, Any]) -> Behaviour:
        """Return the behaviour for this request, which depends on `times`."""
        model = body["model"]
        behaviour = behaviour_of(model)
        if behaviour is None:
            raise errors.unknown_model(model)
        if behaviour.times is None:
            return behaviour
        caller = (model, body.get("user"))
        served = self._request_counts[caller] = self._request_counts.pop(caller, 0) + 1
        if len(self._request_counts) > _MOST_COUNTERS_KEPT:
            self._request_counts.popitem(last=False)
        return behaviour if served <= behaviour.times else behaviour.without_faults


_Route = Callable[[Echo, web.Request, bytes, str, dict[str, str]], Awaitable[web.StreamResponse]]
# Base URLs exist with and without /v1.
_ROUTES: dict[tuple[str, str], _Route] = {
    ("POST", "/v1/chat/completions"): Echo._chat,
    ("POST", "/chat/completions"): Echo._chat,
    ("GET", "/v1/models"): Echo._models,
    ("GET", "/models"): Echo._models,
}


def _error(model: str, behaviour: Behaviour) -> errors.ApiError:
    headers = {}
    if behaviour.retry_after is not None:
        headers["retry-after"] = f"{behaviour.retry_after:g}"
    if behaviour.retry_after_ms is not None:
        headers["retry-after-ms"] = str(behaviour.retry_after_ms)
    return errors.openai_error(
        model, status=behaviour.status, code=behaviour.code, message=behaviour.message, headers=headers
    )


async def _remove_noise_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Remove Server and Date: callers do not need them, and the date would make responses differ."""
    response.headers.popall("Server", None)
    response.headers.popall("Date", None)
