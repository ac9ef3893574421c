"""Every setting of the service: typed, validated together, immutable. The only place that reads `os.environ`.

The model and the doors to it; `settings/fields` says what values look like, `settings/sources` finds them. Nothing is
started or logged here.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from chatrpc_server.settings.address import Address
from chatrpc_server.settings.fields import (
    HeaderValue,
    Models,
    Name,
    Provider,
    Proxy,
    Secret,
    at_least,
    only_with,
    stripped,
    url_before,
)


class SettingsError(Exception):
    """The settings cannot be used. `mistakes` holds every one, each with the place where it stands."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def _safe_listen(value: Address, info: pydantic.ValidationInfo) -> Address:
    tls = info.data.get("tls")  # absent if it is a mistake itself
    if value.is_loopback or tls is None or tls.client_ca_file or info.data.get("allow_insecure", True):
        return value
    lacks = "authenticating callers (tls.client_ca_file)"
    if not tls.cert_file:
        lacks = f"TLS (tls.cert_file) and without {lacks}"
    raise ValueError(
        f"listens beyond loopback without {lacks}; if that is meant, say so:"
        " allow_insecure: true, CHATRPC_ALLOW_INSECURE=true or --allow-insecure"
    )


Listen = Annotated[Address, BeforeValidator(Address.parse), PlainSerializer(str, when_used="json")]
OptionalListen = Annotated[
    Address | None,
    BeforeValidator(lambda value: value if value is None else Address.parse(value)),
    PlainSerializer(str, when_used="json-unless-none"),
]


def _is(default: object, description: str, **bounds: Any) -> Any:
    return Field(default=default, description=description, **bounds)


class _Frozen(pydantic.BaseModel):
    # validate_default: a default, too, is judged against the fields it depends on.
    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class UpstreamSettings(_Frozen):
    """The OpenAI-compatible service that answers."""

    name: Name = _is("default", "Name of this upstream in metrics.")
    provider: Provider = _is("openai", "Provider in metrics: OpenTelemetry's gen_ai.provider.name.")
    base_url: Annotated[str, stripped, url_before("/chat/completions")] = _is(
        "https://api.openai.com/v1", "Address before /chat/completions, with /v1 if it has one; else OPENAI_BASE_URL."
    )
    api_key: Secret = _is(None, "Key sent upstream; else OPENAI_API_KEY. A flag shows in `ps`: prefer the file.")
    api_key_file: Path | None = _is(None, "File that holds the key, read at start; else OPENAI_API_KEY_FILE.")
    organization: HeaderValue = _is(None, "Sent as OpenAI-Organization; else OPENAI_ORG_ID.")
    project: HeaderValue = _is(None, "Sent as OpenAI-Project; else OPENAI_PROJECT_ID.")
    models: Models = _is((), "Models with a label of their own in metrics; others count as `other`.")
    http_client: Literal["builtin", "httpx"] = _is(
        "builtin", "HTTP client for the upstream: builtin is the fast one, httpx the plain one."
    )
    connect_timeout_seconds: float = _is(5, "Longest wait for a connection, in seconds.", gt=0)
    first_chunk_timeout_seconds: float = _is(120, "Longest wait for the first chunk, in seconds.", gt=0)
    chunk_gap_timeout_seconds: float = _is(60, "Longest wait from one chunk to the next, in seconds.", gt=0)
    max_retries: int = _is(2, "Attempts after the first; none once the answer has begun.", ge=0)
    initial_backoff_seconds: float = _is(0.5, "Longest pause before the first retry, in seconds.", gt=0)
    max_backoff_seconds: Annotated[float, at_least("initial_backoff_seconds")] = _is(
        8, "Longest pause before any retry, in seconds.", gt=0
    )
    max_event_bytes: int = _is(1 << 20, "Largest event of a stream, in bytes.", gt=0)
    max_response_bytes: Annotated[int, at_least("max_event_bytes")] = _is(
        64 << 20, "Largest answer that is no stream, in bytes.", gt=0
    )
    ca_file: Path | None = _is(None, "PEM file of the only authorities to trust; none: the usual ones.")
    proxy: Proxy = _is(None, "HTTP proxy, http://host:port; HTTPS_PROXY and its like are not used.")


