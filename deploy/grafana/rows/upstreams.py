"""Upstreams: responses, response times and retries; and the overhead of the service."""

from panel import QUANTILES, Panel, high
from queries import UPSTREAM, quantiles, rate, share

TITLE = "Upstreams"

_REQUESTS = "chatrpc_upstream_requests_total"
_PROTOCOL_ERRORS = "chatrpc_upstream_protocol_errors_total"
_SECONDS = "chatrpc_upstream_request_seconds"
_BLAMED = f'{UPSTREAM}, code=~"(401|403|408|429|5..)?", outcome!="cancelled"'

FAILED_SHARE = share(
    f"({rate(_REQUESTS, _BLAMED, 'upstream')} + {rate(_PROTOCOL_ERRORS, UPSTREAM, 'upstream')})",
    rate(_REQUESTS, UPSTREAM, "upstream"),
)

PANELS = (
    Panel(
        "Responses by code",
        "HTTP requests by outcome and status. no_response: the upstream sent none. cancelled: the call ended before a "
        "response.",
        "429: rate limits. 5xx, no_response: the upstream fails. 401, 403: the key. Other 4xx: callers' requests.",
        "reqps",
        {"{{upstream}} {{outcome}} {{code}}": f"{rate(_REQUESTS, UPSTREAM, 'upstream, outcome, code')} > 0"},
        kind="bars",
        colours={
            " 200$": "green",
            " 4(0[0-8]|[1-9][^9])$": "light-blue",
            " 40[13]$": "yellow",
            " 429$": "orange",
            " 5..$": "red",
            " 50[234]$": "dark-red",
            " no_response $": "purple",
            " cancelled $": "blue",
        },
        none="no requests",
    ),
    Panel(
        "Failures by upstream",
        "Share of requests that failed through the upstream's fault: no response, 401, 403, 408, 429, 5xx, or a "
        "response that is no chat completion.",
        "Over 5 %: this upstream fails.",
        "percentunit",
        {"{{upstream}}": FAILED_SHARE},
        steps=high(0.01, 0.05),
        none="no requests",
    ),
    Panel(
        "Retries",
        "Retries per second, by outcome and status of the attempt before.",
        "More than a tenth of the requests: callers wait longer, and the upstream has more load.",
        "reqps",
        {
            "{{upstream}} after {{outcome}} {{code}}": rate(
                "chatrpc_upstream_retries_total", UPSTREAM, "upstream, outcome, code"
            )
        },
        kind="bars",
    ),
    Panel(
        "Time to response headers",
        "From an HTTP request to the headers of its response. For most upstreams this is the wait for the model.",
        "Far over its usual value: the upstream is slow or full.",
        "s",
        quantiles(_SECONDS, f'{UPSTREAM}, phase="headers"', "upstream"),
        none="no requests",
    ),
    Panel(
        "Response body time",
        "From the headers of a response to its end. For a stream this is the time in which the model writes.",
        "A rise while 'Tokens per call' is unchanged: the model writes more slowly.",
        "s",
        quantiles(_SECONDS, f'{UPSTREAM}, phase="body"', "upstream"),
        none="no requests",
    ),
    Panel(
        "Service overhead",
        "Time of a call that was spent neither on the upstream nor on writes to the caller.",
        "p99 over 50 ms: the service is busy; see 'Event loop lag' and 'CPU'.",
        "s",
        quantiles("chatrpc_overhead_seconds"),
        colours=QUANTILES,
        steps=high(0.025, 0.05),
        none="no calls",
    ),
    Panel(
        "Protocol errors",
        "Responses that were no chat completions, by kind of error.",
        "Any for long: a wrong base_url, a proxy that responds itself, or a change of the provider.",
        "reqps",
        {
            "{{upstream}} {{kind}}": f"{rate(_PROTOCOL_ERRORS, UPSTREAM, 'upstream, kind')} > 0",
        },
        kind="bars",
        none="no errors",
    ),
    Panel(
        "Connections",
        "Connections to an upstream, in use and idle.",
        "active grows and calls do not: the upstream delays requests.",
        "short",
        {"{{upstream}} {{state}}": f"sum by (upstream, state) (chatrpc_upstream_pool_connections{{{UPSTREAM}}})"},
    ),
    Panel(
        "Rate limit remaining",
        "Remaining limit, as last reported by the upstream. Empty: the upstream does not report it.",
        "Near 0: 429 will follow. Request a higher limit from the provider.",
        "short",
        {"{{upstream}} {{kind}}": f"min by (upstream, kind) (chatrpc_upstream_ratelimit_remaining{{{UPSTREAM}}})"},
        kind="stat",
        steps=((None, "red"), (1, "blue")),
        none="not reported",
    ),
)
