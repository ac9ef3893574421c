"""Does each installed rival forward the benchmark's calls correctly?

    python bench/peers/check.py [--versions] [--requests] [NAME ...]

Starts each in turn between this process and a small upstream. Makes unary calls until one is right, then two streams
with chunks 20 ms apart. The second stream must not deliver them together; during the first some rivals still load code.
Prints a table; exits with 1 if a rival failed.

`--requests` shows the other requests of each rival to its upstream, `--versions` only the installed versions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import rivals
from aiohttp import web
from ours import NAIVE_PYTHON
from processes import Running, start
from rivals import Rival

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc.v1.chat_service_pb2_grpc import ChatCompletionServiceStub

MODEL = "bench-66-20"
TEXT = "Grüße"
CHUNKS, GAP_SECONDS = 20, 0.02
MOST_SECONDS_TO_START = 90
_STREAMED = "".join(f" {number}" for number in range(CHUNKS - 2))
_ASKED = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}]}


class Upstream:
    """Responds as OpenAI does, with additional keys; responds to every other request with a healthy status."""

    def __init__(self) -> None:
        self.port = 0
        self.aside: list[str] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/{path:.*}", self._aside)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()

    async def _aside(self, request: web.Request) -> web.Response:
        self.aside.append(request.path)
        models = {"object": "list", "data": [{"id": "bench", "object": "model", "created": 1, "owned_by": "bench"}]}
        return web.json_response(models if request.path == "/v1/models" else {})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["model"] != MODEL or body["messages"] != _ASKED["messages"]:
            return web.json_response({"error": {"message": f"not what was asked: {body}"}}, status=400)
        if not body.get("stream"):
            message: dict[str, Any] = {
                "role": "assistant",
                "content": TEXT,
                "refusal": None,
                "annotations": [],
                "surprise": {"a": 1},
            }
            return web.json_response(
                _shared("chat.completion")
                | {
                    "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "surprise": [1]},
                }
            )
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        words = _STREAMED.split(" ")[1:]
        deltas: list[Any] = [{"role": "assistant", "content": ""}, *({"content": f" {word}"} for word in words), {}]
        for number, delta in enumerate(deltas):
            reason = "stop" if number == CHUNKS - 1 else None
            chunk = _shared("chat.completion.chunk") | {
                "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
            }
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await asyncio.sleep(GAP_SECONDS)
        await response.write(b"data: [DONE]\n\n")
        return response


def _shared(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": MODEL, "system_fingerprint": None, "surprise": 1}


async def unary(rival: Rival, port: int) -> None:
    """Make a unary call. Raises any error, AssertionError included."""
    if rival.protocol == "grpc":
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
            asked = CreateChatCompletionRequest(model=MODEL, messages=[ChatMessage(role="user", content=TEXT)])
            answer = await ChatCompletionServiceStub(channel).CreateChatCompletion(asked, timeout=10)
        choice = answer.choices[0]
        assert (answer.model, choice.message.content, choice.finish_reason) == (MODEL, TEXT, "stop"), answer
        assert answer.usage.total_tokens == 3, answer
        return
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        response = await client.post(f"http://127.0.0.1:{port}{rival.path}", json=_ASKED, headers=dict(rival.headers))
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["model"], body["choices"][0]["message"]["content"]) == (MODEL, TEXT), body


async def stream(rival: Rival, port: int, *, apart: bool) -> str:
    """Make a streaming call; return a description. Raises any error; `apart` requires separate chunks."""
    if not rival.streams:
        return "not offered"
    body: dict[str, Any] = _ASKED | {"stream": True}
    came: list[tuple[float, str]] = []
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        url, headers = f"http://127.0.0.1:{port}{rival.path}", dict(rival.headers)
        async with client.stream("POST", url, json=body, headers=headers) as response:
            assert response.status_code == 200, (await response.aread()).decode()
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    came.append((time.monotonic(), line.removeprefix("data:").strip()))
    payloads = [payload for _, payload in came]
    assert payloads[-1:] == ["[DONE]"], payloads[-1:]
    choices = [choice for payload in payloads[:-1] for choice in json.loads(payload)["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text == _STREAMED, text
    seconds = came[-1][0] - came[0][0]
    if apart:
        assert seconds > CHUNKS * GAP_SECONDS / 2, f"all chunks came within {seconds:.3f} s: they were held back"
    return f"{len(payloads) - 1} chunks in {seconds:.2f} s, [DONE]"


async def started(rival: Rival, running: Running) -> float:
    """Wait for the first correct response; return the seconds until then."""
    since = time.monotonic()
    while True:
        try:
            await unary(rival, running.port)
            return time.monotonic() - since
        except (AssertionError, httpx.TransportError, grpc.aio.AioRpcError) as error:
            if running.ended or time.monotonic() - since > MOST_SECONDS_TO_START:
                raise AssertionError(f"{error!r}\n{running.last_words()}") from error
        await asyncio.sleep(0.02)


async def check(rival: Rival, upstream: Upstream, folder: Path) -> tuple[bool, str]:
    """Return whether all calls succeeded, and the line of the table."""
    upstream.aside.clear()
    running, ready, memory, said = start(rival, upstream.port, folder), "-", "-", ["FAILED", "FAILED"]
    trouble = ""
    try:
        ready = f"{await started(rival, running):.1f}"
        said[0] = "yes"
        await stream(rival, running.port, apart=False)
        said[1] = await stream(rival, running.port, apart=True)
        memory = f"{running.resident_mib():.0f}"
    except (AssertionError, httpx.HTTPError) as error:
        trouble = f"\n{rival.name}: {error}\n{running.last_words()}"
    finally:
        running.stop()
    line = f"{rival.name:<18}{rival.version:<11}{rival.kind:<15}{said[0]:<8}{said[1]:<32}{ready:>8}{memory:>8}"
    return not trouble, line + trouble


async def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--versions", action="store_true", help="print only the installed versions")
    parser.add_argument("--requests", action="store_true", help="show the other requests of each to its upstream")
    parser.add_argument("names", nargs="*", metavar="NAME", help="check only these")
    args = parser.parse_args()
    if args.versions:
        versions()
        return 0
    print(f"{'':<18}{'version':<11}{'kind':<15}{'unary':<8}{'stream':<32}{'ready s':>8}{'MiB':>8}")
    all_well, upstream = True, Upstream()
    with tempfile.TemporaryDirectory(prefix="chatrpc-rivals-") as folder:
        async with upstream.serving():
            for number, rival in enumerate(rivals.RIVALS):
                if args.names and rival.name not in args.names:
                    continue
                if not rival.installed:
                    print(f"{rival.name:<18}not installed")
                    continue
                well, line = await check(rival, upstream, Path(folder) / str(number))
                all_well &= well
                print(line, flush=True)
                if args.requests:
                    print(f"{'':<18}asked: {', '.join(dict.fromkeys(upstream.aside)) or 'nothing else'}", flush=True)
    return 0 if all_well else 1


def versions() -> None:
    for rival in rivals.RIVALS:
        print(f"{rival.name:<18}{rival.version if rival.installed else 'not installed'}")
    sdk = next(NAIVE_PYTHON.parents[1].glob("lib/python3*/site-packages/openai-*.dist-info"), None)
    print(f"{'OpenAI SDK':<18}{sdk.name.split('-')[1].removesuffix('.dist') if sdk else 'not installed'}")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
