"""The composition root: builds the service from its settings; starts, drains and stops it."""

import asyncio
import logging
import socket
from contextlib import AsyncExitStack, suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chatrpc.v1.chat_service_pb2_grpc import add_ChatCompletionServiceServicer_to_server
from chatrpc_server import __version__
from chatrpc_server.core.backoff import Backoff
from chatrpc_server.core.errors import ChatError, Refused
from chatrpc_server.core.upstream import Upstream
from chatrpc_server.lifecycle import StartError, stop_signals
from chatrpc_server.logs import Redactor
from chatrpc_server.metrics import Exporter, Metrics
from chatrpc_server.rpc.admission import Admission
from chatrpc_server.rpc.chat import ChatCompletionService
from chatrpc_server.rpc.health import Health
from chatrpc_server.rpc.layers import layers
from chatrpc_server.rpc.pipeline import SERVICE, Pipeline
from chatrpc_server.settings import Address, LimitsSettings, Settings, UpstreamSettings
from chatrpc_server.upstream import engine
from chatrpc_server.upstream.openai import OpenAI
from chatrpc_server.upstream.retry import Retrying

log = logging.getLogger("chatrpc.server")

_LAST_WORDS_SECONDS = 2.0
"""How long the status of a call that has ended may take to leave."""


class Server:
    """One process of the service. `start`, then `drain`, then `stop`; or `run`, which waits for signals in between."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.upstream.models)
        self.health = Health()
        self.admission = Admission(
            settings.limits.max_in_flight,
            settings.limits.min_deadline_seconds,
            lambda reason: self.metrics.rejected.labels(reason).inc(),
        )

    async def start(self) -> None:
        """Listens and serves. Raises `StartError`, and then holds nothing any more."""
        settings = self.settings
        async with AsyncExitStack() as stack:
            # Closed in the opposite order: metrics last, so that a scrape can still see the end.
            exporter = _exporter(self.metrics, settings.metrics_listen)
            stack.push_async_callback(asyncio.to_thread, exporter.close)
            upstream = _openai(settings.upstream)
            stack.push_async_callback(upstream.aclose)
            self._grpc = self._build(upstream)
            port = _listen(self._grpc, settings.listen)
            stack.push_async_callback(self._grpc.stop, None)
            await self._grpc.start()
            self._running = stack.pop_all()
        self.address = Address(settings.listen.host, port)
        self.metrics_address = Address(settings.metrics_listen.host, exporter.port)
        self.health.set_serving(True)
        log.info(
            "serving",
            extra={
                "listen": str(self.address),
                "metrics": f"http://{self.metrics_address}/metrics",
                "upstream": settings.upstream.base_url,
                "version": __version__,
            },
        )

    async def drain(self) -> None:
        """Lets balancers take note, then lets calls finish; what is left after the grace ends with UNAVAILABLE."""
        settings = self.settings.drain
        log.info("draining", extra={"in_flight": self.admission.in_flight})
        self.metrics.draining.set(1)
        self.health.set_serving(False)
        await asyncio.sleep(settings.delay_seconds)
        stopping = asyncio.create_task(self._grpc.stop(settings.grace_seconds + _LAST_WORDS_SECONDS))
        self.health.end_watches()  # they would hold the stop up until its grace is over
        done, _ = await asyncio.wait((stopping,), timeout=settings.grace_seconds)
        if not done:
            log.warning("ending calls that outlast the grace", extra={"in_flight": self.admission.in_flight})
            self.admission.end_calls()
        await stopping

    async def stop(self) -> None:
        """Ends everything now."""
        await self._running.aclose()
        log.info("stopped")

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains; a second signal stops at once. Raises `StartError`."""
        with stop_signals() as stop_signal:
            await self.start()
            try:
                await stop_signal()
                draining = asyncio.create_task(self.drain())
                again = asyncio.create_task(stop_signal())
                await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
                for task in (draining, again):
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
            finally:
                await self.stop()

    def _build(self, upstream: Upstream) -> grpc.aio.Server:
        """The gRPC server with all that it serves."""
        settings = self.settings
        backoff = Backoff(
            settings.upstream.max_retries,
            settings.upstream.initial_backoff_seconds,
            settings.upstream.max_backoff_seconds,
        )
        upstream = Retrying(upstream, backoff, self._retried)
        redact = Redactor([settings.upstream.api_key])
        pipeline = Pipeline(
            layers(self.admission, self.metrics, settings.upstream, redact),
            default_deadline_seconds=settings.limits.default_deadline_seconds,
            max_message_bytes=settings.limits.max_message_bytes,
            coalesce=settings.coalesce,
        )
        server = grpc.aio.server(interceptors=[pipeline], options=_options(settings.limits))
        add_ChatCompletionServiceServicer_to_server(ChatCompletionService(upstream), server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        if settings.reflection:
            names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server

    def _retried(self, error: ChatError) -> None:
        reason = str(error.status) if isinstance(error, Refused) else "connect"
        self.metrics.retries.labels(self.settings.upstream.name, reason).inc()


def _options(limits: LimitsSettings) -> list[tuple[str, int]]:
    return [
        # Otherwise a second server on the same port starts too, and takes half of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        # Beyond this calls would wait in the client, unseen; ours are refused with a reason instead.
        ("grpc.max_concurrent_streams", 2 * limits.max_in_flight),
        # Callers that are gone without a word are found, and callers may ping while a model thinks.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # Long-lived connections would never notice new replicas. Calls may outlive their connection's age.
        ("grpc.max_connection_age_ms", 600_000),
        ("grpc.max_connection_idle_ms", 900_000),
    ]


def _exporter(metrics: Metrics, address: Address) -> Exporter:
    try:
        return Exporter(metrics, address.host, address.port)
    except OSError as error:
        raise _cannot_listen("metrics_listen", address, error) from None


def _openai(settings: UpstreamSettings) -> OpenAI:
    try:
        return OpenAI(settings, engine.transport(settings))
    except OSError as error:  # ssl.SSLError is one
        raise StartError(f"upstream.ca_file: {settings.ca_file}: no certificates to be had from it: {error}") from None


def _listen(server: grpc.aio.Server, address: Address) -> int:
    """The port that it listens on. Tried with a socket first, since grpc does not tell why it cannot."""
    try:
        for family, _, _, _, sockaddr in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(sockaddr)
        return server.add_insecure_port(str(address))
    except (OSError, RuntimeError) as error:
        raise _cannot_listen("listen", address, error) from None


def _cannot_listen(setting: str, address: Address, error: Exception) -> StartError:
    why = error.strerror if isinstance(error, OSError) else None
    return StartError(f"{setting}: cannot listen on {address}: {why or error}")
