"""Settings: where each comes from, which source wins, and what is said about mistakes."""

import json
import os
import pickle
import re
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_server.settings import Address, Settings, SettingsError, UpstreamSettings, add_flags, describe, load

CANARY = "sk-canary-7f3a"
ROWS = describe()

BEYOND = (
    "listens beyond loopback without TLS (tls.cert_file) and without authenticating callers (tls.client_ca_file);"
    " if that is meant, say so:"
    " allow_insecure: true, CHATRPC_ALLOW_INSECURE=true or --allow-insecure"
)
HOST_PORT = "must be host:port, such as 127.0.0.1:50051 or [::1]:0 (no unix sockets)"
URL = "must be http:// or https://, a host and the path before /chat/completions"
COLLECTOR = "must be http:// or https://, a host and the path before /v1/traces"
URL_EXTRAS = "must not hold a user name, password, query (?…) or fragment (#…)"
URL_TOO_LONG = "must end before /chat/completions, which the service adds"
PROXY = "must be http://host:port, without user name and path"
HEADER = "must be visible ASCII characters, without spaces or line breaks"
NAME = "must be lower-case letters, digits, '_' and '-', such as eu-1"
POSITIVE = "must be a number, more than 0"


def parser() -> ArgumentParser:
    """As the CLI builds it: flags on a subcommand."""
    root = ArgumentParser(prog="chatrpc-server")
    commands = root.add_subparsers()
    for name in ("serve", "demo"):
        add_flags(commands.add_parser(name))
    return root


def load_from(
    flags: tuple[str, ...] = (),
    environ: dict[str, str] | None = None,
    file: Path | None = None,
    text: str | None = None,
) -> Settings:
    if file is not None and text is not None:
        file.write_text(text)
        flags = ("--config", str(file), *flags)
    args, unknown = parser().parse_known_args(["serve", *flags])
    return load(args, environ or {}, unknown)


def mistakes(**sources: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_from(**sources)
    assert str(caught.value).splitlines() == list(caught.value.mistakes)
    return list(caught.value.mistakes)


def at(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value.get_secret_value() if isinstance(value, pydantic.SecretStr) else value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


# --- Address ---


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051, True),
        ("127.8.9.1:0", "127.8.9.1", 0, True),
        ("localhost:65535", "localhost", 65535, True),
        ("LOCALHOST:1", "LOCALHOST", 1, True),
        ("[::1]:50051", "::1", 50051, True),
        ("[::]:50051", "::", 50051, False),
        ("[fe80::1]:50051", "fe80::1", 50051, False),
        ("0.0.0.0:50051", "0.0.0.0", 50051, False),
        ("chatrpc.example.com:80", "chatrpc.example.com", 80, False),
        ("127.example.com:80", "127.example.com", 80, False),
        ("localhost.example.com:80", "localhost.example.com", 80, False),
    ],
)
def test_address(text: str, host: str, port: int, loopback: bool) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.is_loopback, str(address)) == (host, port, loopback, text)
    assert Address.parse(address) is address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "50051",
        ":50051",
        "*:50051",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:٣",
        "127.1:50051",
        "256.0.0.1:50051",
        "::1:50051",
        "[::1]",
        "[::g]:50051",
        "[127.0.0.1]:50051",
        "http://127.0.0.1:50051",
        "unix:/run/chatrpc.sock",
        "a host:50051",
        "127.0.0.1:50051\n",
        50051,
        None,
    ],
    ids=repr,
)
def test_no_address(text: object) -> None:
    with pytest.raises(ValueError, match=re.escape(HOST_PORT)):
        Address.parse(text)


# --- Sources ---

# Two values for each setting that are not its default; the second in another of its source's forms.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "allow_insecure": ("true", True),
    "listen": ("[::1]:0", Address("::1", 0)),
    "health_listen": ("0.0.0.0:50052", Address("0.0.0.0", 50052)),
    "metrics_listen": ("0.0.0.0:9464", Address("0.0.0.0", 9464)),
    "workers": ("4", 4),
    "reflection": ("true", True),
    "coalesce": ("false", False),
    "event_loop": ("asyncio", "asyncio"),
    "upstream.name": ("eu-1", "eu-1"),
    "upstream.provider": ("azure.ai.openai", "azure.ai.openai"),
    "upstream.base_url": ("http://[::1]:8000/api/v1/", "http://[::1]:8000/api/v1"),
    "upstream.api_key": (CANARY, CANARY),
    "upstream.organization": ("org-1", "org-1"),
    "upstream.project": ("007", "007"),
    "upstream.models": ("gpt-4o, yi-vision,", ("gpt-4o", "yi-vision")),
    "upstream.http_client": ("httpx", "httpx"),
    "upstream.connect_timeout_seconds": ("0.5", 0.5),
    "upstream.first_chunk_timeout_seconds": ("1e3", 1000.0),
    "upstream.chunk_gap_timeout_seconds": ("7", 7.0),
    "upstream.max_retries": ("0", 0),
    "upstream.initial_backoff_seconds": ("8", 8.0),
    "upstream.max_backoff_seconds": ("0.5", 0.5),
    "upstream.max_event_bytes": ("1024", 1024),
    "upstream.max_response_bytes": ("1048576", 1048576),
    "upstream.proxy": ("http://proxy.example.com:3128", "http://proxy.example.com:3128"),
    "limits.max_message_bytes": ("4194304", 4194304),
    "limits.max_in_flight": ("1", 1),
    "limits.max_connection_age_seconds": ("60", 60.0),
    "limits.min_deadline_seconds": ("0", 0.0),
    "limits.default_deadline_seconds": ("30", 30.0),
    "drain.delay_seconds": ("0", 0.0),
    "drain.grace_seconds": ("0", 0.0),
    "log.level": ("debug", "debug"),
    "log.format": ("json", "json"),
    "tracing.endpoint": ("https://[::1]:4318/otlp/", "https://[::1]:4318/otlp"),
    "tracing.sample_ratio": ("0.25", 0.25),
}
FILES = {"upstream.api_key_file", "upstream.ca_file", "tls.cert_file", "tls.key_file", "tls.client_ca_file"}


