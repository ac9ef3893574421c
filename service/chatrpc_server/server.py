"""The composition root: builds the service from its settings; starts, drains and stops it."""

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chatrpc.v1.chat_service_pb2_grpc import add_ChatCompletionServiceServicer_to_server
from chatrpc_server import __version__, ports
from chatrpc_server.core.backoff import Backoff
from chatrpc_server.core.errors import ChatError, Refused
from chatrpc_server.core.upstream import Upstream
from chatrpc_server.lifecycle import StartError, Stops
from chatrpc_server.logs import Redactor
from chatrpc_server.metrics import Exporter, Metrics
from chatrpc_server.rpc import listeners
from chatrpc_server.rpc.admission import Admission
from chatrpc_server.rpc.certificates import Certificates
from chatrpc_server.rpc.chat import ChatCompletionService
from chatrpc_server.rpc.health import Health
from chatrpc_server.rpc.layers import layers
from chatrpc_server.rpc.pipeline import SERVICE, Pipeline
from chatrpc_server.settings import Address, Settings, UpstreamSettings
from chatrpc_server.upstream import engine
from chatrpc_server.upstream.openai import OpenAI
from chatrpc_server.upstream.retry import Retrying

log = logging.getLogger("chatrpc.server")

_LAST_WORDS_SECONDS = 2.0
"""How long the status of a call that has ended may take to leave."""


class Server:
    """One process of the service. `start`, then `drain`, then `stop`; or `run`, which waits for signals in between."""

    def __init__(self, settings: Settings, *, shares_port: bool = False) -> None:
        """`shares_port`: other processes of this user listen at the same address, and the kernel deals connections."""
        self.settings = settings
        self._shares_port = shares_port
        self.metrics = Metrics(settings.upstream.models)
        self.health = Health()
        self.health_address: Address | None = None
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
            self.metrics.watch_tasks(asyncio.get_running_loop())
            exporter = _exporter(self.metrics, settings.metrics_listen)
            stack.push_async_callback(asyncio.to_thread, exporter.close)
            upstream = _openai(settings.upstream)
            stack.push_async_callback(upstream.aclose)
            if settings.health_listen:
                probed = listeners.server(settings.limits, shares_port=self._shares_port)
                health_pb2_grpc.add_HealthServicer_to_server(self.health, probed)
                self.health_address = await self._open(stack, probed, "health_listen", settings.health_listen)
            self._grpc = self._build(upstream)
            self.address = await self._open(stack, self._grpc, "listen", settings.listen, self._credentials())
            self._running = stack.pop_all()
        self.metrics_address = Address(settings.metrics_listen.host, exporter.port)
        self.health.set_serving(True)
        log.info(
            "serving",
            extra={
                "listen": str(self.address),
                "health": str(self.health_address) if self.health_address else None,
                "metrics": f"http://{self.metrics_address}/metrics",
                "upstream": settings.upstream.base_url,
                "version": __version__,
                "pid": os.getpid(),
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
        if not done and self.admission.in_flight:
            log.warning("ending calls that outlast the grace", extra={"in_flight": self.admission.in_flight})
            self.admission.end_calls()
        await stopping

    async def stop(self) -> None:
        """Ends everything now."""
        await self._running.aclose()
        log.info("stopped")

    async def run(self, stops: Stops, started: Callable[[], None] = lambda: None) -> None:
        """Serves until told to stop, then drains; told again, it stops at once. Raises `StartError`."""
        await self.start()
        try:
            started()
            await stops()
            draining = asyncio.ensure_future(self.drain())
            again = asyncio.ensure_future(stops())
            await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
            for task in (draining, again):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        finally:
            await self.stop()

    async def _open(
        self,
        stack: AsyncExitStack,
        server: grpc.aio.Server,
        setting: str,
        address: Address,
        credentials: grpc.ServerCredentials | None = None,
    ) -> Address:
        """Lets the server listen until the stack is closed; gives the address that it has. Raises `StartError`."""
        shares_port = self._shares_port
        opened = listeners.listen(server, setting, address, shares_port=shares_port, credentials=credentials)
        stack.push_async_callback(server.stop, None)
        await server.start()
        return opened

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
        server = listeners.server(settings.limits, shares_port=self._shares_port, interceptors=[pipeline])
        add_ChatCompletionServiceServicer_to_server(ChatCompletionService(upstream), server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        if settings.reflection:
            names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server

    def _credentials(self) -> grpc.ServerCredentials | None:
        if not self.settings.tls.cert_file:
            return None
        try:
            return Certificates(self.settings.tls, self.metrics.note_tls_reload).credentials()
        except (OSError, ValueError) as error:
            raise StartError(str(error)) from None

    def _retried(self, error: ChatError) -> None:
        reason = str(error.status) if isinstance(error, Refused) else "connect"
        self.metrics.retries.labels(self.settings.upstream.name, reason).inc()


def _exporter(metrics: Metrics, address: Address) -> Exporter:
    try:
        return Exporter(metrics, address.host, address.port)
    except OSError as error:
        raise ports.cannot_listen("metrics_listen", address, error) from None


def _openai(settings: UpstreamSettings) -> OpenAI:
    try:
        return OpenAI(settings, engine.transport(settings))
    except OSError as error:  # ssl.SSLError is one
        raise StartError(f"upstream.ca_file: {settings.ca_file}: no certificates to be had from it: {error}") from None
