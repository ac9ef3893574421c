"""What protects an operator: loopback, immutability, isolation from the environment."""

import pickle
import sys
from pathlib import Path

import pydantic
import pytest

from chatrpc_server.settings import (
    Address,
    Settings,
    UpstreamSettings,
    load,
)
from support.settings_loading import BEYOND, CANARY, load_from, mistakes


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "chatrpc.example.com:50051"])
def test_beyond_loopback_when_it_is_said(address: str) -> None:
    assert str(load_from(("--allow-insecure", "--listen", address)).listen) == address


@pytest.fixture
def pem(tmp_path: Path) -> str:
    """An existing file, as the TLS settings require; the service reads its content at the start."""
    path = tmp_path / "some.pem"
    path.write_text("PEM")
    return str(path)


def test_beyond_loopback_with_tls_for_known_callers(pem: str) -> None:
    flags = (f"--tls.cert-file={pem}", f"--tls.key-file={pem}", "--listen=0.0.0.0:1")
    assert load_from((*flags, f"--tls.client-ca-file={pem}")).listen.port == 1
    assert mistakes(flags=flags) == [
        "--listen: " + BEYOND.replace("TLS (tls.cert_file) and ", ""),
    ]


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        (["cert-file"], "tls.key_file, at its default: must be set, because cert_file is set"),
        (["key-file"], "--tls.key-file: requires cert_file, which is not set; set both or neither"),
        (["client-ca-file"], "--tls.client-ca-file: requires cert_file, which is not set; set both or neither"),
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
