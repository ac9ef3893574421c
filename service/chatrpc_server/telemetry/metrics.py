"""Every instrument of the service, with its unit, labels and buckets. docs/metrics.md is the list of them.

Names follow go-grpc-middleware (`grpc_server_*`) and the OpenTelemetry GenAI conventions (`gen_ai_client_*`, because
a gateway is a client of the model server); the service's own have the prefix `chatrpc_`. Label values come from closed
sets. Known series exist from the start, at 0, so that `rate()` counts their first event, and no event is 0, not a gap.
"""

import functools
import platform
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.metadata import version
from itertools import product
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from chatrpc_server import __version__
from chatrpc_server.telemetry.labels import (
    FINISH_REASONS,
    GRPC_CODES,
    HTTP_STATUSES,
    NO_CODE,
    OPERATION,
    OTHER,
    PROTOCOL_ERRORS,
    REJECTIONS,
    STREAM_OUTCOMES,
    TOKEN_TYPES,
    UNKNOWN_RPC,
)

# fmt: off
_HANDLING_SECONDS = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OPERATION_SECONDS = (.01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 120, 300, 600)
_FIRST_CHUNK_SECONDS = (.02, .05, .1, .2, .3, .5, .75, 1, 1.5, 2.5, 5, 10, 20, 40, 80)
_CHUNK_GAP_SECONDS = (.001, .0025, .005, .01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 10)
_OVERHEAD_SECONDS = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1)
_WRITING_SECONDS = (.001, .005, .01, .05, .1, .5, 1, 5, 30, 120, 600)
_TIMEOUT_SECONDS = (.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LAG_SECONDS = (.001, .005, .01, .05, .1, .5, 1, 5)
_TOKENS = tuple(4**power for power in range(11))
# fmt: on

_ATTEMPT_ENDS = (*((code, "response") for code in HTTP_STATUSES), (NO_CODE, "no_response"), (NO_CODE, "cancelled"))
"""Each HTTP status goes with a response, and no status with none."""

_RPC = ("grpc_type", "grpc_service", "grpc_method")
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class Metrics:
    """The instruments, on their own registry because one process can contain several servers."""

    def __init__(
        self, rpcs: Collection[tuple[str, str, str]], upstreams: Collection[str], models: Iterable[str] = ()
    ) -> None:
        """Create all instruments. `rpcs`: type, service and method of each. `upstreams`, `models`: names as labels."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.child = functools.cache(_child)
        self._models = frozenset(models)
        shown_models = (*sorted(self._models), OTHER)
        methods = [method for _, _, method in rpcs]
        rpcs = [*rpcs, UNKNOWN_RPC]

        self.started = self._counter("grpc_server_started", "RPCs begun on the server.", _RPC, rpcs)
        self.handled = self._counter(
            "grpc_server_handled",
            "RPCs completed on the server, by code.",
            (*_RPC, "grpc_code"),
            [(*rpc, code) for rpc, code in product(rpcs, GRPC_CODES) if rpc != UNKNOWN_RPC or code == "Unimplemented"],
        )
        self.received = self._counter("grpc_server_msg_received", "Messages received from callers.", _RPC, rpcs[:-1])
        self.sent = self._counter("grpc_server_msg_sent", "Messages sent to callers.", _RPC, rpcs[:-1])
        self.handling = self._histogram(
            "grpc_server_handling_seconds",
            "Time from the start of an RPC to its status, in seconds.",
            _RPC,
            _HANDLING_SECONDS,
            rpcs[:-1],
        )
        self.in_flight = self._gauge("chatrpc_rpcs_in_flight", "RPCs being handled.", ["grpc_method"], methods)
        self.in_flight_limit = self._gauge(
            "chatrpc_rpcs_in_flight_limit", "Limit of concurrent RPCs; more are rejected."
        )
        self.bytes_in_flight = self._gauge(
            "chatrpc_message_bytes_in_flight", "Bytes of requests and unread responses in memory."
        )
        self.bytes_in_flight_limit = self._gauge(
            "chatrpc_message_bytes_in_flight_limit", "Limit of these bytes; RPCs beyond it are rejected."
        )
        self.rejected = self._counter(
            "chatrpc_admission_rejected", "RPCs rejected by a limit or as malformed, by reason.", ["reason"], REJECTIONS
        )
        self.timeout = self._histogram(
            "chatrpc_deadline_remaining_at_start_seconds",
            "Timeout of RPCs at arrival, in seconds, less the 1 % that gRPC may add.",
            ["grpc_method"],
            _TIMEOUT_SECONDS,
            methods,
        )
        self.timeout_missing = self._counter(
            "chatrpc_deadline_missing", "RPCs without a deadline.", ["grpc_method"], methods
        )
        self.overhead = self._histogram(
            "chatrpc_overhead_seconds",
            "Time of an RPC spent neither on the upstream nor on writing to the caller, in seconds.",
            ["grpc_method"],
            _OVERHEAD_SECONDS,
            methods,
        )
        self.writing = self._histogram(
            "chatrpc_backpressure_wait_seconds",
            "Time of a stream spent on writing to its caller, which may read slowly, in seconds.",
            (),
            _WRITING_SECONDS,
        )

        self.duration = self._histogram(
            "gen_ai_client_operation_duration_seconds",
            "Time of a chat operation with all its attempts, in seconds; error_type is empty on success.",
            (*_GEN_AI, "upstream", "error_type", "stream"),
            _OPERATION_SECONDS,
        )
        self.first_chunk = self._histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time from the start of a stream to its first chunk, in seconds.",
            (*_GEN_AI, "upstream"),
            _FIRST_CHUNK_SECONDS,
        )
        self.chunk_gap = self._histogram(
            "gen_ai_client_operation_time_per_output_chunk_seconds",
            "Wait for each delivery of chunks after the first, in seconds. Chunks that arrive together count as one.",
            _GEN_AI,
            _CHUNK_GAP_SECONDS,
        )
        self.token_usage = self._histogram(
            "gen_ai_client_token_usage",
            "Tokens of one call, as the upstream reports them.",
            (*_GEN_AI, "gen_ai_token_type"),
            _TOKENS,
        )
        by_token = ("gen_ai_request_model", "gen_ai_token_type")
        tokens = list(product(shown_models, TOKEN_TYPES))
        self.tokens = self._counter(
            "chatrpc_tokens",
            "Tokens, as the upstream reports them. cached_input is part of input, reasoning part of output.",
            by_token,
            tokens,
        )
        self.abandoned_tokens = self._counter(
            "chatrpc_abandoned_tokens",
            "Part of chatrpc_tokens_total for calls whose caller had disconnected.",
            by_token,
            tokens,
        )
        by_model = ["gen_ai_request_model"]
        self.abandoned_chunks = self._counter(
            "chatrpc_abandoned_chunks",
            "Chunks of streams whose caller had disconnected; most of these never report usage.",
            by_model,
            shown_models,
        )
        by_stream = list(product(upstreams, ["true", "false"]))
        self.usage_missing = self._counter(
            "chatrpc_usage_missing",
            "Calls with a response for which the upstream reported no usage.",
            ("upstream", "stream"),
            by_stream,
        )
        self.chunks = self._counter("chatrpc_stream_chunks", "Chunks received in streams.", by_model, shown_models)
        self.stream_bytes = self._counter(
            "chatrpc_stream_bytes", "Bytes of the messages sent in streams.", by_model, shown_models
        )
        self.streams_ended = self._counter(
            "chatrpc_streams_ended", "Finished streams, by outcome.", ["outcome"], STREAM_OUTCOMES
        )
        self.finish_reasons = self._counter(
            "chatrpc_finish_reasons",
            "Choices, by finish reason.",
            ("gen_ai_request_model", "finish_reason"),
            product(shown_models, FINISH_REASONS),
        )

        self.upstream_requests = self._counter(
            "chatrpc_upstream_requests",
            "HTTP requests to an upstream, by status and outcome; without a response the status is empty.",
            ("upstream", "code", "outcome", "attempt"),
            [(name, *end, order) for name, end, order in product(upstreams, _ATTEMPT_ENDS, ("first", "retry"))],
        )
        self.upstream_seconds = self._histogram(
            "chatrpc_upstream_request_seconds",
            "Time of an HTTP request until its response's headers, and from there to its end, in seconds.",
            ("upstream", "phase"),
            _HANDLING_SECONDS,
            product(upstreams, ["headers", "body"]),
        )
        self.retries = self._counter(
            "chatrpc_upstream_retries",
            "Further attempts at an upstream, by the status and outcome of the attempt before.",
            ("upstream", "code", "outcome"),
            [(upstream, NO_CODE, "no_response") for upstream in upstreams],
        )
        self.protocol_errors = self._counter(
            "chatrpc_upstream_protocol_errors",
            "Responses that were no chat completions, by kind of error.",
            ("upstream", "kind"),
            product(upstreams, PROTOCOL_ERRORS),
        )
        self.upstream_connections = self._gauge(
            "chatrpc_upstream_pool_connections",
            "Connections to an upstream.",
            ("upstream", "state"),
            product(upstreams, ["active", "idle"]),
        )
        self.rate_limit_remaining = self._gauge(
            "chatrpc_upstream_ratelimit_remaining",
            "Remaining rate limit that the upstream reported last.",
            ("upstream", "kind"),
            mode="mostrecent",
        )

        self.loop_lag = self._histogram(
            "chatrpc_event_loop_lag_seconds", "Delay of timers of the event loop, in seconds.", (), _LAG_SECONDS
        )
        self.tasks = self._gauge("chatrpc_asyncio_tasks", "Tasks of the event loop; each RPC has several.")
        self.log_lines_dropped = self._counter(
            "chatrpc_log_lines_dropped", "Log lines that were lost because stderr was not read or failed."
        )
        self.draining = self._gauge("chatrpc_draining", "1 while a process drains.", mode="livemax")
        by_result = (["result"], ("success", "failure"))
        self.tls_reloads = self._counter("chatrpc_tls_reloads", "Reloads of the TLS files, by result.", *by_result)
        self.certificate_end = self._gauge(
            "chatrpc_tls_certificate_not_after_timestamp_seconds",
            "Expiry of the certificates of this role, in Unix time.",
            ["role"],
            mode="min",
        )
        self.config_reloads = self._counter(
            "chatrpc_config_reloads", "Reloads of the settings file, by result.", *by_result
        )
        self.config_reloaded = self._gauge(
            "chatrpc_config_last_reload_success_timestamp_seconds",
            "Time of the last successful load of the settings, in Unix time.",
            mode="min",
        )
        build = self._gauge(
            "chatrpc_build_info",
            "Always 1; the labels are versions.",
            ("version", "python", "grpcio", "protobuf"),
            mode="max",
        )
        build.labels(__version__, platform.python_version(), version("grpcio"), version("protobuf")).set(1)

    child: Callable[..., Any]
    """`child(metric, *labels)` is `metric.labels(*labels)` with a cache: 0.15 µs instead of 1.3 µs."""

    def model_label(self, model: str) -> str:
        """Return the model's name if it is configured, else `other`, so that callers cannot create series."""
        return model if model in self._models else OTHER

    def gen_ai_labels(self, provider: str, model: str) -> tuple[str, str, str]:
        """Return the first labels of all `gen_ai_*` metrics: operation, provider and model."""
        return OPERATION, provider, self.model_label(model)

    def _counter(
        self, name: str, text: str, labels: Sequence[str] = (), known: Iterable[str | tuple[str, ...]] = ()
    ) -> Counter:
        return _prepared(Counter(name, text, labels, registry=self.registry), known)

    def _gauge(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        known: Iterable[str | tuple[str, ...]] = (),
        *,
        mode: str = "livesum",
    ) -> Gauge:
        """Create a gauge. `mode`: prometheus_client's rule for the values of several processes."""
        gauge = Gauge(name, text, labels, registry=self.registry, multiprocess_mode=mode)  # type: ignore[arg-type]
        return _prepared(gauge, known)

    def _histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        known: Iterable[str | tuple[str, ...]] = (),
    ) -> Histogram:
        return _prepared(Histogram(name, text, labels, buckets=buckets, registry=self.registry), known)


def _child(metric: MetricWrapperBase, *labels: str) -> Any:
    return metric.labels(*labels)


def _prepared(metric: _Metric, known: Iterable[str | tuple[str, ...]]) -> _Metric:
    for values in known:
        metric.labels(*([values] if isinstance(values, str) else values))
    return metric
