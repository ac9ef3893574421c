"""PromQL of the dashboard: label selectors and the forms of its queries."""

SERVICE = 'job=~"$job", instance=~"$instance"'
MODEL = f'{SERVICE}, gen_ai_request_model=~"$model"'
UPSTREAM = f'{SERVICE}, upstream=~"$upstream"'
MODEL_AND_UPSTREAM = f'{MODEL}, upstream=~"$upstream"'

FAULTS = 'grpc_code=~"Unknown|Internal|Unavailable|DataLoss|DeadlineExceeded|Unimplemented"'
"""Codes that are the fault of the service or its upstream, never the caller's; the recording rules have the same."""
KNOWN = f'{SERVICE}, grpc_service!="unknown"'
"""RPCs that the server has, because a call of an unknown method is no failure of the service."""


def rate(metric: str, selector: str = SERVICE, by: str = "", window: str = "$__rate_interval") -> str:
    """Return the events per second, summed over all labels but `by`."""
    grouping = f"sum by ({by})" if by else "sum"
    return f"{grouping} (rate({metric}{{{selector}}}[{window}]))"


def increase(metric: str, selector: str = SERVICE, by: str = "") -> str:
    """Return the events in the dashboard's time range, summed over all labels but `by`."""
    grouping = f"sum by ({by})" if by else "sum"
    return f"{grouping} (increase({metric}{{{selector}}}[$__range]))"


def total(metric: str, selector: str = SERVICE, by: str = "") -> str:
    """Return the sum of a gauge over all labels but `by`."""
    grouping = f"sum by ({by})" if by else "sum"
    return f"{grouping} ({metric}{{{selector}}})"


def share(part: str, whole: str) -> str:
    """Return the part as a share of 1; empty if the whole is 0, because a service without calls is not broken."""
    return f"{part} / ({whole} > 0)"


def quantile(percent: int, histogram: str, selector: str = SERVICE, by: str = "") -> str:
    """Return the value that so many percent of the observations do not exceed, for each value of `by`."""
    buckets = rate(f"{histogram}_bucket", selector, ", ".join(filter(None, ("le", by))))
    return f"histogram_quantile({percent / 100:g}, {buckets})"


def quantiles(histogram: str, selector: str = SERVICE, by: str = "") -> dict[str, str]:
    """Return p50, p95 and p99 by legend, for each value of the label `by`."""
    return {
        f"p{percent} {{{{{by}}}}}" if by else f"p{percent}": quantile(percent, histogram, selector, by)
        for percent in (50, 95, 99)
    }


def of_this_service(query: str) -> str:
    """Restrict a metric that every process has, such as `up`, to targets that run chatrpc."""
    return f"{query} and on (job, instance) chatrpc_build_info{{{SERVICE}}}"