def test_every_setting_has_an_example() -> None:
    assert EXAMPLES.keys() | FILES == {row.path for row in ROWS}


def as_yaml(path: str, value: str) -> str:
    group, _, name = path.rpartition(".")
    return f"{group}:\n  {name}: {value}\n" if group else f"{name}: {json.dumps(value) if '[' in value else value}\n"


@pytest.mark.parametrize("path", EXAMPLES)
@pytest.mark.parametrize("source", ["file", "environment", "flag"])
def test_every_setting_in_every_source(source: str, path: str, file: Path) -> None:
    row = next(row for row in ROWS if row.path == path)
    text, expected = EXAMPLES[path]
    if source == "file":
        settings = load_from(file=file, text=as_yaml(path, text))
    elif source == "environment":
        settings = load_from(environ={row.env: text})
    elif row.type == "true or false":
        settings = load_from((row.flag if expected else row.flag.replace("--", "--no-"),))
    else:
        settings = load_from((row.flag, text))
    assert at(settings, path) == expected
    default = at(Settings(), path)
    assert default != expected
    # …and nothing else has changed.
    group, _, name = path.rpartition(".")
    holder = at(settings, group) if group else settings
    restored = holder.model_copy(update={name: default})
    assert (settings.model_copy(update={group: restored}) if group else restored) == Settings()


def test_defaults() -> None:
    assert load_from() == Settings()
    assert {
        path: at(Settings(), path) for path in ("listen", "upstream.max_response_bytes", "drain.delay_seconds")
    } == {
        "listen": Address("127.0.0.1", 50051),
        "upstream.max_response_bytes": 67108864,
        "drain.delay_seconds": 5,
    }


def test_lists() -> None:
    flags = load_from(("--upstream.models", "a,b", "--upstream.models=c"))
    assert flags.upstream.models == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("upstream: {models: [a, 'b,c', 4]}", ("a", "b,c", "4")),
        ("upstream:\n  models:\n    - a\n    - b\n", ("a", "b")),
        ("upstream: {models: []}", ()),
        ("upstream: {models: 'a, b'}", ("a", "b")),
    ],
)
def test_lists_in_yaml(text: str, models: tuple[str, ...], file: Path) -> None:
    assert load_from(file=file, text=text).upstream.models == models


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        ("", "https://api.openai.com/v1"),
        ("openai", "http://openai"),
        ("openai file", "http://file"),
        ("openai file environment", "http://environment"),
        ("openai file environment flag", "http://flag"),
        ("openai environment", "http://environment"),
        ("openai flag", "http://flag"),
        ("file flag", "http://flag"),
    ],
)
def test_the_stronger_source_wins(sources: str, name: str, file: Path) -> None:
    environ = {}
    if "openai" in sources:
        environ["OPENAI_BASE_URL"] = "http://openai"
    if "environment" in sources:
        environ["CHATRPC_UPSTREAM__BASE_URL"] = "http://environment"
    flags = ("--upstream.base-url", "http://flag") if "flag" in sources else ()
    text = "upstream: {base_url: http://file}" if "file" in sources else None
    assert load_from(flags, environ, file, text).upstream.base_url == name


def test_sources_meet_within_one_group(file: Path) -> None:
    settings = load_from(
        ("--upstream.max-retries", "1"), {"CHATRPC_UPSTREAM__PROVIDER": "x_ai"}, file, "upstream: {name: eu}"
    )
    assert settings.upstream == UpstreamSettings(name="eu", provider="x_ai", max_retries=1)


