"""Rate, errors and duration of each method, as callers see them."""

from panel import QUANTILES, Panel, high
from queries import FAULTS, KNOWN, MODEL_AND_UPSTREAM, SERVICE, quantiles, rate, share

TITLE = "RED: rate, errors and duration of each method"

_DURATION = "grpc_server_handling_seconds"
_OPERATION = "gen_ai_client_operation_duration_seconds"

PANELS = (
    Panel(
        "Rate by method",
        "Calls started per second. `unknown` stands for all methods that the server does not have.",
        "An unplanned fall. Any `unknown`: a caller uses another contract.",
        "reqps",
        {"{{grpc_method}}": rate("grpc_server_started_total", by="grpc_method")},
        width=7,
    ),
    Panel(
        "Failures by method",
        "Share of calls that failed through a fault of the service or its upstream.",
        "Over 0.1 %, the target. If only one method fails, look at its own code path.",
        "percentunit",
        {
            "{{grpc_method}}": share(
                rate("grpc_server_handled_total", f"{KNOWN}, {FAULTS}", "grpc_method"),
                rate("grpc_server_handled_total", KNOWN, "grpc_method"),
            )
        },
        steps=high(0.001, 0.01),
        width=7,
        none="no calls",
    ),
    Panel(
        "Failures by reason",
        "Calls with a status other than OK, by the reason in their status (ErrorInfo), or by code without one.",
        "INTERNAL: ours. UPSTREAM_UNAUTHENTICATED: our key. UPSTREAM_RATE_LIMITED, UPSTREAM_QUOTA_EXHAUSTED, "
        "UPSTREAM_INSUFFICIENT_BALANCE: our account. Other UPSTREAM_*: reported or caused by the upstream. "
        "IN_FLIGHT_LIMIT: our capacity. Others: the callers.",
        "reqps",
        {"{{error_type}}": rate(f"{_OPERATION}_count", f'{MODEL_AND_UPSTREAM}, error_type!=""', "error_type")},
        kind="bars",
        width=10,
        none="no failures",
    ),
    Panel(
        "Duration of unary calls",
        "From the start of a call to its status.",
        "p99 near the callers' deadlines ('Caller deadlines').",
        "s",
        quantiles(_DURATION, f'{SERVICE}, grpc_type="unary"'),
        colours=QUANTILES,
        none="no calls",
    ),
    Panel(
        "Duration of streams",
        "From the start of a stream to its status, which includes the time in which the model writes.",
        "A rise while 'Time between deliveries' is unchanged: responses are longer. A rise of both: a slow upstream.",
        "s",
        quantiles(_DURATION, f'{SERVICE}, grpc_type="server_stream"'),
        colours=QUANTILES,
        none="no streams",
    ),
    Panel(
        "Duration by model, p95",
        "Successful operations, including retries.",
        "One model far over its usual value.",
        "s",
        {
            "{{gen_ai_request_model}} stream={{stream}}": "histogram_quantile(0.95, "
            + rate(f"{_OPERATION}_bucket", f'{MODEL_AND_UPSTREAM}, error_type=""', "le, gen_ai_request_model, stream")
            + ")"
        },
        none="no calls",
    ),
)
