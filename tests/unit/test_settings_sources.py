"""Where each setting comes from, and which source wins."""

import os
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

from chatrpc_server.settings import (
    Address,
    Settings,
    UpstreamSettings,
    add_flags,
    load,
)
from support.settings_loading import CANARY, EXAMPLES, FILES, ROWS, as_yaml, at, load_from


def test_every_setting_has_an_example() -> None:
    assert EXAMPLES.keys() | FILES == {row.path for row in ROWS}


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


def test_a_flag_that_is_repeated() -> None:
    assert list(load_from(("--models", "a,b", "--models=c")).models) == ["a", "b", "c"]


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
        {"CHATRPC_TARGET": "host:50051", "CHATRPC_API_KEY": "sk-x", "CHATRPC_MODEL": "m"},  # of the clients
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


def test_rows() -> None:
    rows = {row.path: row for row in ROWS}
    assert tuple(rows["upstream.base_url"])[:5] == (
        "upstream.base_url",
        "CHATRPC_UPSTREAM__BASE_URL",
        "--upstream.base-url",
        "text",
        "https://api.openai.com/v1",
    )
    assert {path: (rows[path].type, rows[path].default) for path in list(rows)[:12]} == {
        "allow_insecure": ("true or false", "false"),
        "tls.cert_file": ("a path", "none"),
        "tls.key_file": ("a path", "none"),
        "tls.client_ca_file": ("a path", "none"),
        "listen": ("host:port", "127.0.0.1:50051"),
        "health_listen": ("host:port", "none"),
        "metrics_listen": ("host:port", "127.0.0.1:9464"),
        "workers": ("a whole number, at least 1, at most 256", "1"),
        "worker_heartbeat_timeout_seconds": ("a number, at least 1", "30"),
        "reflection": ("true or false", "false"),
        "coalesce": ("true or false", "true"),
        "event_loop": ("one of uvloop, asyncio", "uvloop"),
    }
    assert rows["models"][3:5] == ("names, or a mapping of names to settings, at most 50", "none")
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
    code = "import sys; from chatrpc_server import settings; print({'yaml', 'pydantic_settings'} & {*sys.modules})"
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