@pytest.mark.parametrize(
    ("variable", "path", "value"),
    [
        ("OPENAI_API_KEY", "upstream.api_key", CANARY),
        ("OPENAI_BASE_URL", "upstream.base_url", "http://127.0.0.1:8000/v1"),
        ("OPENAI_ORG_ID", "upstream.organization", "org-1"),
        ("OPENAI_PROJECT_ID", "upstream.project", "proj_1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "tracing.endpoint", "http://collector:4318"),
    ],
)
def test_customary_variables(variable: str, path: str, value: str) -> None:
    assert at(load(None, {variable: value}), path) == value
    assert variable in next(row.description for row in ROWS if row.path == path)


@pytest.mark.parametrize(
    "environ",
    [
        {"OPENAI_API_KEY": ""},
        {"OPENAI_API_KEY_FILE": "", "OPENAI_BASE_URL": ""},
        {"CHATRPC_UPSTREAM__API_KEY": "", "CHATRPC_LISTEN": "", "CHATRPC_CONFIG": ""},
        {"CHATRPC_NO_SUCH_THING": ""},
        {"PATH": "/bin", "OPENAI_LOG": "debug", "XCHATRPC_LISTEN": "x", "HTTPS_PROXY": "http://proxy"},
        {"CHATRPC_SERVICE_HOST": "10.0.0.1", "CHATRPC_SERVICE_PORT": "50051", "CHATRPC_SERVICE_PORT_METRICS": "9464"},
        {"CHATRPC_PORT": "tcp://10.0.0.1:50051", "CHATRPC_PORT_50051_TCP": "tcp://10.0.0.1:50051"},
        {"CHATRPC_PORT_50051_TCP_PROTO": "tcp", "CHATRPC_PORT_50051_TCP_PORT": "50051"},
        {"CHATRPC_CANARY_SERVICE_HOST": "10.0.0.1", "CHATRPC_CANARY_PORT": "tcp://10.0.0.1:50051"},
    ],
    ids=lambda environ: next(iter(environ)),
)
def test_variables_that_say_nothing(environ: dict[str, str]) -> None:
    assert load(None, environ) == Settings()


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "upstream:\n", "upstream: {api_key: ~, name: null}", "\ufeff"]
)
def test_files_that_say_nothing(text: str, file: Path) -> None:
    assert load_from(file=file, text=text) == Settings()


def test_config_names_the_file_and_the_flag_is_stronger(file: Path, tmp_path: Path) -> None:
    file.write_text("upstream: {name: one}")
    other = tmp_path / "other.yaml"
    assert load_from(environ={"CHATRPC_CONFIG": str(file)}).upstream.name == "one"
    settings = load_from(environ={"CHATRPC_CONFIG": str(file)}, file=other, text="upstream: {name: two}")
    assert settings.upstream.name == "two"


def test_foreign_arguments_are_left_alone() -> None:
    assert load(Namespace(keep=True, run=print), {}) == Settings()


# --- Secrets ---


