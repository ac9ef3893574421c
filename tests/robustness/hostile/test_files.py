"""Files that the service follows are replaced by what is no file: calls continue, and the process can exit."""

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import grpc
import pytest
import trustme

from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub
from chatrpc_echo import Echo
from support import outcome, request, service
from support.process import ANY_PORTS, running

SPOILT: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "zero": lambda file: file.symlink_to("/dev/zero"),
    "missing": lambda file: None,
    "loop": lambda file: file.symlink_to(file),
    "large": lambda file: file.write_bytes(b"-----BEGIN CERTIFICATE-----" + bytes(8 << 20)),
    "binary": lambda file: file.write_bytes(bytes(range(256)) * 10),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("name", ["cert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("key", "callers"))])
async def test_certificates(spoil: Callable[[Path], object], name: str, echo: Echo, tmp_path: Path) -> None:
    """The current ones stay; the next valid ones are used. A handshake in grpc's thread never waits for a file."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", not_before=datetime(2019, 1, 1))
    cert, key, callers = (tmp_path / each for each in ("cert", "key", "callers"))
    cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(callers))
    caller = authority.issue_cert("team-a")
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(), caller.private_key_pem.bytes(), caller.cert_chain_pems[0].bytes()
    )
    tls = {"cert_file": cert, "key_file": key, "client_ca_file": callers}
    async with service(echo.base_url, tls=tls) as chat:

        async def call() -> grpc.StatusCode:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
            target = f"localhost:{chat.server.address.port}"
            async with grpc.aio.secure_channel(target, credentials, options) as channel:
                return (await outcome(ChatCompletionServiceStub(channel).CreateChatCompletion(request()))).code

        assert await call() is grpc.StatusCode.OK
        file = tmp_path / name
        content = file.read_bytes()
        file.unlink()
        spoil(file)
        assert await call() is grpc.StatusCode.OK
        await chat.wait_for(1, "chatrpc_tls_reloads_total", result="failure")
        _remove(file)
        file.write_bytes(content)
        assert await call() is grpc.StatusCode.OK
        await chat.wait_for(1, "chatrpc_tls_reloads_total", result="success")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
async def test_the_process_exits(spoil: Callable[[Path], object], echo: Echo, tmp_path: Path) -> None:
    """The settings file and the key file that it names are replaced together."""
    file, key = tmp_path / "chatrpc.yaml", tmp_path / "key"
    file.write_text(f"upstream: {{api_key_file: {key}}}\n")
    key.write_text("key")
    with running("serve", *ANY_PORTS, f"--config={file}", OPENAI_BASE_URL=echo.base_url) as process:
        await asyncio.to_thread(process.log, "serving")
        for each in (key, file):
            each.unlink()
            spoil(each)
        assert (await asyncio.to_thread(process.log, "config_reload_failed"))["mistakes"]
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0


def _remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
