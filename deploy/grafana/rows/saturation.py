"""Saturation: how full the service is, and which resource gives out first."""

from panel import QUANTILES, Panel, high
from queries import SERVICE, of_this_service, quantiles, rate, total

TITLE = "Saturation"

_PROCESS = "{{instance}} {{worker}}"
"""With `--workers` each process has its series of process_*; alone it has no label `worker`."""


def _process(metric: str) -> str:
    return of_this_service(f"{metric}{{{SERVICE}}}")


PANELS = (
    Panel(
        "In flight",
        "Calls being handled, and how many are taken on at most.",
        "Near the limit: further calls are turned away.",
        "short",
        {
            "{{grpc_method}}": total("chatrpc_rpcs_in_flight", by="grpc_method"),
            "limit": total("chatrpc_rpcs_in_flight_limit"),
        },
        colours={"limit": "red"},
    ),
    Panel(
        "Turned away",
        "Calls refused before any work. in_flight: too many at once; deadline: less time left than a call can need.",
        "Any of in_flight: add replicas or raise `limits.max_in_flight`. deadline: callers' timeouts.",
        "reqps",
        {"{{reason}}": rate("chatrpc_admission_rejected_total", by="reason")},
        kind="bars",
        colours={"in_flight": "red", "deadline": "yellow"},
    ),
    Panel(
        "Event loop lag",
        "How late the event loop woke a sleeper: every call waits as long.",
        "p99 over 0.25 s: the process is out of CPU, or something blocks the loop.",
        "s",
        quantiles("chatrpc_event_loop_lag_seconds"),
        colours=QUANTILES,
        steps=high(0.1, 0.25),
    ),
    Panel(
        "Tasks",
        "Tasks of the event loop: some for each call in flight.",
        "Growth without calls is a leak.",
        "short",
        {"{{instance}}": total("chatrpc_asyncio_tasks", by="instance")},
    ),
    Panel(
        "CPU",
        "Cores in use by each process.",
        "Near 1: a process uses one core. Add replicas or workers.",
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
        "Descriptors",
        "Open file descriptors against the limit: one for each connection.",
        "Over 80 %: new connections will fail. Raise the limit (`ulimit -n`).",
        "percentunit",
        {_PROCESS: of_this_service(f"(process_open_fds{{{SERVICE}}} / process_max_fds{{{SERVICE}}})")},
        steps=high(0.6, 0.8),
    ),
    Panel(
        "Deadlines of callers",
        "Time that callers gave their calls, less 1 % that grpc may add on the way.",
        "p50 under the usual duration of calls: they are bound to end as DeadlineExceeded.",
        "s",
        quantiles("chatrpc_deadline_remaining_at_start_seconds"),
        colours=QUANTILES,
        none="no deadlines",
    ),
    Panel(
        "Deadlines missing",
        "Calls that came without a deadline; they got `limits.default_deadline_seconds`.",
        "Any for long: a caller that would wait for ever. gRPC calls should have a deadline.",
        "reqps",
        {"{{grpc_method}}": rate("chatrpc_deadline_missing_total", by="grpc_method")},
    ),
)