@pytest.mark.parametrize("source", ["openai", "file", "environment", "flag"])
def test_a_secret_from_a_file(source: str, file: Path, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(f"  {CANARY}\n\n")
    settings = {
        "openai": lambda: load_from(environ={"OPENAI_API_KEY_FILE": str(key_file)}),
        "file": lambda: load_from(file=file, text=f"upstream: {{api_key_file: {key_file}}}"),
        "environment": lambda: load_from(environ={"CHATRPC_UPSTREAM__API_KEY_FILE": str(key_file)}),
        "flag": lambda: load_from(("--upstream.api-key-file", str(key_file))),
    }[source]()
    assert at(settings, "upstream.api_key") == CANARY
    assert settings.upstream.api_key_file == key_file


def test_other_files_are_only_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    settings = load_from(("--upstream.ca-file", str(tmp_path / "ca.pem")))
    assert settings.upstream == UpstreamSettings(ca_file=tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("environ", "text", "key"),
    [
        ({"OPENAI_API_KEY_FILE": "FILE", "CHATRPC_UPSTREAM__API_KEY": "key"}, None, "key"),
        ({"OPENAI_API_KEY": "key", "CHATRPC_UPSTREAM__API_KEY_FILE": "FILE"}, None, CANARY),
        ({"OPENAI_API_KEY_FILE": "/no/such/file"}, "upstream: {api_key: key}", "key"),
        ({"CHATRPC_UPSTREAM__API_KEY_FILE": "FILE"}, "upstream: {api_key: key}", CANARY),
    ],
    ids=["variable over file", "file over variable", "yaml over unread file", "file over yaml"],
)
def test_the_stronger_sources_secret_wins(
    environ: dict[str, str], text: str | None, key: str, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(CANARY)
    environ = {name: value.replace("FILE", str(tmp_path / "key")) for name, value in environ.items()}
    settings = load_from(environ=environ, file=file, text=text)
    assert at(settings, "upstream.api_key") == key
    assert settings.upstream.api_key_file == (tmp_path / "key" if key == CANARY else None)


def test_secrets_show_nowhere() -> None:
    settings = load(None, {"OPENAI_API_KEY": CANARY})
    dumped = json.dumps(settings.redacted())
    assert '"api_key": "***"' in dumped
    for text in (dumped, repr(settings), str(settings), repr(settings.upstream), repr(settings.model_dump())):
        assert CANARY not in text


def test_redacted_has_the_shape_of_the_file(file: Path) -> None:
    assert Settings().redacted()["upstream"]["api_key"] is None
    assert load_from(file=file, text=json.dumps(Settings().redacted())) == Settings()


PLACES_FOR_A_CANARY = [
    pytest.param({"environ": {row.env: f"{CANARY} \n {CANARY}"}}, id=row.env)
    for row in ROWS
    if row.type != "text" or row.path in EXAMPLES
] + [
    pytest.param({"environ": {"OPENAI_API_KEY": f"{CANARY}\n{CANARY}"}}, id="a key of two lines"),
    pytest.param({"environ": {"CHATRPC_UPSTREAM__API_KE": CANARY}}, id="unknown variable"),
    pytest.param({"environ": {"CHATRPC_UPSTREAM__BASE_URL": f"https://user:{CANARY}@host/v1"}}, id="userinfo"),
    pytest.param({"environ": {"CHATRPC_UPSTREAM__BASE_URL": f"https://host/v1?key={CANARY}"}}, id="query"),
    pytest.param({"environ": {"CHATRPC_UPSTREAM__PROXY": f"http://user:{CANARY}@proxy:1"}}, id="proxy"),
    pytest.param({"flags": ("--upstream.api-ke", CANARY)}, id="unknown flag"),
    pytest.param({"flags": (f"--upstream.api-ke={CANARY}",)}, id="unknown flag with ="),
    pytest.param({"flags": (CANARY,)}, id="argument without flag"),
    pytest.param({"text": f"upstream: {{api_key: {CANARY}, api_key: {CANARY}}}"}, id="given twice"),
    pytest.param({"text": f"upstream: {{api_key: *{CANARY}}}"}, id="alias"),
    pytest.param({"text": f"upstream: {{api_key: !{CANARY} x}}"}, id="tag"),
    pytest.param({"text": f"upstream: {{api_key: {{{CANARY}: x}}}}"}, id="mapping"),
    pytest.param({"text": f"upstream: {{api_key: [{CANARY}]}}"}, id="list"),
    pytest.param({"text": f"upstream: {CANARY}"}, id="in place of a group"),
    pytest.param({"text": CANARY}, id="in place of the file"),
    pytest.param({"text": f'upstream:\n  api_key: "{CANARY}\n'}, id="open quotes"),
    pytest.param({"text": f"upstream:\n  api_key: {CANARY}: x\n"}, id="two colons"),
    pytest.param({"text": f"upstream:\n\tapi_key: {CANARY}\n"}, id="tab"),
]


@pytest.mark.parametrize("sources", PLACES_FOR_A_CANARY)
def test_messages_never_hold_a_secret(sources: dict[str, Any], file: Path) -> None:
    try:
        text = repr(load_from(**sources, file=file))
    except SettingsError as error:
        text = f"{error!r} {error} {error.__cause__!r} {error.__context__!r}"
    assert CANARY not in text.replace(f"organization='{CANARY}", "")


# --- Mistakes ---


@pytest.mark.parametrize(
    ("path", "value", "right"),
    [
        ("listen", "50051", HOST_PORT),
        ("listen", "unix:/run/chatrpc.sock", HOST_PORT),
        ("listen", "0.0.0.0:50051", BEYOND),
        ("listen", "chatrpc.example.com:50051", BEYOND),
        ("metrics_listen", "9464", HOST_PORT),
        ("event_loop", "trio", "must be one of uvloop, asyncio"),
        ("upstream.name", "Default", NAME),
        ("upstream.name", "a.b", NAME),
        ("upstream.provider", "OpenAI", "must be lower-case letters, digits and ._-, such as x_ai"),
        ("upstream.base_url", "api.openai.com/v1", URL),
        ("upstream.base_url", "ftp://api.openai.com/v1", URL),
        ("upstream.base_url", "https:///v1", URL),
        ("upstream.base_url", "https://host:port/v1", URL),
        ("upstream.base_url", "https://host:0/v1", URL),
        ("upstream.base_url", "https://api..com/v1", URL),
        ("upstream.base_url", "https://host:70000/v1", URL),
        ("upstream.base_url", "https://host/a path", URL),
        ("upstream.base_url", "https://me:you@host/v1", URL_EXTRAS),
        ("upstream.base_url", "https://host/v1?a=b", URL_EXTRAS),
        ("upstream.base_url", "https://host/v1#a", URL_EXTRAS),
        ("upstream.base_url", "https://host/v1/chat/completions", URL_TOO_LONG),
        ("upstream.base_url", "https://host/chat/completions/", URL_TOO_LONG),
        ("upstream.api_key", "two words", HEADER),
        ("upstream.api_key", "schlüssel", HEADER),
        ("upstream.organization", "two words", HEADER),
        ("upstream.project", "two words", HEADER),
        ("upstream.models", ",".join(map(str, range(51))), "must be a list of text, at most 50"),
        ("upstream.http_client", "curl", "must be one of builtin, httpx"),
        ("upstream.connect_timeout_seconds", "0", POSITIVE),
        ("upstream.first_chunk_timeout_seconds", "-1", POSITIVE),
        ("upstream.chunk_gap_timeout_seconds", "inf", POSITIVE),
        ("upstream.chunk_gap_timeout_seconds", "nan", POSITIVE),
        ("upstream.chunk_gap_timeout_seconds", "60s", POSITIVE),
        ("upstream.max_retries", "-1", "must be a whole number, at least 0"),
        ("upstream.max_retries", "1.5", "must be a whole number, at least 0"),
        ("upstream.max_retries", "true", "must be a whole number, at least 0"),
        ("upstream.initial_backoff_seconds", "0", POSITIVE),
        ("upstream.max_backoff_seconds", "0.25", "must be at least initial_backoff_seconds, which is 0.5"),
        ("upstream.max_event_bytes", "1 MiB", "must be a whole number, more than 0"),
        ("upstream.max_response_bytes", "1024", "must be at least max_event_bytes, which is 1048576"),
        ("upstream.ca_file", "/no/such/file", "the file cannot be read: No such file or directory"),
        ("upstream.api_key_file", "/no/such/file", "the file cannot be read: No such file or directory"),
        ("upstream.api_key_file", "/", "the file cannot be read: Is a directory"),
        ("upstream.proxy", "https://proxy:3128", PROXY),
        ("upstream.proxy", "http://me:you@proxy:3128", PROXY),
        ("upstream.proxy", "http://proxy:3128/path", PROXY),
        ("limits.max_message_bytes", "0", "must be a whole number, more than 0, at most 2147483647"),
        ("limits.max_message_bytes", "2147483648", "must be a whole number, more than 0, at most 2147483647"),
        ("limits.max_in_flight", "0", "must be a whole number, more than 0"),
        ("limits.max_connection_age_seconds", "0.5", "must be a number, at least 1, at most 2147483"),
        ("limits.max_connection_age_seconds", "31536000", "must be a number, at least 1, at most 2147483"),
        ("limits.min_deadline_seconds", "-0.1", "must be a number, at least 0"),
        ("limits.default_deadline_seconds", "0.01", "must be at least min_deadline_seconds, which is 0.05"),
        ("drain.delay_seconds", "-1", "must be a number, at least 0"),
        ("drain.grace_seconds", "long", "must be a number, at least 0"),
        ("tracing.endpoint", "collector:4318", COLLECTOR),
        ("tracing.endpoint", "grpc://collector:4317", COLLECTOR),
        ("tracing.endpoint", "http://me:you@collector:4318", URL_EXTRAS),
        ("tracing.endpoint", "http://collector:4318/v1/traces", "must end before /v1/traces, which the service adds"),
        ("tracing.sample_ratio", "-0.1", "must be a number, at least 0, at most 1"),
        ("tracing.sample_ratio", "1.1", "must be a number, at least 0, at most 1"),
        ("log.level", "INFO", "must be one of debug, info, warning, error"),
        ("log.format", "xml", "must be one of auto, json, text"),
    ],
)
@pytest.mark.parametrize("source", ["file", "environment", "flag"])
def test_wrong_values(source: str, path: str, value: str, right: str, file: Path) -> None:
    row = next(row for row in ROWS if row.path == path)
    if source == "file":
        line = 2 if "." in path else 1
        text = as_yaml(path, json.dumps(value))
        assert mistakes(file=file, text=text) == [f"{path} in {file}, line {line}: {right}"]
    elif source == "environment":
        assert mistakes(environ={row.env: value}) == [f"{row.env} in the environment: {right}"]
    else:
        assert mistakes(flags=(f"{row.flag}={value}",)) == [f"{row.flag}: {right}"]


@pytest.mark.parametrize("path", [row.path for row in ROWS if row.type == "true or false"])
def test_wrong_yes_and_no(path: str, file: Path) -> None:
    row = next(row for row in ROWS if row.path == path)
    assert mistakes(environ={row.env: "perhaps"}) == [f"{row.env} in the environment: must be true or false"]
    assert mistakes(file=file, text=f"{path}: perhaps") == [f"{path} in {file}, line 1: must be true or false"]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"environ": {"OPENAI_API_KEY": "two words"}}, f"OPENAI_API_KEY in the environment: {HEADER}"),
        ({"environ": {"OPENAI_BASE_URL": "host"}}, f"OPENAI_BASE_URL in the environment: {URL}"),
        (
            {"environ": {"OPENAI_API_KEY_FILE": "/no/such/file"}},
            "OPENAI_API_KEY_FILE in the environment: the file cannot be read: No such file or directory",
        ),
        (
            {"environ": {"OPENAI_API_KEY": "a", "OPENAI_API_KEY_FILE": "b"}},
            "OPENAI_API_KEY_FILE in the environment: give this or OPENAI_API_KEY in the environment, not both",
        ),
        (
            {"environ": {"CHATRPC_UPSTREAM__API_KEY": "a", "CHATRPC_UPSTREAM__API_KEY_FILE": "b"}},
            "CHATRPC_UPSTREAM__API_KEY_FILE in the environment: give this or"
            " CHATRPC_UPSTREAM__API_KEY in the environment, not both",
        ),
        (
            {"flags": ("--upstream.api-key", "a", "--upstream.api-key-file", "b")},
            "--upstream.api-key-file: give this or --upstream.api-key, not both",
        ),
        (
            {"text": "upstream:\n  api_key: a\n  api_key_file: b\n"},
            "upstream.api_key_file in FILE, line 3: give this or upstream.api_key in FILE, line 2, not both",
        ),
        (
            {"environ": {"CHATRPC_UPSTREAM__INITIAL_BACKOFF_SECONDS": "9"}},
            "upstream.max_backoff_seconds, at its default: must be at least initial_backoff_seconds, which is 9.0",
        ),
    ],
)
def test_wrong_together(sources: dict[str, Any], expected: str, file: Path) -> None:
    assert expected.replace("FILE,", f"{file},") in mistakes(**sources, file=file)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"\xff\xfe", "the file cannot be read: not UTF-8 text"),
        (b"two\nlines", HEADER),
    ],
)
def test_wrong_key_files(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    name = "CHATRPC_UPSTREAM__API_KEY_FILE"
    assert mistakes(environ={name: str(tmp_path / "key")}) == [f"{name} in the environment: {expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lisen: 127.0.0.1:0", "lisen in FILE, line 1: unknown setting, did you mean listen?"),
        (
            "upstream:\n  base_ur: x",
            "upstream.base_ur in FILE, line 2: unknown setting, did you mean upstream.base_url?",
        ),
        ("upstrem: {name: x}", "upstrem in FILE, line 1: unknown setting, did you mean upstream?"),
        ("base_url: x", "base_url in FILE, line 1: unknown setting, did you mean upstream.base_url?"),
        ("qqqq: x", "qqqq in FILE, line 1: unknown setting"),
        (
            "upstream: {base-url: x}",
            "upstream.base-url in FILE, line 1: unknown setting, did you mean upstream.base_url?",
        ),
        ("log:\n  level: info\n  level: info", "log.level in FILE, line 3: given twice, first in line 2"),
        ("log: {}\ndrain: {}\nlog: {}", "log in FILE, line 3: given twice, first in line 1"),
        ("log: debug", "log in FILE, line 1: must be a mapping of settings"),
        ("log: [level]", "log in FILE, line 1: must be a mapping of settings"),
        ("listen: {host: x, port: 1}", f"listen in FILE, line 1: {HOST_PORT}"),
        ("log: {level: {a: b}}", "log.level in FILE, line 1: must be one of debug, info, warning, error"),
        ("log: {level: [info]}", "log.level in FILE, line 1: must be one of debug, info, warning, error"),
        ("upstream: {organization: {a: b}}", "upstream.organization in FILE, line 1: must be text"),
        ("upstream: {organization: ''}", f"upstream.organization in FILE, line 1: {HEADER}"),
        ("upstream: {organization: !env X}", "upstream.organization in FILE, line 1: must be text"),
        ("upstream: {ca_file: [x]}", "upstream.ca_file in FILE, line 1: must be a path"),
        ("upstream: {api_key: [x]}", "upstream.api_key in FILE, line 1: must be text, secret"),
        ("upstream: {models: [a, ~]}", "upstream.models in FILE, line 1: must be a list of text, at most 50"),
        ("upstream: {models: [[a]]}", "upstream.models in FILE, line 1: must be a list of text, at most 50"),
        ("upstream: {models: [a, '']}", "upstream.models in FILE, line 1: must be names without spaces"),
        ("upstream: {models: [a b, c d]}", "upstream.models in FILE, line 1: must be names without spaces"),
        ("upstream: {models: &a [*a]}", "upstream.models in FILE, line 1: must be a list of text, at most 50"),
        ("? [a]\n: b", "? in FILE, line 1: unknown setting"),
        ("- listen", "FILE, line 1: must be a mapping, such as log: {level: info}"),
        ("\nlisten", "FILE, line 2: must be a mapping, such as log: {level: info}"),
        (
            "log:\n  level: 'info",
            "FILE, line 2: not YAML: while scanning a quoted scalar, found unexpected end of stream",
        ),
        ("a: b: c", "FILE, line 1: not YAML: mapping values are not allowed here"),
        (
            "log:\n\tlevel: x",
            "FILE, line 2: not YAML: while scanning for the next token,"
            " found character '\\t' that cannot start any token",
        ),
        ("listen: *name", "FILE, line 1: not YAML: found undefined alias '…'"),
        ("log: {}\nlisten: \x01", "FILE, line 2: not YAML: a character it cannot hold"),
        (
            "log: {}\n---\nlog: {}",
            "FILE, line 2: not YAML: expected a single document in the stream, but found another document",
        ),
    ],
)
def test_wrong_files(text: str, expected: str, file: Path) -> None:
    assert mistakes(file=file, text=text) == [expected.replace("FILE,", f"{file},")]


