"""Secrets come from files or values, and no output shows them."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatrpc_server.settings import (
    Settings,
    SettingsError,
    UpstreamSettings,
    load,
)
from support.settings_loading import CANARY, EXAMPLES, ROWS, at, load_from


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
