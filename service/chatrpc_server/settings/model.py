"""Every setting of the service: typed, validated together, immutable."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr

from chatrpc_server.settings.address import Address
from chatrpc_server.settings.fields import (
    AuthScheme,
    Folders,
    HeaderLines,
    HeaderName,
    HeaderValue,
    MetadataKey,
    MetadataKeys,
    ModelName,
    Name,
    Provider,
    Proxy,
    ProxyUrl,
    Query,
    Secret,
    at_least,
    named_groups,
    not_with,
    only_with,
    stripped,
    url_before,
)


class SettingsError(Exception):
    """Invalid settings. `mistakes` lists every mistake, each with its place."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def _safe_listen(value: Address, info: pydantic.ValidationInfo) -> Address:
    tls = info.data.get("tls")  # absent if it is invalid itself
    if value.is_loopback or tls is None or tls.client_ca_file or info.data.get("allow_insecure", True):
        return value
    missing = "authentication of callers (tls.client_ca_file)"
    if not tls.cert_file:
        missing = f"TLS (tls.cert_file) and {missing}"
    raise ValueError(
        f"is beyond loopback without {missing};"
        " add that, or set allow_insecure: true, CHATRPC_ALLOW_INSECURE=true or --allow-insecure"
    )


Listen = Annotated[Address, BeforeValidator(Address.parse), PlainSerializer(str, when_used="json")]
OptionalListen = Annotated[
    Address | None,
    BeforeValidator(lambda value: value if value is None else Address.parse(value)),
    PlainSerializer(str, when_used="json-unless-none"),
]


def _field(default: object, description: str, **bounds: Any) -> Any:
    return Field(default=default, description=description, **bounds)


class _Frozen(pydantic.BaseModel):
    # validate_default, because a default is checked against the fields that it depends on too.
    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class UpstreamSettings(_Frozen):
    """The OpenAI-compatible server that completes chats."""

    name: Name = _field("default", "Name of this upstream in metrics and logs.")
    provider: Provider = _field("openai", "Provider in metrics: OpenTelemetry's gen_ai.provider.name.")
    base_url: Annotated[str, stripped, url_before("/chat/completions")] = _field(
        "https://api.openai.com/v1", "URL before /chat/completions, with /v1 if it has one; else OPENAI_BASE_URL."
    )
    api_key: Secret = _field(
        None, "API key sent to the upstream; else OPENAI_API_KEY. Prefer the file: `ps` shows flags."
    )
    api_key_file: Path | None = _field(
        None, "File that contains the API key; a new key applies to the next request. Else OPENAI_API_KEY_FILE."
    )
    auth_header: HeaderName = _field("authorization", "Header that carries the key, such as api-key for Azure.")
    auth_scheme: AuthScheme = _field(
        None, "Word before the key; if unset, Bearer in `authorization`, and none in another header."
    )
    headers: HeaderLines = _field(
        None, "More headers of each request, as lines `Name: value`. Secret ones belong in `headers_file`."
    )
    headers_file: Path | None = _field(
        None, "File of such lines, which are secret; new content applies to the next request."
    )
    query: Query = _field(None, "Query after /chat/completions, without '?', such as api-version=2024-10-21.")
    key_from_metadata: MetadataKey = _field(
        None, "Metadata key in which callers send their own key for the upstream. Without it, the service's key counts."
    )
    forward_metadata: MetadataKeys = _field((), "Metadata keys that are sent to the upstream as headers.")
    organization: HeaderValue = _field(None, "Sent as OpenAI-Organization; else OPENAI_ORG_ID.")
    project: HeaderValue = _field(None, "Sent as OpenAI-Project; else OPENAI_PROJECT_ID.")
    http_client: Literal["builtin", "httpx"] = _field(
        "builtin", "HTTP client: `builtin` is fast, `httpx` the plain alternative."
    )
    connect_timeout_seconds: float = _field(5, "Longest wait for a connection, in seconds.", gt=0)
    tcp_keepalive_seconds: int = _field(
        30, "Idle time between TCP keepalive probes of a connection, in seconds; 0: none.", ge=0, le=32_767
    )
    first_chunk_timeout_seconds: float = _field(120, "Longest wait for the first chunk, in seconds.", gt=0)
    chunk_gap_timeout_seconds: float = _field(60, "Longest wait from one chunk to the next, in seconds.", gt=0)
    finished_timeout_seconds: float = _field(
        1, "Longest wait for usage or the end after every choice has finished, in seconds.", gt=0
    )
    comments_are_alive: bool = _field(
        False, "Comments and heartbeats restart the waits for the first and the next chunk."
    )
    max_retries: int = _field(2, "Retries per call; none after the first message.", ge=0)
    initial_backoff_seconds: float = _field(
        0.5, "Longest pause before the first retry, in seconds; doubled for each further one.", gt=0
    )
    max_backoff_seconds: Annotated[float, at_least("initial_backoff_seconds")] = _field(
        8, "Longest pause before any retry, in seconds, unless the upstream requests one.", gt=0
    )
    max_retry_after_seconds: float = _field(
        30, "Longest pause that the upstream can request, in seconds; a longer one ends the call.", ge=0
    )
    max_event_bytes: int = _field(
        20 << 20, "Largest event of a stream, in bytes; by default as large as a message (an image).", gt=0
    )
    max_response_bytes: Annotated[int, at_least("max_event_bytes")] = _field(
        64 << 20, "Largest response that is not streamed, in bytes.", gt=0
    )
    ca_file: Path | None = _field(
        None, "PEM file of the only certificate authorities to trust; if unset, certifi's and the extra ones."
    )
    extra_ca_file: Path | None = _field(
        None, "PEM file of authorities to trust beside certifi's; else SSL_CERT_FILE. Unused if `ca_file` is set."
    )
    extra_ca_dir: Folders = _field(
        None, "Directories of such files, separated by `:`, with names by `openssl rehash`; else SSL_CERT_DIR."
    )
    client_cert_file: Path | None = _field(
        None, "PEM file of the service's certificate and its chain, for an upstream that requires one."
    )
    client_key_file: Annotated[Path | None, only_with("client_cert_file", both=True)] = _field(
        None, "PEM file of that certificate's private key, not encrypted."
    )
    proxy: Proxy = _field(
        None, "HTTP proxy, http://host:port or http://user:password@host:port. User name and password are secret."
    )
    proxy_file: Path | None = _field(None, "File that contains the proxy's URL, read at start.")
    proxy_from_env: bool = _field(
        False, "If `proxy` is unset, uses the proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name."
    )


