"""`check-config` fails if `serve` would, with the same words, because both create the same parts."""

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
import trustme

from chatrpc_server.cli import main
from chatrpc_server.process.lifecycle import StartError
from chatrpc_server.server import Server
from chatrpc_server.settings import SettingsError
from support.process import run
from support.settings_loading import load_from

ANY = ("--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with certificates, valid and invalid ones."""
    authority = trustme.CA()
    for name in ("server", "other"):
        issued = authority.issue_cert("localhost", not_before=datetime(2019, 1, 1))
        (tmp_path / f"{name}.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        (tmp_path / f"{name}.key").write_bytes(issued.private_key_pem.bytes())
    old = authority.issue_cert("localhost", not_before=datetime(2019, 1, 1), not_after=datetime(2020, 1, 1))
    (tmp_path / "old.crt").write_bytes(old.cert_chain_pems[0].bytes())
    (tmp_path / "old.key").write_bytes(old.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "no.pem").write_text("no PEM")
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return tmp_path


def _tls(cert: str, key: str, callers: str = "") -> tuple[str, ...]:
    flags = (f"--tls.cert-file={{}}/{cert}", f"--tls.key-file={{}}/{key}")
    return (*flags, f"--tls.client-ca-file={{}}/{callers}") if callers else flags


UPSTREAM = "--upstream.base-url=https://127.0.0.1:1/v1"
TRACES = "--tracing.endpoint=http://127.0.0.1:1"
REFUSED = {
    "no-pem": (_tls("no.pem", "server.key"), "tls.cert_file: "),
    "no-key": (_tls("server.crt", "no.pem"), "tls.key_file: "),
    "key-as-certificate": (_tls("server.key", "server.key"), "tls.cert_file: "),
    "bad-pem": (_tls("bad.pem", "server.key"), "tls.key_file: "),
    "other-key": (_tls("server.crt", "other.key"), "tls.key_file: "),
    "expired": (_tls("old.crt", "old.key"), "tls.cert_file: "),
    "callers": (_tls("server.crt", "server.key", "bad.pem"), "tls.client_ca_file: "),
    "authorities": ((UPSTREAM, "--upstream.ca-file={}/no.pem"), "upstream.ca_file: "),
}


@pytest.mark.parametrize(("flags", "where"), REFUSED.values(), ids=REFUSED)
async def test_what_the_start_refuses(
    flags: tuple[str, ...], where: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_from((*ANY, *(flag.format(folder) for flag in flags)))
    with pytest.raises(SettingsError) as checked:
        await Server(settings).check()
    (mistake,) = checked.value.mistakes
    assert mistake.startswith(f"{where}{folder}/")
    with pytest.raises(StartError) as started:
        await Server(settings).start()
    assert str(started.value) == mistake


async def test_all_mistakes_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chatrpc_server.telemetry.tracing", None)
    flags = (*_tls("server.crt", "other.key"), UPSTREAM, "--upstream.ca-file={}/no.pem", TRACES)
    settings = load_from((*ANY, *(flag.format(folder) for flag in flags)))
    with pytest.raises(SettingsError) as checked:
        await Server(settings).check()
    places = [mistake.partition(":")[0] for mistake in checked.value.mistakes]
    assert places == ["tracing.endpoint", "upstream.ca_file", "tls.key_file"]
    with pytest.raises(StartError) as started:
        await Server(settings).start()
    assert str(started.value) == "; ".join(checked.value.mistakes)


async def test_invalid_variables_of_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SettingsError, match=r"OTEL_\*: "):
        await Server(load_from((*ANY, TRACES))).check()


SPOILT: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: None,
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "zero": lambda file: file.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("setting", ["cert_file", "key_file", "client_ca_file"])
async def test_a_file_that_is_lost_after_the_settings(
    setting: str, spoil: Callable[[Path], object], folder: Path
) -> None:
    """The error names the setting."""
    files = {"cert_file": "server.crt", "key_file": "server.key", "client_ca_file": "ca.pem"}
    settings = load_from((*ANY, *(flag.format(folder) for flag in _tls(*files.values()))))
    file = folder / files[setting]
    file.unlink()
    spoil(file)
    with pytest.raises(StartError) as started:
        await Server(settings).start()
    assert str(started.value).startswith(f"tls.{setting}: {file}: cannot be read: ")
    assert str(started.value).endswith("; name a readable file")


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    valid = [flag.format(folder) for flag in _tls("server.crt", "server.key", "ca.pem")]
    assert main(["check-config", *valid, TRACES]) == 0
    capsys.readouterr()
    invalid = [flag.format(folder) for flag in _tls("server.crt", "other.key")]
    assert main(["check-config", *invalid]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"chatrpc-server: tls.key_file: {folder}/other.key: cannot be used with ")


def test_addresses_in_use_are_no_mistake(unused_tcp_port: int) -> None:
    """Beside a running service its settings are valid."""
    with socket.create_server(("127.0.0.1", unused_tcp_port)):
        assert main(["check-config", f"--listen=127.0.0.1:{unused_tcp_port}"]) == 0


KEY = "sk-canary-7f3a9d"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check-config", f"--config=/no/such/{KEY}"],
        ["check-config", f"--coalesce={KEY}"],
        [KEY],
        ["check-config", KEY],
        ["check-config", "--listen"],
        ["check-config", f"--upstream.organization={KEY}"],
        ["check-config", f"--models={KEY},a"],
        ["check-config", f"--upstream.base-url=https://host/{KEY}/v1"],
        ["check-config", f"--upstream.name={KEY}"],
        ["check-config", f"--upstream.proxy=http://{KEY}@host:1"],
        ["check-config", f"--upstream.proxy=http://user:{KEY}@host:1"],
        ["echo", f"--pace-seconds={KEY}"],
        ["healthcheck", f"--upstream.api-key-file={KEY}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(KEY, "KEY"),
)
def test_no_output_holds_a_key(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):  # of argparse
        main(arguments)
    out, err = capsys.readouterr()
    assert out + err
    assert KEY not in out + err


def test_a_key_of_any_form_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    """The key itself is hidden in all values, in any form."""
    key = "0123456789abcdef"
    assert main(["check-config", f"--upstream.api-key={key}", f"--upstream.base-url=https://host/{key}/v1"]) == 0
    assert key not in capsys.readouterr().out


def test_paths_that_are_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.pem"
    with open(path, "wb") as file:
        file.write(b"key")
    result = run("check-config", CHATRPC_UPSTREAM__API_KEY_FILE=os.fsdecode(path))
    assert "Traceback" not in result.stderr
    assert result.returncode == 0
