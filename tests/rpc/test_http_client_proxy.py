"""Every HTTP client: tunnels through a proxy. Requests without TLS through a proxy are in test_metadata.py."""

import asyncio
from pathlib import Path

import grpc
import httpx
import pytest
import trustme

from support import Exchange, Script, failure, http, request, service
from support.http_clients import (
    THREE,
    engines,
    idle,
    of,
    posted,
    serving,
)


class Proxy:
    """A proxy with a scripted response to CONNECT; then a tunnel to its one port."""

    def __init__(self, response: bytes | None, port: int = 0) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self._response, self._port = response, port

    async def __aenter__(self) -> "Proxy":
        self._serving = serving(self._connected)
        self.url = f"http://127.0.0.1:{await self._serving.__aenter__()}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._serving.__aexit__(None, None, None)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            if self._response is not None:
                writer.write(self._response)
            if self._port and self._response:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
                back = asyncio.create_task(self._carry(far_reader, writer))
                await self._carry(reader, far_writer)
                await asyncio.wait({back})
            await reader.read()
        finally:
            self.connections -= 1

    @staticmethod
    async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        finally:
            writer.close()


async def gone(proxy: Proxy) -> None:
    async with asyncio.timeout(5):
        while proxy.connections:
            await asyncio.sleep(0.001)


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@engines
@pytest.mark.parametrize("established", [ESTABLISHED, b"HTTP/1.1 201 x\r\n\r\n"], ids=["200", "201"])
async def test_a_tunnel(authority: trustme.CA, tmp_path: Path, name: str, established: bytes) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Script(authority.issue_cert("localhost")) as script:
        port = int(script.base_url.split(":")[2].partition("/")[0])
        async with Proxy(established, port) as proxy:
            script.respond_with(THREE)
            transport = of(script, name, ca_file=tmp_path / "ca.pem", proxy=proxy.url)
            for _ in range(2):
                assert (await posted(transport))[2:] == (b"abc", True, 1)
            assert len(proxy.heads) == 1
            assert proxy.heads[0].startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % port)
            assert script.exchanges[0].head.startswith(b"POST /v1/x HTTP/1.1\r\n")
            await transport.aclose()
            await gone(proxy)


