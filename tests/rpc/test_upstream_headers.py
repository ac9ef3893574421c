"""What goes to the upstream beside the body: headers, query, keys."""

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest

from support import Script, failure, http, request, service

RESPONSE = b'{"choices": []}'
OURS, THEIRS = "ours-0123456789", "theirs-0123456789"
CLIENTS = pytest.mark.parametrize("client", ["builtin", "httpx"])


def _lines(script: Script, number: int = -1) -> list[str]:
    return script.exchanges[number].head.decode().splitlines()


@CLIENTS
@pytest.mark.parametrize(
    ("upstream", "present", "absent"),
    [
        (
            {"auth_header": "api-key", "query": "api-version=2024-10-21"},
            ["POST /v1/chat/completions?api-version=2024-10-21 HTTP/1.1", f"api-key: {OURS}"],
            "authorization",
        ),
        ({"auth_scheme": "Token"}, [f"authorization: Token {OURS}"], "api-key"),
        ({"auth_scheme": ""}, [f"authorization: {OURS}"], "api-key"),
        ({"auth_header": "X-Auth", "auth_scheme": "Bearer"}, [f"x-auth: Bearer {OURS}"], "authorization"),
        (
            {"headers": "User-Agent: KimiCLI/1.3, Editor-Version: vscode/1.99\nHTTP-Referer: https://example.com/a"},
            ["user-agent: KimiCLI/1.3", "editor-version: vscode/1.99", "http-referer: https://example.com/a"],
            "user-agent: chatrpc-server",
        ),
    ],
    ids=["azure", "scheme", "no-scheme", "header-and-scheme", "headers"],
)
async def test_sent(script: Script, client: str, upstream: dict[str, Any], present: list[str], absent: str) -> None:
    script.respond_with(http(RESPONSE))
    async with service(script.base_url, upstream={"api_key": OURS, "http_client": client, **upstream}) as chat:
        await chat.stub.CreateChatCompletion(request())
    lines = [
        line if line.startswith("POST") else line.partition(":")[0].lower() + line[line.find(":") :]
        for line in _lines(script)
    ]
    assert set(present) <= set(lines)
    assert not any(line.startswith(absent) for line in lines)


@CLIENTS
async def test_changed_files_apply_to_the_next_call(
    script: Script, client: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script.respond_with(http(RESPONSE))
    key, headers = tmp_path / "key", tmp_path / "headers"
    key.write_text(f"{OURS}\n")
    headers.write_text("X-Gateway-Token: first-0123\n")
    upstream = {"api_key": OURS, "api_key_file": key, "headers_file": headers, "http_client": client}
    async with service(script.base_url, upstream=upstream) as chat:

        async def sent() -> set[str]:
            await chat.stub.CreateChatCompletion(request())
            return {line.lower() for line in _lines(script)}

        assert {f"authorization: bearer {OURS}", "x-gateway-token: first-0123"} <= await sent()
        key.write_text("second-key-0123456789")
        headers.write_text("X-Gateway-Token: second-012345\nX-Other-Key: 1\n")
        now = {"authorization: bearer second-key-0123456789", "x-gateway-token: second-012345", "x-other-key: 1"}
        assert now <= await sent()
        for number, bad in enumerate(["", "two words", "é", "a\nb"]):
            key.write_text(bad)
            headers.write_text(["Host: x", "no colon", "Content-Length: 1", "a: é"][number])
            assert now <= await sent()
        key.unlink()
        assert now <= await sent()
        script.respond_with(http(b'{"error": {"message": "bad key second-key-0123456789"}}', "400 Bad Request"))
        failed = await failure(chat.stub.CreateChatCompletion(request()))
        assert "second-key" not in str(failed)
    events = [
        (record.levelno, record.event) for record in caplog.records if "upstream_file" in getattr(record, "event", "")
    ]
    assert (logging.WARNING, "upstream_file_reload_failed") in events
    for secret in (OURS, "second-key", "second-012345", "two words"):
        assert secret not in caplog.text


async def test_only_named_metadata_is_forwarded(script: Script) -> None:
    script.respond_with(http(RESPONSE))
    async with service(script.base_url, upstream={"forward_metadata": ["X-Tenant", "x-user"]}) as chat:
        metadata = [("x-tenant", "t1"), ("x-other", "o"), ("x-user", "bad\x01"), ("authorization", "Bearer a")]
        await chat.stub.CreateChatCompletion(request(), metadata=metadata[:2] + metadata[3:])
    lines = [line.lower() for line in _lines(script)]
    assert "x-tenant: t1" in lines
    assert not [line for line in lines if line.startswith(("x-other", "x-user", "authorization"))]


@CLIENTS
@pytest.mark.parametrize("metadata_key", ["x-upstream-key", "authorization"])
async def test_a_callers_own_key(
    script: Script, client: str, metadata_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    upstream = {"api_key": OURS, "key_from_metadata": metadata_key, "http_client": client}
    async with service(script.base_url, upstream=upstream) as chat:
        script.respond_with(http(RESPONSE, x_request_id=THEIRS))
        call = chat.stub.CreateChatCompletion(request(), metadata=[(metadata_key, f"Bearer {THEIRS}")])
        assert THEIRS not in str(await call.initial_metadata())
        assert f"authorization: Bearer {THEIRS}" in _lines(script)
        script.respond_with(http(RESPONSE))
        await chat.stub.CreateChatCompletion(request())
        assert f"authorization: Bearer {OURS}" in _lines(script)
        script.respond_with(http(f'{{"error": {{"message": "wrong key {THEIRS}"}}}}'.encode(), "401 Unauthorized"))
        failed = await failure(chat.stub.CreateChatCompletion(request(), metadata=[(metadata_key, THEIRS)]))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UPSTREAM_UNAUTHENTICATED")
        assert "wrong key [redacted]" in failed.message
        assert THEIRS not in str(failed)
        assert not [record for record in caplog.records if getattr(record, "event", "") == "upstream_key_rejected"]
        ours = await failure(chat.stub.CreateChatCompletion(request()))
        assert (ours.code, ours.reason) == (grpc.StatusCode.INTERNAL, "UPSTREAM_UNAUTHENTICATED")
    assert not [value for record in caplog.records for value in record.__dict__.items() if THEIRS in str(value)]


async def test_no_key_at_all(script: Script) -> None:
    async with service(script.base_url, upstream={"key_from_metadata": "x-upstream-key"}) as chat:
        failed = await failure(chat.stub.CreateChatCompletion(request()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UPSTREAM_UNAUTHENTICATED")
    assert "x-upstream-key" in failed.message
    assert not script.exchanges
