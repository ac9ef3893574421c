"""PromQL of the dashboard: its label selectors, and the few forms that all its queries have."""

SERVICE = 'job=~"$job", instance=~"$instance"'
MODEL = f'{SERVICE}, gen_ai_request_model=~"$model"'
UPSTREAM = f'{SERVICE}, upstream=~"$upstream"'
MODEL_AND_UPSTREAM = f'{MODEL}, upstream=~"$upstream"'

FAULTS = 'grpc_code=~"Unknown|Internal|Unavailable|DataLoss|DeadlineExceeded|Unimplemented"'
"""Codes that are the fault of the service or its upstream, never the caller's: the same as in the recording rules."""
KNOWN = f'{SERVICE}, grpc_service!="unknown"'
"""RPCs that somebody serves: what callers make up is no failure of the service."""


def rate(metric: str, selector: str = SERVICE, by: str = "", window: str = "$__rate_interval") -> str:
    """Events a second, summed over all labels but `by`."""
    grouping = f"sum by ({by})" if by else "sum"
    return f"{grouping} (rate({metric}{{{selector}}}[{window}]))"


def increase(metric: str, selector: str = SERVICE, by: str = "") -> str:
    """Events in the time range of the dashboard."""
    grouping = f"sum by ({by})" if by else "sum"
    return f"{grouping} (increase({metric}{{{selector}}}[$__range]))"


def total(metric: str, selector: str = SERVICE, by: str = "") -> str:
    """The sum of a gauge over all labels but `by`."""
    grouping = f"sum by ({by})" if by else "sum"
    return f"{grouping} ({metric}{{{selector}}})"


def share(part: str, whole: str) -> str:
    """Of 1; nothing where there is no whole, so that a service without calls is not called a broken one."""
    return f"{part} / ({whole} > 0)"


def quantile(percent: int, histogram: str, selector: str = SERVICE, by: str = "") -> str:
    """So many percent of the observations are at most this; for each of `by`."""
    buckets = rate(f"{histogram}_bucket", selector, ", ".join(filter(None, ("le", by))))
    return f"histogram_quantile({percent / 100:g}, {buckets})"


def quantiles(histogram: str, selector: str = SERVICE, by: str = "") -> dict[str, str]:
    """p50, p95 and p99, by legend; for each of the label `by`."""
    return {
        f"p{percent} {{{{{by}}}}}" if by else f"p{percent}": quantile(percent, histogram, selector, by)
        for percent in (50, 95, 99)
    }


def of_this_service(query: str) -> str:
    """Of a metric that every process in the world has, such as `up`, the series of targets that run chatrpc."""
    return f"{query} and on (job, instance) chatrpc_build_info{{{SERVICE}}}"