@pytest.mark.parametrize(
    ("host", "named"), [("[::1]:8443", "[::1]:8443"), ("xn--bcher-kva.example", "xn--bcher-kva.example:443")]
)
async def test_the_request_for_a_tunnel(host: str, named: str) -> None:
    async with Proxy(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n") as proxy:
        transport = of(Script(), "builtin", f"https://{host}", proxy=proxy.url)
        with pytest.raises(httpx.ProxyError, match="403"):
            await transport.post(b"{}", [])
        assert proxy.heads == [f"CONNECT {named} HTTP/1.1\r\nhost: {named}\r\n\r\n".encode()]
        await transport.aclose()


NO_TUNNEL: dict[str, tuple[bytes | None, bool, type[Exception]]] = {
    # the response of the proxy; whether a server without TLS is behind it
    "refused": (b"HTTP/1.1 407 x\r\ncontent-length: 3\r\n\r\nabc", False, httpx.ProxyError),
    "no TLS behind it": (ESTABLISHED, True, httpx.ConnectError),
    "no HTTP": (b"\x05\x00", False, httpx.RemoteProtocolError),
    "silent": (None, False, httpx.ConnectTimeout),
    "silent behind it": (ESTABLISHED, False, httpx.ConnectTimeout),
}


@engines
@pytest.mark.parametrize(("response", "behind", "error"), NO_TUNNEL.values(), ids=NO_TUNNEL)
async def test_no_tunnel(name: str, response: bytes | None, behind: bool, error: type[Exception]) -> None:
    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example.com\r\n")

    async with serving(plain) as port, Proxy(response, behind and port) as proxy, asyncio.timeout(5):
        settings = {"proxy": proxy.url, "connect_timeout_seconds": 0.1 if error is httpx.ConnectTimeout else 5}
        transport = of(Script(), name, "https://localhost", **settings)
        with pytest.raises(error):
            await transport.post(b"{}", [])
        assert await idle(transport) == 0
        await gone(proxy)
        await transport.aclose()


USER = "http://canary-user:canary%2Fpass@"
AUTHORIZATION = b"proxy-authorization: basic y2fuyxj5lxvzzxi6y2fuyxj5l3bhc3m="
"""In lower case."""


@engines
async def test_a_tunnel_with_user_name_and_password(authority: trustme.CA, tmp_path: Path, name: str) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with (
        Script(authority.issue_cert("localhost")) as script,
        Proxy(ESTABLISHED, int(script.base_url.split(":")[2].partition("/")[0])) as proxy,
    ):
        script.respond_with(THREE)
        url = proxy.url.replace("http://", USER)
        transport = of(script, name, ca_file=tmp_path / "ca.pem", proxy=url)
        assert (await posted(transport)).body == b"abc"
        await transport.aclose()
    assert AUTHORIZATION in proxy.heads[0].lower()
    assert b"proxy-authorization" not in script.exchanges[0].head.lower(), "it is for the proxy alone"


@engines
async def test_a_proxy_without_a_tunnel_gets_user_name_and_password(script: Script, name: str) -> None:
    script.respond_with(THREE)
    url = script.base_url.removesuffix("/v1").replace("http://", USER)
    transport = of(Script(), name, "http://model.invalid/v1", proxy=url)
    assert (await posted(transport)).body == b"abc"
    await transport.aclose()
    (exchange,) = script.exchanges
    assert exchange.head.startswith(b"POST http://model.invalid/v1/x HTTP/1.1\r\n")
    assert exchange.head.lower().count(AUTHORIZATION) == 1
    assert exchange.header(b"host") == "model.invalid"


REFUSALS = {
    # status, attempts, the words for the caller
    "user and password": (407, 1, "; check user name and password in upstream.proxy"),
    "forbidden": (403, 1, ""),
    "not found": (404, 1, ""),
    "redirect": (302, 1, ""),
    "busy": (429, 3, ""),
    "no upstream": (502, 3, ""),
    "overloaded": (503, 3, ""),
}


@engines
@pytest.mark.parametrize(("status", "attempts", "remedy"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_is_reported_as_the_proxys(
    name: str, status: int, attempts: int, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = f"HTTP/1.1 {status} canary-words\r\ncontent-length: 6\r\nx: canary\r\n\r\ncanary".encode()
    async with Proxy(response) as proxy:
        upstream = {"http_client": name, "proxy": proxy.url.replace("http://", USER)}
        async with service("https://model.invalid/v1", upstream=upstream) as chat:
            failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNREACHABLE")
    assert failed.message == f"cannot connect to the upstream: the proxy refused with HTTP {status}{remedy}"
    assert len(proxy.heads) == attempts
    causes = [record.cause for record in caplog.records if getattr(record, "event", "") == "upstream_connect_failed"]
    assert causes
    assert all(f"the proxy refused with HTTP {status}" in cause for cause in causes)
    for text in (str(failed), *causes, *(str(record.__dict__) for record in caplog.records)):
        assert "canary" not in text, "neither the password nor the proxy's words are shown"


@engines
async def test_a_refusal_without_a_tunnel(script: Script, name: str) -> None:
    script.respond_with(http(b"canary", "407 canary"))
    upstream = {"http_client": name, "proxy": script.base_url.removesuffix("/v1")}
    async with service("http://model.invalid/v1", upstream=upstream) as chat:
        failed = await failure(chat.stub.CreateChatCompletionStream(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNREACHABLE")
    assert "the proxy refused with HTTP 407" in failed.message
    assert "canary" not in str(failed)
    assert len(script.exchanges) == 1


async def test_a_407_of_an_upstream_without_a_proxy_is_its_own(script: Script) -> None:
    script.respond_with(http(b'{"error": {"message": "no"}}', "407 x"))
    async with service(script.base_url) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.reason, failed.message) == ("UPSTREAM_ERROR", "no")


@engines
async def test_a_cancel_of_a_tunnel_at_any_time_leaves_nothing_open(
    authority: trustme.CA, tmp_path: Path, name: str
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Script(authority.issue_cert("localhost")) as script:
        script.respond_with(Exchange.closed_by_peer)
        async with Proxy(ESTABLISHED, int(script.base_url.split(":")[2].partition("/")[0])) as proxy:
            transport = of(script, name, ca_file=tmp_path / "ca.pem", proxy=proxy.url)
            for turns in range(60):
                sending = asyncio.create_task(transport.post(b"{}", []))
                for _ in range(turns):
                    await asyncio.sleep(0)
                sending.cancel()
                await asyncio.wait({sending})
                assert sending.cancelled()
            assert await idle(transport) == 0
            await transport.aclose()
            await gone(proxy)
