"""The upstream's proxy: from the settings, a file or the environment, and its password in no output."""

import json
from pathlib import Path

import pytest

from chatrpc_server.core.text import Redactor
from chatrpc_server.settings.proxies import proxy_of
from support.settings_loading import PROXY, at, load_from, mistakes

USER, PASSWORD = "canary-user", "canary%2Fpass"
BASIC = "Y2FuYXJ5LXVzZXI6Y2FuYXJ5L3Bhc3M="
URL = f"http://{USER}:{PASSWORD}@proxy.example.com:3128"
SHOWN = "http://***@proxy.example.com:3128"


@pytest.mark.parametrize("source", ["setting", "file", "environment"])
def test_user_name_and_password_show_nowhere(source: str, tmp_path: Path) -> None:
    (tmp_path / "proxy").write_text(f" {URL}\n")
    environ = {
        "setting": {"CHATRPC_UPSTREAM__PROXY": URL},
        "file": {"CHATRPC_UPSTREAM__PROXY_FILE": str(tmp_path / "proxy")},
        "environment": {"HTTPS_PROXY": URL, "CHATRPC_UPSTREAM__PROXY_FROM_ENV": "true"},
    }[source]
    settings = load_from(environ=environ)
    assert at(settings, "upstream.proxy") == URL
    assert settings.redacted()["upstream"]["proxy"] == SHOWN
    for text in (json.dumps(settings.redacted()), repr(settings), str(settings), repr(settings.model_dump())):
        assert "canary" not in text
    redact = Redactor(settings.secrets())
    for text in (URL, USER + ":canary/pass", "the password canary/pass", f"or {PASSWORD}", f"Basic {BASIC}"):
        assert "canary" not in redact(text)
        assert BASIC not in redact(text)
    assert redact("proxy.example.com:3128") == "proxy.example.com:3128"


def test_a_proxy_without_a_password_is_shown() -> None:
    settings = load_from(("--upstream.proxy", "http://proxy:1/"))
    assert settings.redacted()["upstream"]["proxy"] == "http://proxy:1/"
    assert settings.secrets() == []


HTTPS, HTTP = "https://api.example.com/v1", "http://api.example.com/v1"
NAMED = {
    # base URL, the environment, the variable that is used
    "https": (HTTPS, {"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://q:1"}, "HTTPS_PROXY"),
    "http": (HTTP, {"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://q:1"}, "HTTP_PROXY"),
    "lower case first": (HTTPS, {"HTTPS_PROXY": "http://p:1", "https_proxy": "http://q:1"}, "https_proxy"),
    "all": (HTTPS, {"ALL_PROXY": "http://p:1", "HTTP_PROXY": "http://q:1"}, "ALL_PROXY"),
    "its own before all": (HTTPS, {"all_proxy": "http://p:1", "HTTPS_PROXY": "http://q:1"}, "HTTPS_PROXY"),
    "none": (HTTPS, {"HTTP_PROXY": "http://p:1"}, None),
    "empty": (HTTPS, {"HTTPS_PROXY": " "}, None),
}


@pytest.mark.parametrize(("url", "environ", "variable"), NAMED.values(), ids=NAMED)
def test_the_variable(url: str, environ: dict[str, str], variable: str | None) -> None:
    assert proxy_of(url, environ) == (variable and (variable, environ[variable]))


NO_PROXY = {
    # value of NO_PROXY, base URL, whether it is excluded
    "everything": ("*", HTTPS, True),
    "the host": ("api.example.com", HTTPS, True),
    "one of several": ("other.com, api.example.com,x", HTTPS, True),
    "in another case": ("API.Example.COM", "https://Api.example.com/v1", True),
    "with a final dot": ("example.com.", "https://api.example.com./v1", True),
    "the domain": ("example.com", HTTPS, True),
    "the domain with a dot": (".example.com", HTTPS, True),
    "the domain with an asterisk": ("*.example.com", HTTPS, True),
    "the end of a name": ("ample.com", HTTPS, False),
    "a longer name": ("x.api.example.com", HTTPS, False),
    "another": ("example.org", HTTPS, False),
    "nothing": (",. ,", HTTPS, False),
    "the port by default": ("example.com:443", HTTPS, True),
    "another port": ("example.com:8443", HTTPS, False),
    "its port": ("example.com:8443", "https://example.com:8443", True),
    "an address": ("10.1.2.3", "http://10.1.2.3:8000/v1", True),
    "an address and its port": ("10.1.2.3:8000", "http://10.1.2.3:8000/v1", True),
    "another address": ("10.1.2.3", "http://10.1.2.30/v1", False),
    "a network": ("10.0.0.0/8", "http://10.1.2.3/v1", True),
    "another network": ("192.168.0.0/16", "http://10.1.2.3/v1", False),
    "an IPv6 address": ("fd00::1", "http://[fd00::1]/v1", True),
    "an IPv6 address in brackets": ("[fd00::1]:80", "http://[fd00:0::1]/v1", True),
    "an IPv6 network": ("fd00::/8", "http://[fd00::1]:8000/v1", True),
}


@pytest.mark.parametrize(("value", "url", "excluded"), NO_PROXY.values(), ids=NO_PROXY)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy(variable: str, value: str, url: str, excluded: bool) -> None:
    assert (proxy_of(url, {"ALL_PROXY": "http://p:1", variable: value}) is None) is excluded


def test_the_environment_is_used_only_if_requested() -> None:
    environ = {"HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}
    assert load_from(environ=environ).upstream.proxy is None
    on = {"CHATRPC_UPSTREAM__PROXY_FROM_ENV": "true"}
    assert at(load_from(environ={**environ, **on}), "upstream.proxy") == "http://p:1"
    assert at(load_from(environ={"HTTPS_PROXY": "p:1", **on}), "upstream.proxy") == "http://p:1"
    assert load_from(environ={**environ, **on, "NO_PROXY": "openai.com"}).upstream.proxy is None
    own = load_from(("--upstream.proxy", "http://own:1"), {**environ, **on})
    assert at(own, "upstream.proxy") == "http://own:1"


@pytest.mark.parametrize("value", ["https://u:canary@p:1", "socks5://p:1", "http://p:1/path", "http://u:ca nary@p"])
def test_an_invalid_proxy_of_the_environment(value: str) -> None:
    environ = {"HTTPS_PROXY": value, "CHATRPC_UPSTREAM__PROXY_FROM_ENV": "true"}
    assert mistakes(environ=environ) == [f"HTTPS_PROXY in the environment: {PROXY}"]