@pytest.mark.parametrize("given", ["--config", "CHATRPC_CONFIG"])
def test_files_that_cannot_be_read(given: str, file: Path) -> None:
    def told(path: Path) -> list[str]:
        if given == "--config":
            return mistakes(flags=(given, str(path)))
        return mistakes(environ={given: str(path)})

    assert told(file) == [f"{file}: cannot be read: No such file or directory"]
    assert told(file.parent) == [f"{file.parent}: cannot be read: Is a directory"]
    file.write_bytes(b"listen: \xff")
    assert told(file) == [f"{file}: cannot be read: not UTF-8 text"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CHATRPC_LISEN", "CHATRPC_LISTEN"),
        ("CHATRPC_UPSTREAM__BASE_UR", "CHATRPC_UPSTREAM__BASE_URL"),
        ("CHATRPC_UPSTREAM_API_KEY", "CHATRPC_UPSTREAM__API_KEY"),
        ("CHATRPC_UPSTREAM", "CHATRPC_UPSTREAM__NAME"),
        ("CHATRPC_BASE_URL", "CHATRPC_UPSTREAM__BASE_URL"),
        ("CHATRPC_CONFIGURATION", "CHATRPC_CONFIG"),
        ("CHATRPC_LISTEN_PORT", "CHATRPC_LISTEN"),
    ],
)
def test_unknown_variables(name: str, nearest: str) -> None:
    assert mistakes(environ={name: "50051"}) == [f"{name} in the environment: unknown setting, did you mean {nearest}?"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--lisen", "x"), "--lisen: unknown setting, did you mean --listen?"),
        (("--upstream.base_url=x",), "--upstream.base_url: unknown setting, did you mean --upstream.base-url?"),
        (("--confi", "x"), "--confi: unknown setting, did you mean --config?"),
        (("--upstream", "{}"), "--upstream: unknown setting, did you mean --upstream.name?"),
        (("--upstream.api", "x"), "--upstream.api: unknown setting, did you mean --upstream.api-key?"),
        (("-x",), "-x: unknown setting"),
        (("x",), "the command line: an argument that belongs to no flag"),
    ],
)
def test_unknown_flags(flags: tuple[str, ...], expected: str) -> None:
    assert mistakes(flags=flags) == [expected]


