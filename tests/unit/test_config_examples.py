"""The example settings files: each loads, none holds a key, and full.yaml is all settings at their defaults."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from chatrpc_server.settings import Settings, SettingsError, describe, load

FOLDER = Path(__file__).parents[2] / "deploy" / "examples"
FILES = sorted(FOLDER.glob("*.yaml"))
PROVIDERS = {
    "azure": "https://my-resource.openai.azure.com/openai/deployments/my-deployment",
    "chatgpt-gateway": "https://gateway.example.com/v1",
    "cometapi": "https://api.cometapi.com/v1",
    "openai": "https://api.openai.com/v1",
    "yi-vision": "https://gateway.example.com",
}


def load_example(name: str, environ: dict[str, str]) -> Settings:
    return load(Namespace(config=str(FOLDER / f"{name}.yaml")), environ)


def test_each_provider_and_the_full_list_have_a_file() -> None:
    assert {file.stem for file in FILES} == {*PROVIDERS, "full"}


@pytest.mark.parametrize("name", PROVIDERS)
def test_loads_with_a_key_file(name: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("canary-key\n")
    settings = load_example(name, {"CHATRPC_UPSTREAM__API_KEY_FILE": str(key_file)})
    assert settings.upstream.name == name
    assert settings.upstream.base_url == PROVIDERS[name]
    assert settings.upstream.api_key is not None
    assert settings.upstream.api_key.get_secret_value() == "canary-key"
    assert settings.models


@pytest.mark.parametrize("name", PROVIDERS)
def test_only_the_key_file_has_to_be_added(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_example(name, {})
    (mistake,) = caught.value.mistakes
    file = re.escape(str(FOLDER / f"{name}.yaml"))
    assert re.fullmatch(
        rf"upstream\.api_key_file in {file}, line \d+: the file cannot be read: No such file or directory; .+", mistake
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_holds_no_key(file: Path) -> None:
    assert not yaml.safe_load(file.read_text())["upstream"].get("api_key")
    assert not re.search(r"\bsk-", file.read_text())


def test_full_yaml_is_the_defaults() -> None:
    assert load_example("full", {}) == Settings()


def test_full_yaml_names_every_setting_in_the_order_of_the_model() -> None:
    paths = []
    for name, value in yaml.safe_load((FOLDER / "full.yaml").read_text()).items():
        paths += [f"{name}.{inner}" for inner in value] if value and isinstance(value, dict) else [name]
    assert paths == [row.path for row in describe()]


def test_full_yaml_leaves_room_for_the_key_of_the_environment() -> None:
    api_key = load_example("full", {"OPENAI_API_KEY": "canary-key"}).upstream.api_key
    assert api_key is not None
    assert api_key.get_secret_value() == "canary-key"
