"""Maps of groups in every source: a sample model with upstreams, limits inside them, and models."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest
from pydantic import Field

from chatrpc_server.settings import SettingsError, add_flags, describe
from chatrpc_server.settings.fields import ModelName, Name, Secret, named_groups
from chatrpc_server.settings.sources import load_model

CANARY = "sk-canary-7f3a"


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Limits(Strict):
    """Limits of one upstream."""

    in_flight: int = Field(default=10, ge=1, description="Calls at once.")


class Upstream(Strict):
    """One upstream."""

    base_url: str = Field(default="http://x", description="URL.")
    api_key: Secret = Field(default=None, description="Key.")
    api_key_file: Path | None = Field(default=None, description="File of the key.")
    limits: Limits = Limits()


class Model(Strict):
    """One model."""

    priority: int = Field(default=0, description="Order.")


class Root(Strict):
    """The sample."""

    upstreams: dict[Name, Upstream] = Field(default={}, description="Upstreams by name.")
    models: Annotated[dict[ModelName, Model], named_groups(str | list[str] | dict[str, Model])] = Field(
        default={}, description="Models by name.", max_length=3
    )
    name: str = Field(default="", description="Name.")


def load(
    text: str = "", environ: dict[str, str] | None = None, flags: tuple[str, ...] = (), folder: Path | None = None
) -> Root:
    parser = ArgumentParser()
    add_flags(parser, Root)
    if text:
        assert folder
        (folder / "settings.yaml").write_text(text)
        flags = ("--config", str(folder / "settings.yaml"), *flags)
    args, unknown = parser.parse_known_args(flags)
    return load_model(Root, args, environ or {}, unknown)


def mistakes(folder: Path, **sources: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(folder=folder, **sources)
    return [mistake.replace(str(folder), "FOLDER") for mistake in caught.value.mistakes]


FILE = """
upstreams:
  azure: {base_url: http://azure, limits: {in_flight: 3}}
  open-router: {base_url: http://openrouter}
  plain:
models:
  gpt-4.1: {priority: 1}
  mistral/*: {}
"""


def test_the_file_names_the_entries(tmp_path: Path) -> None:
    assert load(FILE, folder=tmp_path) == Root(
        upstreams={
            "azure": Upstream(base_url="http://azure", limits=Limits(in_flight=3)),
            "open-router": Upstream(base_url="http://openrouter"),
            "plain": Upstream(),
        },
        models={"gpt-4.1": Model(priority=1), "mistral/*": Model()},
    )


def test_variables_reach_into_entries(tmp_path: Path) -> None:
    root = load(
        FILE,
        {
            "CHATRPC_UPSTREAMS__AZURE__API_KEY": CANARY,
            "CHATRPC_UPSTREAMS__AZURE__LIMITS__IN_FLIGHT": "4",
            "CHATRPC_UPSTREAMS__OPEN_ROUTER__BASE_URL": "http://other",
            "CHATRPC_UPSTREAMS__NEW__BASE_URL": "http://new",
            "CHATRPC_MODELS__GPT_4_1__PRIORITY": "7",
        },
        folder=tmp_path,
    )
    azure = root.upstreams["azure"]
    assert azure.api_key
    assert azure.api_key.get_secret_value() == CANARY
    assert (azure.base_url, azure.limits.in_flight) == ("http://azure", 4)
    assert root.upstreams["open-router"].base_url == "http://other"
    assert root.upstreams["new"].base_url == "http://new"
    assert root.models == {"gpt-4.1": Model(priority=7), "mistral/*": Model()}


@pytest.mark.parametrize(
    "sources",
    [
        {"text": "models: [a, b]"},
        {"text": "models: 'a, b'"},
        {"text": "models: {a: , b: {}}"},
        {"environ": {"CHATRPC_MODELS": "a,b"}},
        {"flags": ("--models", "a", "--models=b")},
        {"text": "models: [a]", "environ": {"CHATRPC_MODELS": "b"}},
        {"text": "models: {b: }", "flags": ("--models", "a")},
    ],
    ids=str,
)
def test_names_alone_are_groups_with_their_defaults(sources: dict[str, Any], tmp_path: Path) -> None:
    assert load(**sources, folder=tmp_path).models == {"a": Model(), "b": Model()}


def test_names_alone_keep_the_settings_of_weaker_sources(tmp_path: Path) -> None:
    assert load("models: {a: {priority: 2}}", {"CHATRPC_MODELS": "a"}, folder=tmp_path).models["a"].priority == 2


def test_secrets_of_entries_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{CANARY}\n")
    root = load(f"upstreams: {{a: {{api_key_file: {tmp_path / 'key'}}}, b: {{api_key: other-key}}}}", folder=tmp_path)
    keys = [upstream.api_key.get_secret_value() for upstream in root.upstreams.values() if upstream.api_key]
    assert keys == [CANARY, "other-key"]
    assert CANARY not in json.dumps(root.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (
            {"text": "upstreams:\n  azure:\n    base_ur: x\n"},
            "upstreams.azure.base_ur in FOLDER/settings.yaml, line 3: unknown setting;"
            " did you mean upstreams.azure.base_url?",
        ),
        (
            {"text": "upstreams:\n  azure:\n    limits: {in_flight: many}\n"},
            "upstreams.azure.limits.in_flight in FOLDER/settings.yaml, line 3: must be a whole number, at least 1",
        ),
        (
            {"text": "models:\n  gpt-4.1: {priority: high}\n"},
            'models."gpt-4.1".priority in FOLDER/settings.yaml, line 2: must be a whole number',
        ),
        ({"text": "upstreams: {Azure: {}}"}, "upstreams.Azure in FOLDER/settings.yaml, line 1: must be lower-case"),
        ({"text": "upstreams: {a: x}"}, "upstreams.a in FOLDER/settings.yaml, line 1: must be a mapping of settings"),
        ({"text": "upstreams: {a: {}, a: {}}"}, "upstreams.a in FOLDER/settings.yaml, line 1: given twice, first in"),
        (
            {"text": "models: [a, b, c, d]"},
            "models in FOLDER/settings.yaml, line 1: must be names, or a mapping of names to settings",
        ),
        (
            {"text": "upstreams: {a: {api_key: x, api_key_file: y}}"},
            "upstreams.a.api_key_file in FOLDER/settings.yaml, line 1: give this or upstreams.a.api_key in",
        ),
        (
            {"text": FILE, "environ": {"CHATRPC_UPSTREAMS__AZURE__API_KE": CANARY}},
            "CHATRPC_UPSTREAMS__AZURE__API_KE in the environment: unknown setting;"
            " did you mean CHATRPC_UPSTREAMS__AZURE__API_KEY?",
        ),
        (
            {"environ": {"CHATRPC_UPSTREAMS__AZURE__LIMITS__IN_FLIGHT": "0"}},
            "CHATRPC_UPSTREAMS__AZURE__LIMITS__IN_FLIGHT in the environment: must be a whole number, at least 1",
        ),
        (
            {"environ": {"CHATRPC_UPSTREAMS__AZURE": "x"}},
            "CHATRPC_UPSTREAMS__AZURE in the environment: unknown setting; did you mean",
        ),
        (
            {"flags": ("--upstreams.azure.base-url=x",)},
            "--upstreams.azure.base-url: has no flag; use the settings file,"
            " or CHATRPC_UPSTREAMS__AZURE__BASE_URL in the environment",
        ),
    ],
)
def test_mistakes_name_their_place(sources: dict[str, Any], expected: str, tmp_path: Path) -> None:
    mistake, *_ = mistakes(tmp_path, **sources)
    assert mistake.startswith(expected)
    assert CANARY not in mistake


def test_every_setting_is_described() -> None:
    assert [tuple(row)[:4] for row in describe(Root)] == [
        ("upstreams", "CHATRPC_UPSTREAMS", "--upstreams", "names, or a mapping of names to settings"),
        ("upstreams.<name>.base_url", "CHATRPC_UPSTREAMS__<NAME>__BASE_URL", "", "text"),
        ("upstreams.<name>.api_key", "CHATRPC_UPSTREAMS__<NAME>__API_KEY", "", "text, secret"),
        ("upstreams.<name>.api_key_file", "CHATRPC_UPSTREAMS__<NAME>__API_KEY_FILE", "", "a path"),
        (
            "upstreams.<name>.limits.in_flight",
            "CHATRPC_UPSTREAMS__<NAME>__LIMITS__IN_FLIGHT",
            "",
            "a whole number, at least 1",
        ),
        ("models", "CHATRPC_MODELS", "--models", "names, or a mapping of names to settings, at most 3"),
        ("models.<name>.priority", "CHATRPC_MODELS__<NAME>__PRIORITY", "", "a whole number"),
        ("name", "CHATRPC_NAME", "--name", "text"),
    ]


def test_nothing_given_is_the_defaults() -> None:
    assert load_model(Root, Namespace(), {}) == Root()