class TlsSettings(_Frozen):
    """TLS on `listen`. The files are read again whenever they change."""

    cert_file: Path | None = _is(None, "PEM file of the certificate and its chain. With it `listen` speaks TLS only.")
    key_file: Annotated[Path | None, only_with("cert_file", both=True)] = _is(
        None, "PEM file of the certificate's private key, not encrypted."
    )
    client_ca_file: Annotated[Path | None, only_with("cert_file")] = _is(
        None, "PEM file of the authorities of callers' certificates. With it callers without one are refused."
    )


class LimitsSettings(_Frozen):
    """What one process takes on."""

    max_message_bytes: int = _is(20 << 20, "Largest gRPC message in or out, in bytes.", gt=0, le=(1 << 31) - 1)
    max_in_flight: int = _is(1000, "Calls at once in one process; more are refused.", gt=0)
    max_connection_age_seconds: float = _is(
        600, "Age at which connections end, in seconds; calls go on. So callers find new replicas.", ge=1, le=2_147_483
    )
    min_deadline_seconds: float = _is(0.05, "Calls with less time left are refused, in seconds.", ge=0)
    default_deadline_seconds: Annotated[float, at_least("min_deadline_seconds")] = _is(
        600, "Deadline of calls that bring none, in seconds.", gt=0
    )


class DrainSettings(_Frozen):
    """How the service stops."""

    delay_seconds: float = _is(5, "Still accepting calls while balancers take note, in seconds.", ge=0)
    grace_seconds: float = _is(120, "Time after that for calls in flight to finish, in seconds.", ge=0)


class TracingSettings(_Frozen):
    """Traces, sent by OpenTelemetry."""

    endpoint: Annotated[str | None, stripped, url_before("/v1/traces")] = _is(
        None, "Collector's OTLP/HTTP address before /v1/traces; else OTEL_EXPORTER_OTLP_ENDPOINT. None: no traces."
    )
    sample_ratio: float = _is(1, "Share of the traces begun here that is kept; else the caller decides.", ge=0, le=1)


class LogSettings(_Frozen):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = _is("info", "Least severity that is logged.")
    format: Literal["auto", "json", "text"] = _is("auto", "`auto` is text on a terminal, else json.")


class Settings(_Frozen):
    """All settings, from `load`. Built directly it reads no file and raises pydantic's ValidationError."""

    allow_insecure: bool = _is(False, "Allows `listen` beyond loopback, without TLS or caller authentication.")
    tls: TlsSettings = TlsSettings()  # before `listen`, which is judged by it
    listen: Annotated[Listen, AfterValidator(_safe_listen)] = _is(
        Address("127.0.0.1", 50051), "Address for gRPC; port 0 is any free one."
    )
    health_listen: OptionalListen = _is(None, "One more address, for health alone and without TLS, as probes need it.")
    metrics_listen: Listen = _is(Address("127.0.0.1", 9464), "Address for /metrics; port 0 is any free one.")
    workers: int = _is(1, "Processes that share `listen`; each has the limits for itself.", ge=1, le=256)
    reflection: bool = _is(False, "Serves gRPC reflection, so that grpcurl needs no .proto files.")
    coalesce: bool = _is(True, "Merges chunks that arrived together into one message; never waits.")
    event_loop: Literal["uvloop", "asyncio"] = _is("uvloop", "Event loop that runs the service.")
    upstream: UpstreamSettings = UpstreamSettings()
    limits: LimitsSettings = LimitsSettings()
    drain: DrainSettings = DrainSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    def secrets(self) -> list[str]:
        """Return all secrets in plain text, so that they can be redacted."""
        key = self.upstream.api_key
        return [key.get_secret_value()] if key else []

    def redacted(self) -> dict[str, Any]:
        """All settings in the shape of the YAML file, ready for JSON; a secret that is set is `***`."""
        return self.model_dump(mode="json")