def test_all_mistakes_at_once(file: Path) -> None:
    assert mistakes(
        flags=("--drain.delay-seconds=soon", "--drain.dela=1"),
        environ={"CHATRPC_LIMIT__MAX_IN_FLIGHT": "1", "OPENAI_BASE_URL": "x", "CHATRPC_LOG__LEVEL": "loud"},
        file=file,
        text="listen: 0.0.0.0:1\nlog: {level: quiet, levl: info}\nupstream:\n  api_key_file: /no/such/file\n",
    ) == [
        "--drain.dela: unknown setting, did you mean --drain.delay-seconds?",
        "CHATRPC_LIMIT__MAX_IN_FLIGHT in the environment: unknown setting, did you mean CHATRPC_LIMITS__MAX_IN_FLIGHT?",
        f"log.levl in {file}, line 2: unknown setting, did you mean log.level?",
        f"upstream.api_key_file in {file}, line 4: the file cannot be read: No such file or directory",
        f"listen in {file}, line 1: {BEYOND}",
        f"OPENAI_BASE_URL in the environment: {URL}",
        "--drain.delay-seconds: must be a number, at least 0",
        "CHATRPC_LOG__LEVEL in the environment: must be one of debug, info, warning, error",
    ]


# --- Safety ---


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "chatrpc.example.com:50051"])
def test_beyond_loopback_when_it_is_said(address: str) -> None:
    assert str(load_from(("--allow-insecure", "--listen", address)).listen) == address


