"""Every client's tour presents a client certificate (mTLS), and reports an invalid one in one line."""

import re
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization as pem
from test_conformance import LANGUAGES
from test_tour import tour

from chatrpc_echo import Echo
from support import service

pytestmark = pytest.mark.timeout(1000)

ROOTS = ("SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
"""Variables that replace the system's authorities. The JVM has none."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with PEM files: server, client and foreign pairs, and invalid files."""
    folder = tmp_path_factory.mktemp("pem")
    authority, foreign = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, issuer in {"server": authority, "client": authority, "foreign": foreign}.items():
        pair = issuer.issue_cert("localhost")
        pair.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        key = pem.load_pem_private_key(pair.private_key_pem.bytes(), None)
        for kind, encryption in {"key": pem.NoEncryption(), "encrypted": pem.BestAvailableEncryption(b"x")}.items():
            text = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption)
            (folder / f"{name}-{kind}.pem").write_bytes(text)
        pair.private_key_pem.write_to_path(folder / f"{name}-sec1.pem")  # "EC PRIVATE KEY", which Netty rejects
    (folder / "empty.pem").touch()
    (folder / "text.pem").write_text("no PEM\n")
    return folder


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_client_certificate(language: str, files: Path) -> None:
    tls = {"cert_file": "server.pem", "key_file": "server-key.pem", "client_ca_file": "ca.pem"}
    paths = {name: str(files / file) for name, file in tls.items()}
    async with Echo() as echo, service(echo.base_url, upstream={"max_retries": 0}, tls=paths) as running:
        target = f"localhost:{running.server.address.port}"
        arguments = ["--target", target, "--image-bytes", 9, "--ca-file", files / "ca.pem"]
        code, out, err = await tour(language, *arguments, *pair(files, "client", "client-key"))
        assert (code, err) == (0, "")
        assert len(out.splitlines()) == 7
        for certificate in [
            [],
            pair(files, "foreign", "foreign-key"),
            pair(files, "client", "foreign-key"),
        ]:
            assert_line(files, *await tour(language, *arguments, *certificate))
        if language == "java":
            failed = await tour(language, *arguments, *pair(files, "client", "client-sec1"))
            assert_line(files, *failed, has="PKCS#8")
        else:
            environ = {name: str(files / "ca.pem") for name in ROOTS}
            certificate = pair(files, "client", "client-sec1")
            code, _, err = await tour(language, *arguments[:-2], *certificate, **environ)
            assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ("missing", "client-key"),
        ("client", "missing"),
        ("empty", "client-key"),
        ("client", "empty"),
        ("text", "client-key"),
        ("client", "text"),
        ("client-key", "client"),
        ("client", "client-encrypted"),
    ],
)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_an_invalid_file(language: str, files: Path, certificate: str, key: str) -> None:
    invalid = key if certificate == "client" else certificate
    failed = await tour(language, "--target", "127.0.0.1:1", *pair(files, certificate, key))
    assert_line(files, *failed, has=f"{invalid}.pem")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_an_empty_path(language: str, files: Path) -> None:
    target = ["--target", "127.0.0.1:1"]
    key = files / "client-key.pem"
    for arguments in (["--ca-file", ""], ["--cert", "", "--key", key], ["--cert", "", "--key", ""]):
        failed = await tour(language, *target, *arguments)
        assert_line(files, *failed)
        assert "UNAVAILABLE" not in failed[2]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("flag", ["--cert", "--key"])
async def test_half_a_pair(language: str, flag: str) -> None:
    code, out, err = await tour(language, flag, "file.pem")
    assert (code, out) == (2, "")
    assert "--cert, --key: one is missing; give both" in err


def pair(files: Path, certificate: str, key: str) -> list[object]:
    return ["--cert", files / f"{certificate}.pem", "--key", files / f"{key}.pem"]


def assert_line(files: Path, code: int, out: str, err: str, *, has: str = "") -> None:
    """Assert that the tour has exited with 1 and one line on standard error, which shows no line of a key."""
    assert (code, out) == (1, "")
    assert re.fullmatch("chatrpc: .+\n", err), err
    assert has in err
    for key in files.glob("*-*.pem"):
        assert not [line for line in key.read_text().splitlines()[1:-1] if line in err]
