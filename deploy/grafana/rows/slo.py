"""Is it healthy, how fast, which upstream is to blame, what does it cost? All of that without scrolling."""

from panel import NEUTRAL, Panel, high, low
from queries import FAULTS, KNOWN, MODEL, MODEL_AND_UPSTREAM, SERVICE, UPSTREAM, increase, quantile, rate, share, total
from rows.tokens import COST_BY_MODEL, PAID
from rows.upstreams import FAILED_SHARE

TITLE = "SLO and budget: is it healthy, how fast, who is to blame, what does it cost?"

_FAILED = f"{KNOWN}, {FAULTS}"
_HANDLED = "grpc_server_handled_total"
_ENDED = "chatrpc_streams_ended_total"
_BROKEN = f'{SERVICE}, outcome!~"complete|client_cancel|rejected"'
_TAKEN_ON = f'{SERVICE}, outcome!="rejected"'
_BUDGET = 0.001
"""The target is 99.9 % of calls without a failure that is ours."""


def _failed_share(window: str = "$__rate_interval") -> str:
    return share(rate(_HANDLED, _FAILED, window=window), rate(_HANDLED, KNOWN, window=window))


def _burn(window: str) -> str:
    return f"{_failed_share(window)} / {_BUDGET}"


def _stat(title: str, shows: str, bad: str, unit: str, queries: dict[str, str], **more: object) -> Panel:
    return Panel(title, shows, bad, unit, queries, kind="stat", width=4, height=4, **more)  # type: ignore[arg-type]


PANELS = (
    _stat(
        "Instances up",
        "Share of the chosen jobs' targets that Prometheus can scrape.",
        "Under 100 %: an instance is down or its /metrics is out of reach.",
        "percentunit",
        {"up": 'avg(up{job=~"$job", instance=~"$instance"} and on (job) chatrpc_build_info{job=~"$job"})'},
        steps=low(1, 0.5),
        none="none is up",
        none_colour="red",
    ),
    _stat(
        "Calls that succeed",
        "Availability now: share of calls that did not fail by the fault of the service or its upstream. "
        "Mistakes of callers and refusals at a limit are not counted as failures.",
        "Under 99.9 %, the target.",
        "percentunit",
        {"succeed": f"1 - {_failed_share()}"},
        steps=low(0.999, 0.99),
        none="no calls",
        decimals=2,
    ),
    _stat(
        "Error budget left",
        "What is left of the failures that a target of 99.9 % allows, over the time range above.",
        "Under 0: the target was missed in this time.",
        "percentunit",
        {"left": f"1 - {share(increase(_HANDLED, _FAILED), increase(_HANDLED, KNOWN))} / {_BUDGET}"},
        steps=low(0.25, 0),
        none="no calls",
        instant=True,
    ),
    _stat(
        "Time to first chunk, p95",
        "19 of 20 streams have brought their first chunk after this time.",
        "Over 2.5 s, the target.",
        "s",
        {"p95": quantile(95, "gen_ai_client_operation_time_to_first_chunk_seconds", MODEL_AND_UPSTREAM)},
        steps=high(1.5, 2.5),
        none="no streams",
    ),
    _stat(
        "Streams that broke",
        "Share of streams that neither completed nor were cancelled by their caller.",
        "Over 1 %: callers see answers that stop in the middle. 'How streams end' tells why.",
        "percentunit",
        {"broken": share(rate(_ENDED, _BROKEN), rate(_ENDED, _TAKEN_ON))},
        steps=high(0.005, 0.01),
        none="no streams",
    ),
    _stat(
        "In flight, of the limit",
        "Calls being handled against the most that are taken on, in the fullest instance.",
        "Over 90 %: calls will be turned away. Add replicas.",
        "percentunit",
        {
            "occupied": f"max({total('chatrpc_rpcs_in_flight', by='job, instance')}"
            f" / {total('chatrpc_rpcs_in_flight_limit', by='job, instance')})"
        },
        steps=high(0.7, 0.9),
    ),
    _stat(
        "Calls",
        "Calls that came to an end, whatever the end.",
        "A fall that nobody planned: callers no longer get here.",
        "reqps",
        {"calls": rate(_HANDLED, KNOWN)},
    ),
    _stat(
        "Upstream to blame",
        "For each upstream the share of HTTP requests that failed by its fault: no response, 401, 403, 408, 429, 5xx, "
        "or a response that is no chat completion.",
        "Over 5 %. Red is to blame; if all are green and calls fail, look at ourselves.",
        "percentunit",
        {"{{upstream}}": FAILED_SHARE},
        steps=high(0.01, 0.05),
        none="no requests",
    ),
    _stat(
        "Upstream answers, p95",
        "19 of 20 responses of each upstream have begun after this time.",
        "Far over its usual value: the upstream is slow, not we ('Our overhead' is our part).",
        "s",
        {"{{upstream}}": quantile(95, "chatrpc_upstream_request_seconds", f'{UPSTREAM}, phase="headers"', "upstream")},
        steps=high(2.5, 10),
        none="no requests",
    ),
    _stat(
        "Tokens a second",
        "Input and output tokens, as the upstreams report them.",
        "A rise without one of calls: prompts or answers have become longer.",
        "short",
        {"{{gen_ai_token_type}}": rate("chatrpc_tokens_total", f"{MODEL}, {PAID}", "gen_ai_token_type")},
    ),
    _stat(
        "Cost an hour",
        "At the present rate and at the prices for a million tokens that are set above. The prices are examples until "
        "you set your own; they apply to all chosen models alike.",
        "More than you mean to spend.",
        "currencyUSD",
        {"cost": f"sum({COST_BY_MODEL})"},
        steps=NEUTRAL,
    ),
    _stat(
        "Tokens for nobody",
        "Share of tokens that were spent on calls whose caller had gone.",
        "Over 10 %: callers' deadlines are too short, or answers too long.",
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
        "Burn rate of the error budget",
        "How many times faster than a target of 99.9 % allows the budget is spent, over three windows.",
        "Over 14.4 in 5 minutes and in 1 hour, or over 6 in 6 hours: somebody is paged. Over 1 for long: the target is "
        "missed.",
        "short",
        {window: _burn(window) for window in ("5m", "1h", "6h")},
        steps=high(1, 14.4),
        width=12,
        none="no calls",
    ),
    Panel(
        "Calls by code",
        "Calls that came to an end, by gRPC code.",
        "Internal, Unavailable, DeadlineExceeded: ours or the upstream's, and 'Failures by reason' tells whose. "
        "Unknown, DataLoss: ours. ResourceExhausted: a limit, ours or the provider's. The rest: callers, mostly.",
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