@pytest.fixture
def pem(tmp_path: Path) -> str:
    """A file that is there, as those of TLS have to be; what is in it is looked at when the service starts."""
    path = tmp_path / "some.pem"
    path.write_text("PEM")
    return str(path)


def test_beyond_loopback_with_tls_for_known_callers(pem: str) -> None:
    flags = (f"--tls.cert-file={pem}", f"--tls.key-file={pem}", "--listen=0.0.0.0:1")
    assert load_from((*flags, f"--tls.client-ca-file={pem}")).listen.port == 1
    assert mistakes(flags=flags) == [
        "--listen: " + BEYOND.replace("TLS (tls.cert_file) and without ", ""),
    ]


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        (["cert-file"], "tls.key_file, at its default: must be given, as cert_file is"),
        (["key-file"], "--tls.key-file: is of no use without cert_file"),
        (["client-ca-file"], "--tls.client-ca-file: is of no use without cert_file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_tls_files_that_do_not_go_alone(given: list[str], mistake: str, pem: str) -> None:
    assert mistakes(flags=tuple(f"--tls.{name}={pem}" for name in given)) == [mistake]


def test_a_wrong_allow_insecure_is_one_mistake() -> None:
    environ = {"CHATRPC_ALLOW_INSECURE": "perhaps", "CHATRPC_LISTEN": "0.0.0.0:1"}
    assert mistakes(environ=environ) == ["CHATRPC_ALLOW_INSECURE in the environment: must be true or false"]


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    for holder, name in ((settings, "coalesce"), (settings.upstream, "name"), (settings.listen, "port")):
        with pytest.raises((pydantic.ValidationError, AttributeError)):
            setattr(holder, name, getattr(holder, name))


def test_built_directly_they_are_judged_too() -> None:
    with pytest.raises(pydantic.ValidationError, match="beyond loopback"):
        Settings(listen=Address("0.0.0.0", 0))
    with pytest.raises(pydantic.ValidationError) as caught:
        Settings.model_validate({"upstream": {"api_key": f"{CANARY} {CANARY}", "nmae": CANARY}})
    assert CANARY not in str(caught.value)


def test_workers_can_be_handed_them() -> None:
    settings = load(None, {"OPENAI_API_KEY": CANARY})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_nothing_is_read_but_what_load_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATRPC_UPSTREAM__NAME", "elsewhere")
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setattr(sys, "argv", ["chatrpc-server", "--upstream.name", "elsewhere"])
    assert Settings().upstream == load(None, {}).upstream == UpstreamSettings(name="default", api_key=None)


# --- What the README and --help show ---


def test_rows() -> None:
    rows = {row.path: row for row in ROWS}
    assert tuple(rows["upstream.base_url"])[:5] == (
        "upstream.base_url",
        "CHATRPC_UPSTREAM__BASE_URL",
        "--upstream.base-url",
        "text",
        "https://api.openai.com/v1",
    )
    assert {path: (rows[path].type, rows[path].default) for path in list(rows)[:11]} == {
        "allow_insecure": ("true or false", "false"),
        "tls.cert_file": ("a path", "none"),
        "tls.key_file": ("a path", "none"),
        "tls.client_ca_file": ("a path", "none"),
        "listen": ("host:port", "127.0.0.1:50051"),
        "health_listen": ("host:port", "none"),
        "metrics_listen": ("host:port", "127.0.0.1:9464"),
        "workers": ("a whole number, at least 1, at most 256", "1"),
        "reflection": ("true or false", "false"),
        "coalesce": ("true or false", "true"),
        "event_loop": ("one of uvloop, asyncio", "uvloop"),
    }
    assert rows["upstream.models"][3:5] == ("a list of text, at most 50", "none")
    assert rows["upstream.api_key"][3:5] == ("text, secret", "none")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_descriptions(row: Any) -> None:
    assert row.description.endswith(".")
    for unit in ("seconds", "bytes"):
        assert (f"in {unit}" in row.description) == row.path.endswith(f"_{unit}")


def test_help_shows_each_flag_with_description_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    command = ArgumentParser()
    add_flags(command)
    text = command.format_help()
    for row in ROWS:
        assert re.search(rf"\n  {re.escape(row.flag)}[ ,]", text)
        assert f"{row.description} Default: {row.default}." in text
    assert "--upstream [" not in text


def test_importing_costs_neither_the_yaml_parser_nor_the_command_line() -> None:
    code = "import sys; from chatrpc_server import settings; print({'yaml'} & {*sys.modules})"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@given(st.from_regex(r"\A ?[hH]ttps?://[!-~]*\Z") | st.text())
def test_the_schema_refuses_no_address_that_we_take(text: str) -> None:
    """By its pattern others judge the settings before we do."""
    schema = UpstreamSettings.model_json_schema()["properties"]["base_url"]
    try:
        UpstreamSettings(base_url=text)
    except pydantic.ValidationError:
        return
    assert re.search(schema["pattern"], text)
    assert not re.search(schema["not"]["pattern"], text)


@given(st.text("ab, \t", max_size=20) | st.lists(st.sampled_from(["a", " b ", ""]), max_size=60).map(",".join))
def test_the_schema_judges_a_list_of_models_as_we_do(text: str) -> None:
    """But for empty names, of which it takes fifty at most."""
    schema = UpstreamSettings.model_json_schema()["properties"]["models"]["anyOf"][0]
    taken = bool(re.search(schema["pattern"], text))
    try:
        UpstreamSettings(models=text)
    except pydantic.ValidationError:
        assert not taken
        return
    assert taken or text.count(",") > 49
