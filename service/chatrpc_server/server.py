"""The composition root: builds the service from its settings; starts, drains and stops it."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc.v1.chat_service_pb2_grpc import add_ChatCompletionServiceServicer_to_server
from chatrpc_server import __version__
from chatrpc_server.core.backoff import Backoff
from chatrpc_server.core.budget import ByteBudget
from chatrpc_server.core.text import Redactor
from chatrpc_server.core.upstream import Upstream
from chatrpc_server.process import descriptors, memory, tasks
from chatrpc_server.process.lifecycle import StartError, StopRequests
from chatrpc_server.rpc import accept_loop, listeners, reflection
from chatrpc_server.rpc.certificates import Certificates
from chatrpc_server.rpc.chat import ChatCompletionService
from chatrpc_server.rpc.health import Health
from chatrpc_server.rpc.layers import layers
from chatrpc_server.rpc.layers.admission import Admission
from chatrpc_server.rpc.layers.metrics import RPCS, CallMetrics
from chatrpc_server.rpc.malformed import RejectMalformed
from chatrpc_server.rpc.pipeline import SERVICE, Pipeline
from chatrpc_server.rpc.receiving import Receiver
from chatrpc_server.settings import Address, Settings, SettingsError, SettingsFile
from chatrpc_server.settings.watcher import differing, watch
from chatrpc_server.telemetry import logs
from chatrpc_server.telemetry.event_loop import sample
from chatrpc_server.telemetry.exporter import listen, register_process
from chatrpc_server.telemetry.log_writer import count_dropped
from chatrpc_server.telemetry.metrics import Metrics
from chatrpc_server.upstream.metrics import AttemptMetrics
from chatrpc_server.upstream.openai import OpenAIUpstream, identity_of
from chatrpc_server.upstream.retry import Retrying

if TYPE_CHECKING:
    from chatrpc_server.telemetry.tracing import Tracing

log = logging.getLogger("chatrpc.server")

_LEVEL = "log.level"
_LAST_STATUS_SECONDS = 2.0
"""Longest time to send the last statuses, after the drain's grace."""
_EXIT_SECONDS = 5.0
"""Longest time to close everything after an accept loop has failed."""