class TlsSettings(_Frozen):
    """TLS on `listen`. Changed files apply to new connections."""

    cert_file: Path | None = _field(
        None, "PEM file of the certificate and its chain. If set, `listen` accepts TLS only."
    )
    key_file: Annotated[Path | None, only_with("cert_file", both=True)] = _field(
        None, "PEM file of the certificate's private key, not encrypted."
    )
    client_ca_file: Annotated[Path | None, only_with("cert_file")] = _field(
        None, "PEM file of the authorities of callers' certificates. If set, other callers are rejected."
    )


class LimitsSettings(_Frozen):
    """Limits of one process."""

    max_message_bytes: int = _field(20 << 20, "Largest gRPC message in or out, in bytes.", gt=0, le=(1 << 31) - 1)
    max_request_elements: int = _field(
        500_000, "Most messages, content parts, tools and other list elements of a request, in total.", gt=0
    )
    max_in_flight: int = _field(1000, "Concurrent calls per process; more are rejected.", gt=0)
    max_bytes_in_flight: Annotated[int, at_least("max_message_bytes")] = _field(
        128 << 20, "Bytes of all requests and unread responses at once; memory use is up to 4 times as much."
    )
    receive_timeout_seconds: float = _field(30, "Longest time for a request to arrive, in seconds.", gt=0)
    max_streams_per_connection: int | None = _field(
        None,
        "Concurrent calls of one connection; more wait in the caller. If unset, twice `max_in_flight`, so that they are"
        " rejected instead. A lower value bounds the cost of a hostile connection.",
        gt=0,
    )
    max_connection_age_seconds: float = _field(
        600,
        "Age at which connections close, in seconds, so that callers find new replicas. Calls continue.",
        ge=1,
        le=2_147_483,
    )
    min_deadline_seconds: float = _field(0.05, "Deadline below which calls are rejected, in seconds.", ge=0)
    default_deadline_seconds: Annotated[float, at_least("min_deadline_seconds")] = _field(
        600, "Deadline of calls without one, in seconds.", gt=0
    )


