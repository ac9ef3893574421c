"""Real providers' responses, bytes as recorded, through the whole service and back to JSON without a loss.

A scripted upstream serves them over HTTP. They are called over gRPC, turned back into JSON by tests/support/walker.py
and compared by value. Streams are cut at random byte positions, small ones at every position. Malformed responses must
give the right status after everything that preceded the fault.
"""

import copy
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse, CreateChatCompletionStreamResponse
from support import Exchange, Outcome, Script, Service, failure, http, request, service
from support.walker import prune, to_json

FOLDER = Path(__file__).parents[3] / "shared" / "recordings"
FILES = sorted(path.name for path in FOLDER.glob("*") if path.suffix in (".json", ".sse", ".txt"))
if not FILES:
    pytest.skip(f"no recordings beside the project, at ../shared/{FOLDER.name}", allow_module_level=True)

UNARY = [name for name in FILES if name.endswith(".json")]
STREAMS = [name for name in FILES if not name.endswith(".json")]
SMALL_BYTES = 1500
CUTS = 12
"""The number of random cuts of each larger stream."""

Code = grpc.StatusCode
END = (Code.OK, "")

FAULTS: dict[str, tuple[Code, str]] = {
    # A completion of the older, textual API: chunks without deltas and without a reliable end.
    "gemini-stream-no-done.sse": (Code.UNAVAILABLE, "UPSTREAM_TRUNCATED"),
    "groq-stream-error-in-stream-reasoning.sse": (Code.INVALID_ARGUMENT, "UPSTREAM_ERROR_BODY"),
    "azure-unary-error.json": (Code.INVALID_ARGUMENT, "UPSTREAM_ERROR_BODY"),
    "misc-unary-text.json": (Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE"),
    "openai-unary-error-http400.json": (Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST"),
    "deepseek-unary-error-http401.json": (Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED"),
    "openrouter-unary-error-http401.json": (Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED"),
    "perplexity-unary-error-http400.json": (Code.INVALID_ARGUMENT, "UPSTREAM_CONTEXT_LENGTH_EXCEEDED"),
    "ollama-unary-error-http401.json": (Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED"),
    "deepseek-unary-error-http400.json": (Code.INVALID_ARGUMENT, "UPSTREAM_CONTEXT_LENGTH_EXCEEDED"),
    "openai-unary-error-http404.json": (Code.NOT_FOUND, "UPSTREAM_MODEL_NOT_FOUND"),
    "mistral-unary-error-detail-http401.json": (Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED"),
    "azure-unary-error-http404.json": (Code.NOT_FOUND, "UPSTREAM_NOT_FOUND"),
    "azure-unary-error-http401.json": (Code.INTERNAL, "UPSTREAM_UNAUTHENTICATED"),
}
"""The recordings that fail: their status and reason. All others are OK."""


def meta(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "meta" / f"{Path(name).stem}.meta.json").read_text())  # type: ignore[no-any-return]


def unary_body(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def stream_body(name: str) -> bytes:
    body = unary_body(name)
    if name.endswith(".chunks.txt"):
        lines = [line for line in body.splitlines() if line.strip()]
        return b"".join(b"data: " + line + b"\n\n" for line in [*lines, b"[DONE]"])
    return body


def payloads(body: bytes, *, has_error: bool) -> list[Any]:
    """Return the events before the end, or before the error of a failed stream.

    It reads line by line because no recording has an event of several lines.
    """
    found = []
    for line in body.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                break
            payload = json.loads(data)
            if has_error and payload.get("error"):
                break
            found.append(payload)
    return found


def normalised(chunks: list[Any]) -> list[Any]:
    """Apply the contract's normalisations of streams that the recordings require."""
    indexes: dict[Any, int] = {}
    names: dict[Any, Any] = {}
    for chunk in copy.deepcopy(chunks):
        choices = chunk.get("choices") or []
        holders = [*choices[:1], chunk.get("x_groq") or {}]
        if not chunk.get("usage"):
            chunk["usage"] = next((holder["usage"] for holder in holders if holder.get("usage")), None)
        for choice in choices:
            if choice.get("finish_reason") == "":
                del choice["finish_reason"]
            delta = choice.get("delta") or {}
            if delta.get("role") == "":
                del delta["role"]
            for position, call in enumerate(delta.get("tool_calls") or []):
                if "index" not in call:
                    call["index"] = indexes.setdefault(call.get("id"), len(indexes)) if call.get("id") else position
                for holder, key in ((call, "id"), (call.get("function") or {}, "name")):
                    if holder.get(key) == "":
                        del holder[key]
                function = call.get("function") or {}
                place = (choice.get("index"), call["index"])
                if names.get(place) == function.get("name"):
                    function.pop("name", None)  # repeated
                names.setdefault(place, function.get("name"))
                if isinstance(function.get("arguments"), dict):
                    function["arguments"] = json.dumps(function["arguments"], separators=(",", ":"))
        yield prune(chunk, CreateChatCompletionStreamResponse.DESCRIPTOR)


class Report:
    """The number of complete recordings by provider."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, name: str, whole: bool) -> None:
        """Count one recording."""
        counts = self.counts[name.partition("-")[0]]
        counts[0] += whole
        counts[1] += 1

    def __str__(self) -> str:
        whole, all_ = (sum(column) for column in zip(*self.counts.values(), strict=True))
        providers = ", ".join(f"{name} {a}/{b}" for name, (a, b) in sorted(self.counts.items()))
        return f"recordings: {whole} of {all_} lossless ({providers})"


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    """Printed with `pytest -s` or when a recording fails."""
    report = Report()
    yield report
    print(f"\n{report}")


@pytest.fixture
async def chat(script: Script) -> AsyncIterator[Service]:
    async with service(script.base_url, coalesce=False, upstream={"max_retries": 0}) as running:
        yield running


@pytest.mark.parametrize("name", UNARY)
async def test_unary(script: Script, chat: Service, report: Report, name: str) -> None:
    body, status = unary_body(name), meta(name).get("status") or 200
    report.add(name, False)
    script.respond_with(http(body, f"{status} x", x_request_id="recorded"))
    call = chat.stub.CreateChatCompletion(request())
    if name in FAULTS:
        failed = await failure(call)
        assert (failed.code, failed.reason) == FAULTS[name]
        _same_content(failed, body, status)
    else:
        recorded = prune(json.loads(body), CreateChatCompletionResponse.DESCRIPTOR)
        assert to_json(await call) == recorded
    report.counts[name.partition("-")[0]][0] += 1
    report.counts[name.partition("-")[0]][1] += 0


def _same_content(failed: Outcome, body: bytes, status: int) -> None:
    if status == 401 or "UpstreamError" not in failed.details:
        return
    said = failed.details["UpstreamError"]
    assert said.http_status == status
    assert said.raw_body == body.decode()[: len(said.raw_body)]
    if failed.reason != "UPSTREAM_INVALID_RESPONSE":  # whose message is the service's
        assert failed.message in body.decode().replace("\\n", "\n").replace('\\"', '"')


def cuts(body: bytes, name: str) -> Iterator[list[bytes]]:
    """Yield the body in one piece and cut: small ones once at every position, others at random positions."""
    yield [body]
    if len(body) <= SMALL_BYTES:
        for position in range(1, len(body)):
            yield [body[:position], body[position:]]
        return
    random_ = random.Random(name)
    for _ in range(CUTS):
        positions = sorted(random_.sample(range(1, len(body)), random_.choice([1, 5, 50, 500])))
        yield [body[a:b] for a, b in zip([0, *positions], [*positions, len(body)], strict=True)]


@pytest.mark.parametrize("name", STREAMS)
async def test_stream(script: Script, chat: Service, report: Report, name: str) -> None:
    body = stream_body(name)
    expected = list(normalised(payloads(body, has_error=name in FAULTS)))
    code, reason = FAULTS.get(name, END)
    for pieces in cuts(body, name):
        script.respond_with(_in_pieces(pieces))
        call = chat.stub.CreateChatCompletionStream(request())
        if code is Code.OK:
            chunks = [chunk async for chunk in call]
        else:
            failed = await failure(call)
            assert (failed.code, failed.reason) == (code, reason)
            chunks = failed.messages
        assert list(map(to_json, chunks)) == expected
    report.add(name, True)


def _in_pieces(pieces: list[bytes]) -> Any:
    async def respond(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            await exchange.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        await exchange.send(b"0\r\n\r\n")

    return respond