class Server:
    """One process of the service. Call `start`, `drain` and `stop`, or `run`, which calls them at stop requests."""

    def __init__(self, settings: Settings, file: SettingsFile | None = None, *, is_worker: bool = False) -> None:
        """Create a stopped server. `file`: the settings file to watch. `is_worker`: its parent serves the metrics."""
        self.settings = settings
        self._file = file
        self._is_worker = is_worker
        self._upstream_identity = identity_of(settings.upstream)
        self.metrics = Metrics(RPCS, [self._upstream_identity.name], settings.models)
        self.metrics.in_flight_limit.set(settings.limits.max_in_flight)
        self._attempt_metrics = AttemptMetrics(self.metrics)
        self.metrics_address: Address | None = None
        self.health = Health()
        self.health_address: Address | None = None
        self._failed = asyncio.Event()
        self.tracing: Tracing | None = None
        self._budget = ByteBudget(settings.limits.max_bytes_in_flight)
        self.metrics.bytes_in_flight_limit.set(settings.limits.max_bytes_in_flight)
        self._receiver = Receiver(
            self._budget,
            timeout_seconds=settings.limits.receive_timeout_seconds,
            max_message_bytes=settings.limits.max_message_bytes,
            max_in_flight=settings.limits.max_in_flight,
        )
        self.admission = Admission(
            settings.limits.max_in_flight,
            self._budget,
            settings.limits.min_deadline_seconds,
            self._count_rejected,
            self._receiver.make_room,
        )

    async def start(self) -> None:
        """Listen and serve. Raises `StartError` after releasing everything."""
        settings = self.settings
        count_dropped(self.metrics.log_lines_dropped.inc)
        self._prepare_descriptors()
        async with AsyncExitStack() as stack:
            # The stack closes in reverse order, the exporter last, so that Prometheus can scrape the final values.
            if not self._is_worker:
                register_process(self.metrics.registry)
                exporter = listen(self.metrics.registry, settings.metrics_listen)
                stack.push_async_callback(asyncio.to_thread, exporter.close)
                self.metrics_address = exporter.address
            try:
                self.upstream, credentials = self._create_parts(stack)
            except SettingsError as error:
                raise StartError("; ".join(error.mistakes)) from None
            upstream = self.upstream
            connections = {upstream.identity.name: upstream.connections}
            tasks.run_in_background(stack, descriptors.watch())
            tasks.run_in_background(stack, sample(self.metrics, connections, lambda: self._budget.used_bytes))
            if self._file:
                self.metrics.config_reloaded.set(time.time())
                tasks.run_in_background(stack, watch(self._file, self._on_change, self._on_reload_failure))
            if settings.health_listen:
                reject = RejectMalformed(self._receiver, self._count_rejected, CallMetrics(self.metrics).unknown)
                probed = listeners.server(
                    settings.limits,
                    shares_port=self._is_worker,
                    max_connections=descriptors.max_probe_connections(),
                    interceptors=[reject],
                )
                health_pb2_grpc.add_HealthServicer_to_server(self.health, probed)
                self.health_address = await self._open(stack, probed, "health_listen", settings.health_listen)
            self._grpc = self._create_grpc_server(upstream)
            self.address = await self._open(stack, self._grpc, "listen", settings.listen, credentials)
            self._running = stack.pop_all()
        self.health.set_serving(True)
        log.info(
            "serving",
            extra={
                "event": "serving",
                "listen": str(self.address),
                "health": str(self.health_address) if self.health_address else None,
                "metrics": f"http://{self.metrics_address}/metrics" if self.metrics_address else None,
                "upstream": settings.upstream.base_url,
                "traces": settings.tracing.endpoint,
                "version": __version__,
                "pid": os.getpid(),
            },
        )

    async def check(self) -> None:
        """Create all parts as `start` does, and close them. Raises SettingsError with every mistake."""
        async with AsyncExitStack() as stack:
            self._create_parts(stack)

    async def drain(self) -> None:
        """Report NOT_SERVING, wait for load balancers, then for calls. Calls that outlast the grace fail."""
        settings = self.settings.drain
        self.metrics.draining.set(1)
        self.health.set_serving(False)
        # Last, because readers of this line rely on the metric and the health state.
        log.info("draining", extra={"event": "draining", "in_flight": self.admission.in_flight})
        await asyncio.sleep(settings.delay_seconds)
        stopping = asyncio.create_task(self._grpc.stop(settings.grace_seconds + _LAST_STATUS_SECONDS))
        self.health.close_watches()  # because they would delay the stop until its grace expires
        done, _ = await asyncio.wait((stopping,), timeout=settings.grace_seconds)
        if not done and self.admission.in_flight:
            log.warning(
                "drain grace expired; cancelling calls in flight",
                extra={"event": "drain_grace_expired", "in_flight": self.admission.in_flight},
            )
            self.admission.cancel_calls()
        await stopping

    async def stop(self) -> None:
        """Close everything now."""
        await self._running.aclose()
        log.info("stopped", extra={"event": "stopped"})

    async def run(self, stop_requested: StopRequests, started: Callable[[], None] = lambda: None) -> bool:
        """Serve until the first stop request, then drain; stop at once at the second. Raises `StartError`.

        If an accept loop fails, stop at once and return False, because this process cannot serve any more.
        """
        await self.start()
        memory.map_large_blocks()
        memory.tune_garbage_collection()
        try:
            started()
            await tasks.first(stop_requested(), self._failed.wait())
            if not self._failed.is_set():
                await tasks.first(self.drain(), stop_requested(), self._failed.wait())
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_SECONDS if self._failed.is_set() else None):
                    await self.stop()
        return not self._failed.is_set()

    async def _open(
        self,
        stack: AsyncExitStack,
        server: grpc.aio.Server,
        setting: str,
        address: Address,
        credentials: grpc.ServerCredentials | None = None,
    ) -> Address:
        """Listen until the stack is closed; return the actual address. Raises `StartError`."""
        actual = listeners.listen(server, setting, address, shares_port=self._is_worker, credentials=credentials)
        stack.push_async_callback(server.stop, None)
        await server.start()
        watching = asyncio.create_task(self._watch(server, setting))
        stack.callback(watching.cancel)
        return actual

    async def _watch(self, server: grpc.aio.Server, setting: str) -> None:
        """Wait for the end of the accept loop. If no stop requested it, report it on every health address."""
        error = await accept_loop.failure(server)
        if error:
            self.health.set_serving(False)
            log.error(
                "the accept loop of gRPC failed; exiting",
                extra={"event": "accept_loop_failed", "setting": setting},
                exc_info=error,
            )
            self._failed.set()

    def _create_grpc_server(self, upstream: Upstream) -> grpc.aio.Server:
        """Return the gRPC server with all its services."""
        settings = self.settings
        backoff = Backoff(
            settings.upstream.max_retries,
            settings.upstream.initial_backoff_seconds,
            settings.upstream.max_backoff_seconds,
            settings.upstream.max_retry_after_seconds,
        )
        upstream = Retrying(upstream, backoff, self._attempt_metrics.retried)
        redact = Redactor(settings.secrets())
        call_metrics = CallMetrics(self.metrics)
        pipeline = Pipeline(
            layers(call_metrics, self.admission, redact, self.tracing),
            call_metrics.unknown,
            default_deadline_seconds=settings.limits.default_deadline_seconds,
            max_message_bytes=settings.limits.max_message_bytes,
            max_request_elements=settings.limits.max_request_elements,
            receive=self._receiver.only,
            coalesce=settings.coalesce,
            default_upstream=self._upstream_identity,
            forward_metadata=settings.upstream.forward_metadata,
            key_from_metadata=settings.upstream.key_from_metadata or "",
        )
        interceptors = [pipeline, RejectMalformed(self._receiver, self._count_rejected)]
        server = listeners.server(
            settings.limits,
            shares_port=self._is_worker,
            max_connections=descriptors.max_connections(),
            interceptors=interceptors,
        )
        add_ChatCompletionServiceServicer_to_server(ChatCompletionService(upstream), server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        if settings.reflection:
            reflection.add((SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name), server)
        return server

    def _on_change(self, settings: Settings) -> None:
        """Apply `log.level`, the only setting that can change while the service runs; log the names of the others."""
        others = sorted(differing(self.settings.model_dump(), settings.model_dump()) - {_LEVEL})
        log.info("settings file reloaded", extra={"event": "config_reloaded", _LEVEL: settings.log.level})
        if others:
            log.warning(
                "changed settings need a restart to take effect",
                extra={"event": "config_restart_required", "settings": ", ".join(others)},
            )
        logs.set_level(settings.log.level)
        self.metrics.config_reloads.labels("success").inc()
        self.metrics.config_reloaded.set(time.time())

    def _on_reload_failure(self, error: SettingsError) -> None:
        mistakes = "; ".join(error.mistakes)
        log.error(
            "settings reload failed; keeping the current settings",
            extra={"event": "config_reload_failed", "mistakes": mistakes},
            exc_info=error.__cause__,
        )
        self.metrics.config_reloads.labels("failure").inc()

    def _prepare_descriptors(self) -> None:
        """Raise the limit of open files, and warn if the calls in flight do not fit it."""
        limit, needed = descriptors.raise_limit(), descriptors.needed(self.settings.limits.max_in_flight)
        descriptors.reserve.hold()
        if limit < needed:
            log.warning(
                "limits.max_in_flight does not fit the limit of open files; raise that limit or lower the setting",
                extra={"event": "descriptor_limit_low", "limit": limit, "needed": needed},
            )

    def _count_rejected(self, reason: str) -> None:
        self.metrics.rejected.labels(reason).inc()

    def _create_parts(self, stack: AsyncExitStack) -> tuple[OpenAIUpstream, grpc.ServerCredentials | None]:
        """Create all that can fail by the settings or their files, before anything listens. The stack closes it.

        Raises SettingsError with every mistake.
        """
        mistakes: list[str] = []
        with _collected(mistakes):
            self.tracing = self._create_tracing()
            if self.tracing:
                stack.push_async_callback(self.tracing.close)
        upstream = credentials = None
        with _collected(mistakes):
            observer = self._attempt_metrics
            upstream = OpenAIUpstream(
                self.settings.upstream, self.tracing.around(observer) if self.tracing else observer
            )
            stack.push_async_callback(upstream.aclose)
        with _collected(mistakes):
            credentials = self._create_credentials()
        if mistakes or not upstream:
            raise SettingsError(mistakes)
        return upstream, credentials

    def _create_credentials(self) -> grpc.ServerCredentials | None:
        if not self.settings.tls.cert_file:
            return None
        try:
            return Certificates(self.settings.tls, self.metrics).credentials()
        except (OSError, ValueError) as error:
            raise SettingsError([str(error)]) from None

    def _create_tracing(self) -> "Tracing | None":
        settings = self.settings
        if not settings.tracing.endpoint:
            return None
        try:
            # Imported here, because OpenTelemetry is an extra.
            from chatrpc_server.telemetry.tracing import Tracing

            endpoint, ratio = settings.tracing.endpoint, settings.tracing.sample_ratio
            return Tracing(endpoint, ratio, RPCS, self.metrics.model_label)
        except ModuleNotFoundError:
            problem = "OpenTelemetry is not installed; run pip install 'chatrpc-server[otel]'"
            raise SettingsError([f"tracing.endpoint: {problem}"]) from None
        except (ValueError, RuntimeError) as error:  # from the SDK's own variables
            raise SettingsError([f"OTEL_*: {error}; correct or unset these variables"]) from None


@contextmanager
def _collected(mistakes: list[str]) -> Iterator[None]:
    """Add the mistakes of a SettingsError, so that the next part is created too."""
    try:
        yield
    except SettingsError as error:
        mistakes += error.mistakes