class DrainSettings(_Frozen):
    """Graceful shutdown."""

    delay_seconds: float = _field(5, "Time to accept calls while load balancers notice, in seconds.", ge=0)
    grace_seconds: float = _field(120, "Time after that for calls in flight to finish, in seconds.", ge=0)


class TracingSettings(_Frozen):
    """OpenTelemetry traces."""

    endpoint: Annotated[str | None, stripped, url_before("/v1/traces")] = _field(
        None, "Collector's OTLP/HTTP URL before /v1/traces; else OTEL_EXPORTER_OTLP_ENDPOINT. If unset, tracing is off."
    )
    sample_ratio: float = _field(1, "Share of traces to keep if the caller has not decided.", ge=0, le=1)


class ModelSettings(_Frozen):
    """One model, by the name that callers use."""


Models = Annotated[
    dict[ModelName, ModelSettings],
    named_groups(str | list[ModelName] | dict[ModelName, ModelSettings]),
]


class LogSettings(_Frozen):
    """Logs on stderr."""

    level: Literal["debug", "info", "warning", "error"] = _field("info", "Lowest severity that is logged.")
    format: Literal["auto", "json", "text"] = _field("auto", "`auto` is text on a terminal, else json.")
    buffer_bytes: int = _field(
        4 << 20, "Longest backlog while stderr is not read, in bytes; further lines are dropped.", gt=0
    )
    capture_stderr: bool = _field(True, "Turns other output on stderr, such as that of gRPC's core, into log lines.")


def _secrets(value: object) -> Iterator[str]:
    """Yield every secret in groups and maps of groups."""
    if isinstance(value, ProxyUrl):
        yield from value.secrets()
    elif isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, pydantic.BaseModel):
        yield from _secrets(dict(value))
    elif isinstance(value, dict):
        for each in value.values():
            yield from _secrets(each)


class Settings(_Frozen):
    """All settings. Use `load`: the constructor reads no files and raises pydantic's ValidationError."""

    allow_insecure: bool = _field(False, "Allows `listen` beyond loopback without TLS or authentication of callers.")
    tls: TlsSettings = TlsSettings()  # before `listen`, because the rule of `listen` reads it
    listen: Annotated[Listen, AfterValidator(_safe_listen)] = _field(
        Address("127.0.0.1", 50051), "Address of the gRPC server; port 0 is any free one."
    )
    health_listen: Annotated[OptionalListen, not_with("listen")] = _field(
        None, "A second address for health checks only, without TLS, for probes."
    )
    metrics_listen: Annotated[Listen, not_with("listen", "health_listen")] = _field(
        Address("127.0.0.1", 9464), "Address of /metrics; port 0 is any free one."
    )
    workers: int = _field(1, "Processes that share `listen`; limits apply to each.", ge=1, le=256)
    worker_heartbeat_timeout_seconds: float = _field(
        30, "Longest silence of a worker's event loop, in seconds; then the parent kills and restarts it.", ge=1
    )
    reflection: bool = _field(False, "Serves gRPC reflection, so that grpcurl needs no .proto files.")
    coalesce: bool = _field(True, "Merges chunks that arrive together into one message; never waits.")
    event_loop: Literal["uvloop", "asyncio"] = _field("uvloop", "Event loop that runs the service.")
    upstream: UpstreamSettings = UpstreamSettings()
    models: Models = _field({}, "Models with their own label in metrics; any other counts as `other`.", max_length=50)
    limits: LimitsSettings = LimitsSettings()
    drain: DrainSettings = DrainSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    def secrets(self) -> list[str]:
        """Return all secrets in plain text, so that they can be redacted."""
        return list(_secrets(self))

    def redacted(self) -> dict[str, Any]:
        """Return all settings in the shape of the YAML file, ready for JSON; a secret that is set is `***`."""
        return self.model_dump(mode="json")
