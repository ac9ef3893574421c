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
from support.settings_loading import CANARY, EXAMPLES, ROWS, as_yaml, at, load_from, mistakes


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
    pytest.param({"text": f"upstream: {{{CANARY}: x}}"}, id="unknown name in a group"),
    pytest.param({"text": f"{CANARY}: x"}, id="unknown name"),
    pytest.param({"text": f"upstream: {{{CANARY}: {{name: x}}}}"}, id="unknown group"),
    pytest.param({"text": f"{{{CANARY}: 1, {CANARY}: 2}}"}, id="unknown name given twice"),
    pytest.param({"text": f"models: {{{CANARY}: {{price: 1}}}}"}, id="name of a map's entry"),
    pytest.param({"text": f"models: {{{CANARY}: {{{CANARY}: 1}}}}"}, id="unknown name in a map's entry"),
    pytest.param({"text": f"upstream: {{ca_file: {CANARY}}}"}, id="path"),
    pytest.param({"text": f"upstream: {{api_key_file: {CANARY}}}"}, id="path of the key"),
    pytest.param({"text": f"upstream: {{base_url: 'https://{CANARY}@host/v1'}}"}, id="user of a URL"),
    pytest.param({"text": f"upstream: {{name: {CANARY} x}}"}, id="name of the upstream"),
    pytest.param({"environ": {f"CHATRPC_{CANARY}": "x"}}, id="name of a variable"),
    pytest.param({"environ": {f"CHATRPC_UPSTREAM__{CANARY}": "x"}}, id="name of a variable of a group"),
    pytest.param({"flags": (f"--{CANARY}=x",)}, id="name of a flag"),
    pytest.param({"flags": (f"--upstream.{CANARY}=x",)}, id="name of a flag of a group"),
    pytest.param({"flags": (f"--models.{CANARY}.price=x",)}, id="name of a flag of a map"),
    pytest.param({"flags": (f"-{CANARY}",)}, id="short flag"),
    pytest.param({"flags": ("--config", CANARY)}, id="path of the settings"),
    pytest.param({"environ": {"CHATRPC_CONFIG": CANARY}}, id="path of the settings in the environment"),
]


@pytest.mark.parametrize("sources", PLACES_FOR_A_CANARY)
def test_messages_never_hold_a_secret(sources: dict[str, Any], file: Path) -> None:
    try:
        text = repr(load_from(**sources, file=file))
    except SettingsError as error:
        text = f"{error!r} {error} {error.__cause__!r} {error.__context__!r}"
    assert CANARY not in text.replace(f"organization='{CANARY}", "")
    assert _in_variable(CANARY) not in text.upper()


def _in_variable(text: str) -> str:
    return text.replace("-", "_").upper()


@pytest.mark.parametrize(
    "key",
    [
        "sk-abcdefghijklmnop",
        "SK-ABCDEFGHIJKLMNOP",
        "sk_live_abcdefghijkl",
        "0123456789abcdef0123456789abcdef",
        "AIzaSyD4kZ8pQ1mN3vB7xC9lK2jH5gF6dS0aW",
        "abcdefghijklmnopqrstuvwxyzabcdef",
        "QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        "Bearer abcdef",
        "name-sk-12345678",
    ],
)
@pytest.mark.parametrize("form", ["NAME: x", "upstream: {NAME: x}", "log: {level: {NAME: x}}", "tls: {NAME: {a: b}}"])
def test_an_unknown_name_like_a_key_is_hidden(key: str, form: str, file: Path) -> None:
    messages = str(mistakes(file=file, text=form.replace("NAME", json.dumps(key)), environ={f"CHATRPC_{key}": "x"}))
    for word in key.split():
        assert word.lower() not in messages.lower() or word == "Bearer"


@pytest.mark.parametrize("name", ["price", "levl", "max_retries2", "base-url", "Listen", "timeout_seconds", "<<"])
def test_other_unknown_names_are_shown(name: str, file: Path) -> None:
    assert name in mistakes(file=file, text=f"upstream: {{{name}: x}}")[0]


@pytest.mark.parametrize("path", ["/run/secrets/sk", "../key", "keys/openai.txt", "chatrpc.yaml", "chatrpc"])
def test_other_paths_are_shown(path: str) -> None:
    assert mistakes(flags=("--config", f"/no-such/{path}"))[0].startswith(f"/no-such/{path}: cannot be read")


REFERENCES = ["${OPENAI_API_KEY}", "$OPENAI_API_KEY", "${KEY:-x}", "$(OPENAI_API_KEY)", "$key", "Bearer ${KEY}"]
REFERENCE = "must not be a reference to a variable, such as ${NAME}, because it is not replaced; "


@pytest.mark.parametrize("value", REFERENCES)
def test_a_reference_to_a_variable(value: str, file: Path, tmp_path: Path) -> None:
    named = f"upstream.api_key in {file}, line 1: {REFERENCE}"
    remedy = "use upstream.api_key_file or CHATRPC_UPSTREAM__API_KEY in the environment"
    assert mistakes(file=file, text=f"upstream: {{api_key: '{value}'}}") == [named + remedy]
    assert mistakes(environ={"OPENAI_API_KEY": value}) == [
        f"OPENAI_API_KEY in the environment: {REFERENCE}use upstream.api_key_file"
    ]
    (tmp_path / "key").write_text(value)
    assert mistakes(flags=(f"--upstream.api-key-file={tmp_path / 'key'}",)) == [
        "--upstream.api-key-file: the file contains a reference to a variable; put the value into it"
    ]


@pytest.mark.parametrize("path", [row.path for row in ROWS if "<" not in row.path])
def test_no_setting_is_a_reference(path: str, file: Path) -> None:
    row = next(row for row in ROWS if row.path == path)
    found = mistakes(file=file, text=as_yaml(path, '"${NAME}"'))
    assert any(f"{path} in {file}" in each and f"{row.env} in the environment" in each for each in found), found
    assert any(REFERENCE in each for each in mistakes(environ={row.env: "$NAME"}))


@pytest.mark.parametrize(
    "text", ["models: [a, $MODEL]", "models: {'${MODEL}': {}}", "upstream: {base_url: 'http://${H}'}"]
)
def test_references_inside_values(text: str, file: Path) -> None:
    assert REFERENCE in mistakes(file=file, text=text)[0]


def test_a_reference_that_a_stronger_source_overrides_is_ignored(file: Path) -> None:
    environ = {"CHATRPC_UPSTREAM__API_KEY": CANARY}
    settings = load_from(environ=environ, file=file, text="upstream: {api_key: '${OPENAI_API_KEY}'}")
    assert at(settings, "upstream.api_key") == CANARY
