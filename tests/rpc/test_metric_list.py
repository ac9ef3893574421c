"""docs/metrics.md lists all metrics, so every rename, new label or other bucket shows in its diff."""

from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.metrics import MetricWrapperBase

from chatrpc_server.core.errors import Reason
from chatrpc_server.telemetry import labels
from chatrpc_server.telemetry.multiprocess import SharedMetrics
from support import Service, docs

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values)


LABELS = {
    "grpc_type": "`unary`, `server_stream`",
    "grpc_service": "`chatrpc.v1.ChatCompletionService`, `unknown`",
    "grpc_method": "`CreateChatCompletion`, `CreateChatCompletionStream`, `unknown` for any other RPC",
    "grpc_code": labels.GRPC_CODES,
    "gen_ai_operation_name": "`chat`",
    "gen_ai_provider_name": "the setting `upstream.provider`",
    "gen_ai_request_model": "the names in the setting `models`, else `other`",
    "gen_ai_token_type": labels.TOKEN_TYPES,
    "upstream": "the setting `upstream.name`",
    "error_type": (
        "empty for a success; the `ErrorInfo.reason` of the status; `CANCELLED` or `DEADLINE_EXCEEDED` if the caller"
        f" disconnected ({len(Reason)} reasons, see the [contract](contract.md#reasons))"
    ),
    "stream": "`true`, `false`",
    "outcome": f"of streams: {_listed(labels.STREAM_OUTCOMES)}; of HTTP requests: {_listed(labels.ATTEMPT_OUTCOMES)}",
    "finish_reason": labels.FINISH_REASONS,
    "code": f"an HTTP status: {_listed(labels.HTTP_STATUSES)}; empty without a response",
    "attempt": "`first`, `retry`",
    "phase": "`headers`: until the response starts; `body`: from there to its end",
    "reason": labels.REJECTIONS,
    "kind": f"of protocol errors: {', '.join(labels.PROTOCOL_ERRORS)}; of rate limits: requests, tokens",
    "state": "`active`, `idle`",
    "role": "`server`, `client_ca`",
    "result": "`success`, `failure`",
    "version, python, grpcio, protobuf": "versions",
}


def test_the_list_of_metrics(chat: Service) -> None:
    ours = {*_instruments(chat.server.metrics.registry)}
    with SharedMetrics(2) as shared:
        ours |= {*_instruments(shared.registry)}
    rows = sorted(_row(metric) for metric in ours)
    docs.check(DOCUMENT, "metrics", docs.table(("name", "type", "labels", "buckets", "meaning"), rows))


def test_the_list_of_labels(chat: Service) -> None:
    rows = [
        (", ".join(f"`{name}`" for name in names.split(", ")), values if isinstance(values, str) else _codes(values))
        for names, values in LABELS.items()
    ]
    docs.check(DOCUMENT, "labels", docs.table(("label", "values"), rows))
    listed = {name for names in LABELS for name in names.split(", ")}
    assert listed == {label for metric in _instruments(chat.server.metrics.registry) for label in metric._labelnames}


def test_nothing_is_registered_elsewhere() -> None:
    assert not [metric for metric in _instruments(REGISTRY) if metric._name.startswith(("chatrpc", "grpc", "gen_ai"))]


def _instruments(registry: CollectorRegistry) -> list[MetricWrapperBase]:
    return [metric for metric in registry._collector_to_names if isinstance(metric, MetricWrapperBase)]


def _row(metric: MetricWrapperBase) -> tuple[str, ...]:
    name = metric._name + "_total" * (metric._type == "counter")
    buckets = [f"{bound:g}" for bound in metric._upper_bounds[:-1]] if isinstance(metric, Histogram) else []
    return f"`{name}`", metric._type, _codes(metric._labelnames), " ".join(buckets), metric._documentation


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
