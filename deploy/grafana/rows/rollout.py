"""Rollout: versions, uptime, settings and certificates."""

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
        "Instances of each version of the service, Python and libraries.",
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
        "Certificates expire in",
        "Time until the first certificate of each role expires.",
        "Under 14 days: renewal has failed. At 0 new connections fail.",
        "s",
        {"{{role}}": f"min by (role) (chatrpc_tls_certificate_not_after_timestamp_seconds{{{SERVICE}}}) - time()"},
        kind="stat",
        width=6,
        height=6,
        steps=low(14 * 86400, 7 * 86400),
        none="no TLS",
    ),
    Panel(
        "Settings loaded",
        "Longest time of an instance since it last loaded its settings file successfully.",
        "Longer than since your last change of the file: the change was rejected; the log has the reason.",
        "s",
        {"ago": f"time() - min({_SINCE}{{{SERVICE}}} > 0)"},
        kind="stat",
        width=6,
        height=6,
        none="no settings file",
    ),
    Panel(
        "Draining",
        "Instances that finish their calls in flight before they stop.",
        "For longer than `drain.delay_seconds` and `drain.grace_seconds` together.",
        "short",
        {"{{instance}}": total("chatrpc_draining", by="instance")},
        height=7,
    ),
    Panel(
        "Uptime",
        "Time since each process started. A fall to 0 is a restart.",
        "Falls outside of rollouts: the process is killed, often because of its memory limit.",
        "s",
        {"{{instance}} {{worker}}": of_this_service(f"(time() - {_STARTED})")},
        height=7,
    ),
    Panel(
        "Restarts",
        "Restarts of the processes of each instance in the time range above.",
        "More than 2 in half an hour: a restart loop.",
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
        "Settings reloads",
        "Reloads after a change of the settings file, by result.",
        "failure: the old settings remain active; the log has the reason.",
        "short",
        {"{{result}}": _changes("chatrpc_config_reloads_total")},
        kind="bars",
        colours=_RESULTS,
        height=7,
    ),
    Panel(
        "Certificate reloads",
        "Reloads after a change of the TLS files, by result.",
        "failure: the old certificate remains active until it expires.",
        "short",
        {"{{result}}": _changes("chatrpc_tls_reloads_total")},
        kind="bars",
        colours=_RESULTS,
        height=7,
    ),
    Panel(
        "Workers",
        "With `--workers`: desired and running processes, unexpected exits, and processes with incomplete metrics.",
        "Fewer running than desired for longer than a start takes; any unexpected exit; any with incomplete metrics.",
        "short",
        {
            "desired": total("chatrpc_workers_desired"),
            "running": total("chatrpc_workers_running"),
            "unexpected exits": f"sum(increase(chatrpc_worker_unexpected_exits_total{{{SERVICE}}}[$__rate_interval]))",
            "metrics incomplete": total("chatrpc_workers_metrics_incomplete"),
        },
        height=7,
        none="no --workers",
    ),
)
