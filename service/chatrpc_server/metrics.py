"""Every instrument of the service, with its unit, labels and buckets, and the exporter that shows them.

Names follow go-grpc-middleware (`grpc_server_*`), the OpenTelemetry GenAI conventions (`gen_ai_client_*`: a gateway
is a client of the model server) and, for what is ours, the prefix `chatrpc_`. Label values come from closed sets: a
model is a configured name or `other`.
"""

import asyncio
import platform
import socket
import threading
from collections.abc import Collection
from importlib.metadata import version
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from chatrpc_server import __version__

OTHER = "other"
_POLL_SECONDS = 0.1
"""How soon the exporter's thread notices that it is to stop."""

_RPC = ("grpc_type", "grpc_service", "grpc_method")
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
# fmt: off
_HANDLING_SECONDS = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OPERATION_SECONDS = (.01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 120, 300, 600)
_FIRST_CHUNK_SECONDS = (.02, .05, .1, .2, .3, .5, .75, 1, 1.5, 2.5, 5, 10, 20, 40, 80)
_TOKENS = tuple(4**power for power in range(11))
# fmt: on


class Metrics:
    """The instruments, on a registry of their own: several servers may live in one process."""

    def __init__(self, models: Collection[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._models = frozenset(models)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self.started = Counter("grpc_server_started", "RPCs begun on the server.", _RPC, registry=registry)
        self.handled = Counter(
            "grpc_server_handled", "RPCs completed on the server, by code.", (*_RPC, "grpc_code"), registry=registry
        )
        self.received = Counter("grpc_server_msg_received", "Messages received from callers.", _RPC, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages sent to callers.", _RPC, registry=registry)
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Time from the start of an RPC to its status, in seconds.",
            _RPC,
            buckets=_HANDLING_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("chatrpc_rpcs_in_flight", "RPCs being handled.", ("grpc_method",), registry=registry)
        self.rejected = Counter(
            "chatrpc_admission_rejected", "RPCs turned away before any work, by reason.", ("reason",), registry=registry
        )
        self.duration = Histogram(
            "gen_ai_client_operation_duration_seconds",
            "Time of a chat operation with all its attempts, in seconds; error_type is empty for a success.",
            (*_GEN_AI, "upstream", "error_type", "stream"),
            buckets=_OPERATION_SECONDS,
            registry=registry,
        )
        self.first_chunk = Histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time from the start of a stream to its first chunk, in seconds.",
            (*_GEN_AI, "upstream"),
            buckets=_FIRST_CHUNK_SECONDS,
            registry=registry,
        )
        self.token_usage = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of one call, as the upstream reports them.",
            (*_GEN_AI, "gen_ai_token_type"),
            buckets=_TOKENS,
            registry=registry,
        )
        self.tokens = Counter(
            "chatrpc_tokens",
            "Tokens, as the upstream reports them. cached_input is part of input, reasoning part of output.",
            ("gen_ai_request_model", "gen_ai_token_type"),
            registry=registry,
        )
        self.usage_missing = Counter(
            "chatrpc_usage_missing",
            "Calls with an answer for which the upstream reported no usage.",
            ("upstream", "stream"),
            registry=registry,
        )
        self.streams_ended = Counter("chatrpc_streams_ended", "Streams by how they ended.", ("end",), registry=registry)
        self.retries = Counter(
            "chatrpc_upstream_retries",
            "Further attempts at an upstream, by what they follow.",
            ("upstream", "reason"),
            registry=registry,
        )
        self.draining = Gauge("chatrpc_draining", "1 while this process drains.", registry=registry)
        self.tls_reloads = Counter(
            "chatrpc_tls_reloads",
            "Changes of the TLS files, by whether they were of use.",
            ("result",),
            registry=registry,
        )
        self._tasks = Gauge("chatrpc_asyncio_tasks", "Tasks of the event loop: some for each RPC.", registry=registry)
        build = Gauge(
            "chatrpc_build_info",
            "Always 1; the labels tell the versions.",
            ("version", "python", "grpcio", "protobuf"),
            registry=registry,
        )
        build.labels(__version__, platform.python_version(), version("grpcio"), version("protobuf")).set(1)

    def watch_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Counts the tasks of this loop at each scrape."""
        self._tasks.set_function(lambda: len(asyncio.all_tasks(loop)))

    def note_tls_reload(self, of_use: bool) -> None:
        """Counts a change of the TLS files."""
        self.tls_reloads.labels("success" if of_use else "failure").inc()

    def model_label(self, model: str) -> str:
        """The model's own name if it is configured, else `other`: callers must not be able to make series."""
        return model if model in self._models else OTHER


class Exporter:
    """Serves the metrics over HTTP from a thread of its own, so that a busy event loop can still be looked at."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Listens at once. Raises OSError if the address is not to be had. Port 0 means any."""

        class Server(ThreadingWSGIServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = make_server(host, port, make_wsgi_app(metrics.registry), Server, handler_class=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stops serving and waits for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name is inherited
        """A scrape is no event."""
