"""Every mistake is reported with its place and the right form."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.settings_loading import (
    BEYOND,
    COLLECTOR,
    HEADER,
    HOST_PORT,
    NAME,
    NAMES,
    POSITIVE,
    PROXY,
    ROWS,
    URL,
    URL_EXTRAS,
    URL_TOO_LONG,
    as_yaml,
    mistakes,
)

MISSING_FILE = "the file cannot be read: No such file or directory; name a readable file"


@pytest.mark.parametrize(
    ("path", "value", "right"),
    [
        ("listen", "50051", HOST_PORT),
        ("listen", "unix:/run/chatrpc.sock", HOST_PORT),
        ("listen", "0.0.0.0:50051", BEYOND),
        ("listen", "chatrpc.example.com:50051", BEYOND),
        ("metrics_listen", "9464", HOST_PORT),
        ("worker_heartbeat_timeout_seconds", "0.5", "must be a number, at least 1"),
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
        ("upstream.max_response_bytes", "1024", "must be at least max_event_bytes, which is 20971520"),
        ("upstream.ca_file", "/no/such/file", MISSING_FILE),
        ("upstream.api_key_file", "/no/such/file", MISSING_FILE),
        ("upstream.api_key_file", "/", "the file cannot be read: Is a directory; name a readable file"),
        ("upstream.proxy", "https://proxy:3128", PROXY),
        ("upstream.proxy", "http://proxy:65536", PROXY),
        ("upstream.proxy", "http://proxy:0", PROXY),
        ("listen", "127.0.0.1:65536", HOST_PORT),
        ("health_listen", "127.0.0.1:65536", HOST_PORT),
        ("metrics_listen", "127.0.0.1:65536", HOST_PORT),
        ("tracing.endpoint", "http://collector:65536", COLLECTOR),
        ("upstream.proxy", "http://me@you@proxy:3128", PROXY),
        ("upstream.proxy", "http://me:#1@proxy:3128", PROXY),
        ("upstream.proxy", "socks5://proxy:1080", PROXY),
        ("upstream.proxy", "http://proxy:3128/path", PROXY),
        ("limits.max_message_bytes", "0", "must be a whole number, more than 0, at most 2147483647"),
        ("limits.max_message_bytes", "2147483648", "must be a whole number, more than 0, at most 2147483647"),
        ("limits.max_in_flight", "0", "must be a whole number, more than 0"),
        ("limits.max_bytes_in_flight", "1", "must be at least max_message_bytes, which is 20971520"),
        ("limits.receive_timeout_seconds", "0", "must be a number, more than 0"),
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
    where = f"{path} in {file}, line {1 + path.count('.')}"
    assert mistakes(file=file, text=as_yaml(path, "perhaps")) == [f"{where}: must be true or false"]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"environ": {"OPENAI_API_KEY": "two words"}}, f"OPENAI_API_KEY in the environment: {HEADER}"),
        ({"environ": {"OPENAI_BASE_URL": "host"}}, f"OPENAI_BASE_URL in the environment: {URL}"),
        (
            {"environ": {"OPENAI_API_KEY_FILE": "/no/such/file"}},
            f"OPENAI_API_KEY_FILE in the environment: {MISSING_FILE}",
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
            {"text": "listen: 127.0.0.1:9464"},
            "metrics_listen, at its default: must have another port than listen, which is 127.0.0.1:9464",
        ),
        (
            {"text": "listen: 127.0.0.1:1\nmetrics_listen: 0.0.0.0:1"},
            "metrics_listen in FILE, line 2: must have another port than listen, which is 127.0.0.1:1",
        ),
        (
            {"environ": {"CHATRPC_HEALTH_LISTEN": "0.0.0.0:50051"}},
            "CHATRPC_HEALTH_LISTEN in the environment: must have another port than listen, which is 127.0.0.1:50051",
        ),
        (
            {"flags": ("--metrics-listen=[::]:1", "--health-listen=localhost:1")},
            "--metrics-listen: must have another port than health_listen, which is localhost:1",
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
        (b"", "the file is empty; name a file with content"),
        (b" \n", "the file is empty; name a file with content"),
        (b"\xff\xfe", "the file cannot be read: not UTF-8 text; name a readable file"),
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
        ("lisen: 127.0.0.1:0", "lisen in FILE, line 1: unknown setting; did you mean listen?"),
        (
            "upstream:\n  base_ur: x",
            "upstream.base_ur in FILE, line 2: unknown setting; did you mean upstream.base_url?",
        ),
        ("upstrem: {name: x}", "upstrem in FILE, line 1: unknown setting; did you mean upstream?"),
        ("base_url: x", "base_url in FILE, line 1: unknown setting; did you mean upstream.base_url?"),
        ("qqqq: x", "qqqq in FILE, line 1: unknown setting; see chatrpc-server serve --help"),
        (
            "upstream: {base-url: x}",
            "upstream.base-url in FILE, line 1: unknown setting; did you mean upstream.base_url?",
        ),
        ("log:\n  level: info\n  level: info", "log.level in FILE, line 3: given twice, first in line 2; keep one"),
        ("log: {}\ndrain: {}\nlog: {}", "log in FILE, line 3: given twice, first in line 1; keep one"),
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
        ("models: [a, ~]", f"models in FILE, line 1: {NAMES}"),
        ("models: [[a]]", f"models in FILE, line 1: {NAMES}"),
        ("models: [a, '']", "models in FILE, line 1: must be a name without spaces"),
        ("models: [a b, c]", "models in FILE, line 1: must be a name without spaces"),
        ("models: {a b: {}}", 'models."a b" in FILE, line 1: must be a name without spaces'),
        ("models: &a [*a]", f"models in FILE, line 1: {NAMES}"),
        ("models: {a: b}", "models.a in FILE, line 1: must be a mapping of settings"),
        ("models: {a: {}, a: {}}", "models.a in FILE, line 1: given twice, first in line 1; keep one"),
        ("models: {a: {price: 1}}", "models.a.price in FILE, line 1: unknown setting; see chatrpc-server serve --help"),
        ("? [a]\n: b", "? in FILE, line 1: unknown setting; see chatrpc-server serve --help"),
        ("- listen", "FILE, line 1: must be a mapping, such as log: {level: info}"),
        ("\nlisten", "FILE, line 2: must be a mapping, such as log: {level: info}"),
        (
            "log:\n  level: 'info",
            "FILE, line 2: not YAML: while scanning a quoted scalar, found unexpected end of stream; correct it",
        ),
        ("a: b: c", "FILE, line 1: not YAML: mapping values are not allowed here; correct it"),
        (
            "log:\n\tlevel: x",
            "FILE, line 2: not YAML: while scanning for the next token,"
            " found character '\\t' that cannot start any token; correct it",
        ),
        ("listen: *name", "FILE, line 1: not YAML: found undefined alias '…'; correct it"),
        ("log: {}\nlisten: \x01", "FILE, line 2: not YAML: an invalid character; correct it"),
        (
            "log: {}\n---\nlog: {}",
            "FILE, line 2: not YAML: expected a single document in the stream, but found another document; correct it",
        ),
    ],
)
def test_wrong_files(text: str, expected: str, file: Path) -> None:
    assert mistakes(file=file, text=text) == [expected.replace("FILE,", f"{file},")]


@pytest.mark.parametrize("given", ["--config", "CHATRPC_CONFIG"])
def test_files_that_cannot_be_read(given: str, file: Path) -> None:
    def found(path: Path) -> list[str]:
        if given == "--config":
            return mistakes(flags=(given, str(path)))
        return mistakes(environ={given: str(path)})

    assert found(file) == [f"{file}: cannot be read: No such file or directory; name a readable file"]
    assert found(file.parent) == [f"{file.parent}: cannot be read: Is a directory; name a readable file"]
    file.write_bytes(b"listen: \xff")
    assert found(file) == [f"{file}: cannot be read: not UTF-8 text; name a readable file"]


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
    assert mistakes(environ={name: "50051"}) == [f"{name} in the environment: unknown setting; did you mean {nearest}?"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CHATRPC_APIKEY", "API_KEY"),
        ("CHATRPC__API_KEY", "API_KEY"),
        ("CHATRPC_API_KEYS", "API_KEY"),
        ("CHATRPC_API_KEY_", "API_KEY"),
        ("CHATRPC_TARGETS", "TARGET"),
        ("CHATRPC_MODELL", "MODEL"),
    ],
)
def test_mistyped_variables_of_the_clients(name: str, nearest: str) -> None:
    (mistake,) = mistakes(environ={name: "x"})
    assert mistake.endswith(f"did you mean CHATRPC_{nearest} of the clients, which the service ignores?")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--lisen", "x"), "--lisen: unknown setting; did you mean --listen?"),
        (("--upstream.base_url=x",), "--upstream.base_url: unknown setting; did you mean --upstream.base-url?"),
        (("--confi", "x"), "--confi: unknown setting; did you mean --config?"),
        (("--upstream", "{}"), "--upstream: unknown setting; did you mean --upstream.name?"),
        (("--upstream.api", "x"), "--upstream.api: unknown setting; did you mean --upstream.api-key?"),
        (("-x",), "-x: unknown setting; see chatrpc-server serve --help"),
        (("x",), "the command line: an argument belongs to no flag; remove it"),
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
        "--drain.dela: unknown setting; did you mean --drain.delay-seconds?",
        "CHATRPC_LIMIT__MAX_IN_FLIGHT in the environment: unknown setting; did you mean CHATRPC_LIMITS__MAX_IN_FLIGHT?",
        f"log.levl in {file}, line 2: unknown setting; did you mean log.level?",
        f"upstream.api_key_file in {file}, line 4: {MISSING_FILE}",
        f"listen in {file}, line 1: {BEYOND}",
        f"OPENAI_BASE_URL in the environment: {URL}",
        "--drain.delay-seconds: must be a number, at least 0",
        "CHATRPC_LOG__LEVEL in the environment: must be one of debug, info, warning, error",
    ]


def test_an_unreadable_file_hides_no_unknown_names(file: Path) -> None:
    assert mistakes(flags=("--lisen=x",), environ={"CHATRPC_LISEN": "x"}, file=file, text="a: b: c") == [
        "--lisen: unknown setting; did you mean --listen?",
        "CHATRPC_LISEN in the environment: unknown setting; did you mean CHATRPC_LISTEN?",
        f"{file}, line 1: not YAML: mapping values are not allowed here; correct it",
    ]
