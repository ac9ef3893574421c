"""Command `demo`: runs the whole service in one process, calls it over gRPC, and prints responses and metrics."""

import logging
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from urllib.request import ProxyHandler, build_opener

import grpc

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc.v1.chat_response_pb2 import Usage
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_server.process.lifecycle import stop_signals
from chatrpc_server.server import Server
from chatrpc_server.settings import ModelSettings, Settings, upstream_variables

_ECHO = "echo"
"""Name of the embedded upstream."""
_PACE_SECONDS = 0.04
_TIMEOUT_SECONDS = 60
_SHOWN_METRICS = (
    "grpc_server_started_total{",
    "grpc_server_handled_total{",
    "grpc_server_handling_seconds_sum{",
    "gen_ai_client_operation_time_to_first_chunk_seconds_sum{",
    "chatrpc_streams_ended_total{",
    "chatrpc_tokens_total{",
)
_OMITTED_LABELS = re.compile(r'(grpc_service|grpc_type|gen_ai_(operation|provider)_name|upstream)="[^"]*",?')
"""Omitted so that lines fit the screen; the other labels still identify the series."""


async def demo(settings: Settings, *, model: str | None, prompt: str, keep: bool, echo: bool) -> bool:
    """Make a unary and a streaming call; return False if one failed. Raises `StartError`.

    Unless `keep` is set, the ports are free ones, so that the demo never collides with a running service. `echo`: run
    the embedded upstream even if another one is configured.
    """
    is_configured = settings.upstream.api_key or settings.upstream.base_url != Settings().upstream.base_url
    is_embedded = echo or not is_configured
    upstream = _embedded_upstream(settings, model) if is_embedded else _upstream(settings, model)
    async with upstream as (settings, model):
        _print_upstream(settings, model, is_embedded=is_embedded, is_asked=echo)
        settings = settings.model_copy(update={"reflection": True})
        if not keep:
            ports = {name: replace(getattr(settings, name), port=0) for name in ("listen", "metrics_listen")}
            settings = settings.model_copy(update=ports)
        server = Server(settings)
        await server.start()
        try:
            _print_addresses(server)
            try:
                await _make_calls(str(server.address), model, prompt)
            except grpc.aio.AioRpcError as error:
                print(f"\n  {error.code().name}: {error.details()}", file=sys.stderr)
                return False
            finally:
                _print_metrics(f"http://{server.metrics_address}/metrics")
            if keep:
                logging.getLogger().setLevel(settings.log.level.upper())
                with stop_signals(with_hangup=True) as stop_requested:
                    print(f"\nServing on {server.address} until Ctrl-C.", flush=True)
                    await stop_requested()
        finally:
            await server.stop()
    return True


@asynccontextmanager
async def _upstream(settings: Settings, model: str | None) -> AsyncIterator[tuple[Settings, str]]:
    """Yield settings and model of the configured upstream."""
    model = model or next(iter(settings.models), "gpt-4o-mini")
    yield settings.model_copy(update={"models": {**settings.models, model: ModelSettings()}}), model


@asynccontextmanager
async def _embedded_upstream(settings: Settings, model: str | None) -> AsyncIterator[tuple[Settings, str]]:
    """Run the embedded upstream; yield its settings and model."""
    from chatrpc_echo import Echo  # here, because a real upstream does not need the extra `echo`

    async with Echo(pace_seconds=_PACE_SECONDS) as echo:
        model = model or "echo"
        own = {
            "name": _ECHO,
            "provider": _ECHO,
            "base_url": echo.base_url,
            "http_client": settings.upstream.http_client,
        }
        upstream = Settings().upstream.model_copy(update=own)  # without the other one's keys, headers and proxy
        yield settings.model_copy(update={"upstream": upstream, "models": {model: ModelSettings()}}), model


async def _make_calls(target: str, model: str, prompt: str) -> None:
    request = CreateChatCompletionRequest(model=model, messages=[ChatMessage(role="user", content=prompt)])
    # No proxy, because the target is this process.
    async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = ChatCompletionServiceStub(channel)
        _print_heading("CreateChatCompletion: one request, one response")
        started = monotonic()
        response = await stub.CreateChatCompletion(request, timeout=_TIMEOUT_SECONDS)
        print(f"  user       {prompt}")
        for choice in response.choices:
            print(f"  assistant  {choice.message.content}")
        _print_usage(response.usage, f"{(monotonic() - started) * 1000:.0f} ms")

        _print_heading("CreateChatCompletionStream: the same request, a stream")
        started = monotonic()
        print(f"  user       {prompt}\n  assistant  ", end="", flush=True)
        usage, messages, first = Usage(), 0, 0.0
        async for chunk in stub.CreateChatCompletionStream(request, timeout=_TIMEOUT_SECONDS):
            messages += 1
            first = first or monotonic() - started
            for part in chunk.choices:
                print(part.delta.content, end="", flush=True)
            if chunk.HasField("usage"):
                usage = chunk.usage
        print()
        _print_usage(
            usage,
            f"{messages} messages, the first after {first * 1000:.0f} ms, the last after"
            f" {(monotonic() - started) * 1000:.0f} ms",
        )


def _print_upstream(settings: Settings, model: str, *, is_embedded: bool, is_asked: bool) -> None:
    """Print which upstream gets the calls, and why, because a real one can cost money."""
    if is_embedded:
        where = "embedded"
        why = "of --echo" if is_asked else "neither an API key nor a base URL is set"
    else:
        where = settings.upstream.base_url
        why = f"of {' and '.join(upstream_variables()) or 'the settings'}; --echo selects the embedded one"
    print(f"  upstream   {where}, model {model}, because {why}", flush=True)


def _print_addresses(server: Server) -> None:
    print(f"  gRPC       {server.address}")
    print(f"  metrics    http://{server.metrics_address}/metrics", flush=True)


def _print_heading(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def _print_usage(usage: Usage, times: str) -> None:
    print(f"             {usage.prompt_tokens} tokens in, {usage.completion_tokens} out; {times}", flush=True)


def _print_metrics(url: str) -> None:
    """Print the metrics. Blocking the event loop is safe because the exporter serves from its own thread."""
    _print_heading("/metrics: after both calls")
    with build_opener(ProxyHandler({})).open(url, timeout=5) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(_SHOWN_METRICS):
                selector, _, value = line.rpartition(" ")
                if not float(value):
                    continue  # because the calls did not change this series, which exists from the start
                selector = _OMITTED_LABELS.sub("", selector).replace(",}", "}")
                print(f"  {selector} {float(value):.4g}")
