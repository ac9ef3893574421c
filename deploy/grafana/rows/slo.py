"""Health, speed, failing upstream and cost, without scrolling."""

from panel import NEUTRAL, Panel, high, low
from queries import FAULTS, KNOWN, MODEL, MODEL_AND_UPSTREAM, SERVICE, UPSTREAM, increase, quantile, rate, share, total
from rows.tokens import COST_BY_MODEL, PAID
from rows.upstreams import FAILED_SHARE

TITLE = "SLO and error budget: health, speed, failing upstream, cost"

_FAILED = f"{KNOWN}, {FAULTS}"
_HANDLED = "grpc_server_handled_total"
_ENDED = "chatrpc_streams_ended_total"
_BROKEN = f'{SERVICE}, outcome!~"complete|client_cancel|rejected"'
_TAKEN_ON = f'{SERVICE}, outcome!="rejected"'
_BUDGET = 0.001
"""Share of calls that may fail through our fault; the target is 99.9 % without."""


def _failed_share(window: str = "$__rate_interval") -> str:
    return share(rate(_HANDLED, _FAILED, window=window), rate(_HANDLED, KNOWN, window=window))


def _burn(window: str) -> str:
    return f"{_failed_share(window)} / {_BUDGET}"


def _stat(title: str, shows: str, bad: str, unit: str, queries: dict[str, str], **more: object) -> Panel:
    return Panel(title, shows, bad, unit, queries, kind="stat", width=4, height=4, **more)  # type: ignore[arg-type]


PANELS = (
    _stat(
        "Instances up",
        "Share of the selected jobs' targets that Prometheus can scrape.",
        "Under 100 %: an instance is down, or its /metrics cannot be reached.",
        "percentunit",
        {"up": 'avg(up{job=~"$job", instance=~"$instance"} and on (job) chatrpc_build_info{job=~"$job"})'},
        steps=low(1, 0.5),
        none="none up",
        none_colour="red",
    ),
    _stat(
        "Success rate",
        "Present availability: share of calls that did not fail through a fault of the service or its upstream. "
        "Callers' mistakes and rejections at a limit do not count as failures.",
        "Under 99.9 %, the target.",
        "percentunit",
        {"success": f"1 - {_failed_share()}"},
        steps=low(0.999, 0.99),
        none="no calls",
        decimals=2,
    ),
    _stat(
        "Error budget remaining",
        "Remaining share of the failures that a target of 99.9 % allows, over the time range above.",
        "Under 0: the target was missed in this time.",
        "percentunit",
        {"remaining": f"1 - {share(increase(_HANDLED, _FAILED), increase(_HANDLED, KNOWN))} / {_BUDGET}"},
        steps=low(0.25, 0),
        none="no calls",
        instant=True,
    ),
    _stat(
        "Time to first chunk, p95",
        "95 % of the streams have their first chunk within this time.",
        "Over 2.5 s, the target.",
        "s",
        {"p95": quantile(95, "gen_ai_client_operation_time_to_first_chunk_seconds", MODEL_AND_UPSTREAM)},
        steps=high(1.5, 2.5),
        none="no streams",
    ),
    _stat(
        "Broken streams",
        "Share of streams that neither completed nor were cancelled by their caller.",
        "Over 1 %: callers receive incomplete responses. 'Streams by outcome' shows the causes.",
        "percentunit",
        {"broken": share(rate(_ENDED, _BROKEN), rate(_ENDED, _TAKEN_ON))},
        steps=high(0.005, 0.01),
        none="no streams",
    ),
    _stat(
        "In flight, share of limit",
        "Calls in progress as a share of their limit, in the fullest instance.",
        "Over 90 %: calls will soon be rejected. Add replicas.",
        "percentunit",
        {
            "occupied": f"max({total('chatrpc_rpcs_in_flight', by='job, instance')}"
            f" / {total('chatrpc_rpcs_in_flight_limit', by='job, instance')})"
        },
        steps=high(0.7, 0.9),
    ),
    _stat(
        "Calls",
        "Calls that ended per second, with any status.",
        "An unplanned fall: callers no longer reach the service.",
        "reqps",
        {"calls": rate(_HANDLED, KNOWN)},
    ),
    _stat(
        "Upstream failures",
        "For each upstream the share of HTTP requests that failed through its fault: no response, 401, 403, 408, 429, "
        "5xx, or a response that is no chat completion.",
        "Over 5 %: this upstream fails. If all are green and calls fail, the fault is ours.",
        "percentunit",
        {"{{upstream}}": FAILED_SHARE},
        steps=high(0.01, 0.05),
        none="no requests",
    ),
    _stat(
        "Upstream response time, p95",
        "95 % of the responses of each upstream start within this time.",
        "Far over its usual value: the upstream is slow. 'Service overhead' is our own part.",
        "s",
        {"{{upstream}}": quantile(95, "chatrpc_upstream_request_seconds", f'{UPSTREAM}, phase="headers"', "upstream")},
        steps=high(2.5, 10),
        none="no requests",
    ),
    _stat(
        "Tokens per second",
        "Input and output tokens, as reported by the upstreams.",
        "A rise without a rise of calls: prompts or responses are longer.",
        "short",
        {"{{gen_ai_token_type}}": rate("chatrpc_tokens_total", f"{MODEL}, {PAID}", "gen_ai_token_type")},
    ),
    _stat(
        "Cost per hour",
        "At the present rate and the prices of a million tokens that are set above. The prices are examples until you "
        "set your own; they apply to all selected models alike.",
        "More than your budget.",
        "currencyUSD",
        {"cost": f"sum({COST_BY_MODEL})"},
        steps=NEUTRAL,
    ),
    _stat(
        "Abandoned share of tokens",
        "Share of tokens that were spent on calls whose caller had disconnected.",
        "Over 10 %: callers' deadlines are too short, or responses too long.",
        "percentunit",
        {
            "abandoned": share(
                rate("chatrpc_abandoned_tokens_total", f"{MODEL}, {PAID}"),
                rate("chatrpc_tokens_total", f"{MODEL}, {PAID}"),
            )
        },
        steps=high(0.05, 0.1),
        none="no tokens",
    ),
    Panel(
        "Error budget burn rate",
        "Speed of spending the budget, as a multiple of the speed that a target of 99.9 % allows, over three windows.",
        "Over 14.4 in 5 minutes and in 1 hour, or over 6 in 6 hours: an alert pages. Over 1 for long: the target is "
        "missed.",
        "short",
        {window: _burn(window) for window in ("5m", "1h", "6h")},
        steps=high(1, 14.4),
        width=12,
        none="no calls",
    ),
    Panel(
        "Calls by code",
        "Calls that ended, by gRPC code.",
        "Internal, Unavailable, DeadlineExceeded: the fault is ours or the upstream's; see 'Failures by reason'. "
        "Unknown, DataLoss: ours. ResourceExhausted: a limit, ours or the provider's. Others: mostly callers.",
        "reqps",
        {"{{grpc_code}}": f"{rate(_HANDLED, SERVICE, 'grpc_code')} > 0"},
        kind="bars",
        colours={
            "OK": "green",
            "Canceled": "blue",
            "Internal|Unknown|DataLoss": "dark-red",
            "Unavailable": "red",
            "DeadlineExceeded": "orange",
            "ResourceExhausted": "yellow",
            "Unimplemented": "purple",
            "Invalid|Not|Already|Permission|Failed|Aborted|Range|Unauth": "light-blue",
        },
        width=12,
        none="no calls",
    ),
)
