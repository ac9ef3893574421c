"""Rollout: what runs, since when, with which settings and certificates."""

from panel import Panel, high, low
from queries import SERVICE, of_this_service, total

TITLE = "Rollout"

_STARTED = f"process_start_time_seconds{{{SERVICE}}}"
_RESULTS = {"success": "green", "failure": "red"}
_SINCE = "chatrpc_config_last_reload_success_timestamp_seconds"


def _changes(metric: str) -> str:
    return f"sum by (result) (increase({metric}{{{SERVICE}}}[$__rate_interval]))"


PANELS = (
    Panel(
        "Versions",
        "Instances of each version of the service and of what it runs on.",
        "Two versions for longer than a rollout takes.",
        "short",
        {"": f"count by (version, python, grpcio, protobuf) (chatrpc_build_info{{{SERVICE}}})"},
        kind="table",
        width=12,
        height=6,
        instant=True,
        columns={
            "version": "chatrpc",
            "python": "Python",
            "grpcio": "grpcio",
            "protobuf": "protobuf",
            "Value": "Instances",
        },
    ),
    Panel(
        "Certificates end in",
        "Time until the first certificate of each role is no longer valid.",
        "Under 14 days: renewal has failed. At 0 no new connection is possible.",
        "s",
        {"{{role}}": f"min by (role) (chatrpc_tls_certificate_not_after_timestamp_seconds{{{SERVICE}}}) - time()"},
        kind="stat",
        width=6,
        height=6,
        steps=low(14 * 86400, 7 * 86400),
        none="no TLS",
    ),
    Panel(
        "Settings read",
        "Time since the settings file was last read successfully, in the instance where that is longest.",
        "Longer than since your last change of it: the change was refused, and the log says why.",
        "s",
        {"ago": f"time() - min({_SINCE}{{{SERVICE}}} > 0)"},
        kind="stat",
        width=6,
        height=6,
        none="no settings file",
    ),
    Panel(
        "Draining",
        "Instances that take their leave: they finish what is in flight and then stop.",
        "For longer than `drain.delay_seconds` and `drain.grace_seconds` together.",
        "short",
        {"{{instance}}": total("chatrpc_draining", by="instance")},
        height=7,
    ),
    Panel(
        "Uptime",
        "Time since each process began. A fall to 0 is a restart.",
        "Falls outside of rollouts: something kills the process, often its limit of memory.",
        "s",
        {"{{instance}} {{worker}}": of_this_service(f"(time() - {_STARTED})")},
        height=7,
    ),
    Panel(
        "Restarts",
        "How often the processes of each instance began anew in the time range above.",
        "More than 2 in half an hour: a loop of restarts.",
        "short",
        {
            "{{instance}}": of_this_service(
                f"sum by (job, instance) (changes(process_start_time_seconds{{{SERVICE}}}[$__range]))"
            )
        },
        kind="stat",
        steps=high(1, 3),
        height=7,
        instant=True,
    ),
    Panel(
        "Reloads of the settings",
        "Changes of the settings file, by whether they were of use.",
        "failure: the old settings still count, and the log says why.",
        "short",
        {"{{result}}": _changes("chatrpc_config_reloads_total")},
        kind="bars",
        colours=_RESULTS,
        height=7,
    ),
    Panel(
        "Reloads of the certificates",
        "Changes of the TLS files, by whether they were of use.",
        "failure: the old certificate still counts, until it ends.",
        "short",
        {"{{result}}": _changes("chatrpc_tls_reloads_total")},
        kind="bars",
        colours=_RESULTS,
        height=7,
    ),
    Panel(
        "Workers",
        "With `--workers`: processes that are meant to be, that there are, and that ended though nobody had told them.",
        "Running under meant for longer than a start takes; any that ended.",
        "short",
        {
            "meant": total("chatrpc_workers_desired"),
            "running": total("chatrpc_workers_running"),
            "ended unasked": f"sum(increase(chatrpc_worker_unexpected_exits_total{{{SERVICE}}}[$__rate_interval]))",
        },
        height=7,
        none="no --workers",
    ),
)
