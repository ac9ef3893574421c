"""Saturation: use of each resource in relation to its limit."""

from panel import QUANTILES, Panel, high
from queries import SERVICE, of_this_service, quantiles, rate, total

TITLE = "Saturation"

_PROCESS = "{{instance}} {{worker}}"
"""With `--workers` each process has its own process_* series. Without, the label `worker` is absent."""


def _process(metric: str) -> str:
    return of_this_service(f"{metric}{{{SERVICE}}}")


PANELS = (
    Panel(
        "In flight",
        "Calls in progress, and their limit.",
        "Near the limit: further calls are rejected.",
        "short",
        {
            "{{grpc_method}}": total("chatrpc_rpcs_in_flight", by="grpc_method"),
            "limit": total("chatrpc_rpcs_in_flight_limit"),
        },
        colours={"limit": "red"},
    ),
    Panel(
        "Message bytes",
        "Bytes of requests and unread responses, and their limit. Memory use is up to four times as much.",
        "Near the limit: large calls are rejected, or callers do not read their responses.",
        "bytes",
        {
            "in flight": total("chatrpc_message_bytes_in_flight"),
            "limit": total("chatrpc_message_bytes_in_flight_limit"),
        },
        colours={"limit": "red"},
    ),
    Panel(
        "Rejected calls",
        "Rejected calls. in_flight, bytes: too many at once, or too large. receiving: requests arrive too slowly."
        " deadline: too little time left. malformed: no message.",
        "in_flight, bytes: add replicas or raise `limits.max_in_flight` or `limits.max_bytes_in_flight`. receiving: an"
        " attack, or slow uploads. deadline: callers' timeouts are too short.",
        "reqps",
        {"{{reason}}": rate("chatrpc_admission_rejected_total", by="reason")},
        kind="bars",
        colours={"in_flight": "red", "bytes": "red", "receiving": "orange", "deadline": "yellow"},
    ),
    Panel(
        "Event loop lag",
        "Delay of the event loop's wake-ups; every call waits as long.",
        "p99 over 0.25 s: the process is out of CPU, or code blocks the loop.",
        "s",
        quantiles("chatrpc_event_loop_lag_seconds"),
        colours=QUANTILES,
        steps=high(0.1, 0.25),
    ),
    Panel(
        "Tasks",
        "Tasks of the event loop; each call in flight has some.",
        "Growth without calls is a leak.",
        "short",
        {"{{instance}}": total("chatrpc_asyncio_tasks", by="instance")},
    ),
    Panel(
        "CPU",
        "Cores in use by each process.",
        "Near 1, because a process can use only one core: add replicas or workers.",
        "short",
        {_PROCESS: of_this_service(f"rate(process_cpu_seconds_total{{{SERVICE}}}[$__rate_interval])")},
        steps=high(0.7, 0.9),
    ),
    Panel(
        "Memory",
        "Resident memory of each process.",
        "Steady growth over hours at the same load is a leak.",
        "bytes",
        {_PROCESS: _process("process_resident_memory_bytes")},
    ),
    Panel(
        "File descriptors",
        "Open file descriptors, as a share of the limit; each connection has one.",
        "Over 80 %: new connections will soon fail. Raise the limit (`ulimit -n`).",
        "percentunit",
        {_PROCESS: of_this_service(f"(process_open_fds{{{SERVICE}}} / process_max_fds{{{SERVICE}}})")},
        steps=high(0.6, 0.8),
    ),
    Panel(
        "Caller deadlines",
        "Time until the deadline at the start of each call, minus 1 % that grpc may add on the way.",
        "p50 under the usual duration of calls: half of the calls will fail with DeadlineExceeded.",
        "s",
        quantiles("chatrpc_deadline_remaining_at_start_seconds"),
        colours=QUANTILES,
        none="no deadlines",
    ),
    Panel(
        "Calls without a deadline",
        "Calls without a deadline; `limits.default_deadline_seconds` applies to them.",
        "Any for long: a caller that could wait for ever. gRPC calls should have a deadline.",
        "reqps",
        {"{{grpc_method}}": rate("chatrpc_deadline_missing_total", by="grpc_method")},
    ),
    Panel(
        "Lost log lines",
        "Log lines that were lost because stderr was not read or failed.",
        "Any: the reader of the log is too slow, or its disk is full. `log_lines_dropped` in the log has the gaps.",
        "short",
        {"{{instance}}": rate("chatrpc_log_lines_dropped_total", by="instance")},
        steps=high(0.001, 1),
    ),
)
