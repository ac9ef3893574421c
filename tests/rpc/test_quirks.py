"""The deviations of real servers, one by one, through the whole service and back to JSON.

The fixtures in tests/fixtures/quirks/ are hand-written bytes as they arrive over the wire. Each is served over HTTP,
called over gRPC and turned back into JSON by tests/support/walker.py. The result must equal the JSON that the standard
library reads in the fixture. If the contract promises to repair something, or if the upstream reports an error, a row
of `QUIRKS` states the difference. Streams are called twice: with one message per event, compared exactly, and
coalesced, where the texts must be equal.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from chatrpc_server.core.openai.responses import StreamReader
from chatrpc_server.core.upstream import ChatChunk, ChatResponse
from support import Script, Service, collect, failure, http, request, service
from support.walker import prune, to_json

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOLDER = Path(__file__).parents[1] / "fixtures" / "quirks"
LOST = "\ufffd"
GONE = object()
"""In a change: the key is absent."""

Code = grpc.StatusCode
INVALID = (Code.INTERNAL, "UPSTREAM_INVALID_RESPONSE")
ONE_BY_ONE = (("x-chatrpc-coalesce", "off"),)
TRUNCATED = (Code.UNAVAILABLE, "UPSTREAM_TRUNCATED")


@dataclass(frozen=True)
class Quirk:
    """The expected outcome of a fixture."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Differences from the fixture by path; a stream's path begins with the number of the event."""
    end: tuple[Code, str] = (Code.OK, "")
    """The status and the reason."""
    delivered: int | None = None
    """The events of a stream that are delivered; None: all."""
    says: str = ""
    """The status's message."""
    mapped: str = ""
    """The reason of the error object in a 200."""
    http: str = "200 OK"
    merges: bool = True
    """Whether its chunks may be merged."""


LOSSLESS = Quirk()


def ends(end: tuple[Code, str], delivered: int = 1) -> Quirk:
    """Return the outcome of a stream that breaks off after that many events."""
    return Quirk(end=end, delivered=delivered)


def refused(http: str, code: Code, reason: str, says: str) -> Quirk:
    """Return the outcome of an error status, for both RPCs."""
    return Quirk(end=(code, reason), says=says, http=http)


def erred(code: Code, mapped: str, says: str, delivered: int = 1) -> Quirk:
    """Return the outcome of an error object in a 200."""
    return Quirk(end=(code, "UPSTREAM_ERROR_BODY"), mapped=mapped, says=says, delivered=delivered)


DEEP = '{"a":' * 30 + "[" * 30 + "18446744073709551617" + "]" * 30 + "}" * 30
CALL = "choices.0.delta.tool_calls.0"
DELTA = "choices.0.delta"
UNKNOWN_FIELD = 'Unknown name "top_q"'
HALF_A_PAIR = "bad \ufffd here"

QUIRKS: dict[str, Quirk] = {
    # Fields that OpenAI's schema does not have.
    "groq.sse": Quirk(
        {
            "2.usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
            | {"queue_time": 0.1, "prompt_time": 0.002, "completion_time": 0.5, "total_time": 0.502}
        }
    ),
    "moonshot.sse": Quirk(
        {"1.usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "cached_tokens": 4}}
    ),
    "minimax.sse": Quirk({f"0.{DELTA}.role": GONE, f"1.{DELTA}.role": GONE}),
    # Content.
    "content-array-stream.sse": Quirk({f"3.{DELTA}.content": GONE}),
    # Tool calls.
    "arguments.json": Quirk(
        {
            "choices.0.message.tool_calls.0.function.arguments": '{"a":[1,2.0,18446744073709551617],"b":"\\u00e9"}',
            "choices.0.message.tool_calls.4.function.arguments": "[]",
        }
    ),
    "arguments-object.sse": Quirk({f"0.{CALL}.function.arguments": '{"a":1}'}),
    "calls-no-index.sse": Quirk(
        {
            f"0.{CALL}.index": 0,
            "0.choices.0.delta.tool_calls.1.index": 1,
            f"1.{CALL}.index": 2,
        }
    ),
    "calls-no-index-pieces.sse": Quirk({f"{n}.{CALL}.index": i for n, i in enumerate([0, 0, 0, 1, 1])}),
    "calls-no-index-no-id.sse": Quirk({f"0.{CALL}.index": 0, f"1.{CALL}.index": 1}),
    "calls-index-null.sse": Quirk({f"0.{CALL}.index": 0, f"1.{CALL}.index": 1}),
    "calls-index-0-whole.sse": Quirk({f"{n}.{CALL}.index": n for n in range(3)}),
    "calls-index-0-pieces.sse": Quirk(
        {
            **{f"{n}.{CALL}.index": i for n, i in enumerate([0, 0, 1, 1])},
            f"3.{CALL}.id": GONE,
            f"3.{CALL}.function.name": GONE,
        }
    ),
    "calls-index-text.sse": Quirk({f"{n}.{CALL}.index": i for n, i in enumerate([0, 1, 1])}),
    "calls-empty-ids.sse": Quirk({f"1.{CALL}.id": GONE, f"1.{CALL}.function.name": GONE}),
    "calls-names-again.sse": Quirk({f"1.{CALL}.function.name": GONE}),
    "calls-custom.sse": Quirk({f"1.{CALL}.custom.name": GONE}),
    # The head, the choices, and their end.
    "index-odd.sse": Quirk({"0.choices.0.index": 0}),
    "id-changes.sse": Quirk(merges=False),
    "choices-null.json": Quirk(end=INVALID),
    "choices-message.sse": Quirk({f"0.{DELTA}": {"role": "assistant", "content": "hi"}, "0.choices.0.message": GONE}),
    "finish-forms.sse": Quirk({"0.choices.0.finish_reason": GONE}),
    "finish-empty-then-done.sse": Quirk({"0.choices.0.finish_reason": GONE}),
    "finish-never.sse": ends(TRUNCATED, 2),
    "finish-never-empty.sse": Quirk({"0.choices.0.finish_reason": GONE}, end=TRUNCATED),
    "finish-one-of-two.sse": ends(TRUNCATED, 3),
    # Usage.
    "usage-every-chunk.sse": Quirk(merges=False),
    # Values.
    "nan.json": Quirk({"choices.0.scores": [None], "metrics": {"a": None, "b": [None, 1]}}),
    "nan.sse": Quirk({"1.choices.0.scores": [None]}),
    "surrogates.json": Quirk({"choices.0.message.content": f"a{LOST}", "choices.0.message.reasoning": f"{LOST}b"}),
    "surrogates-joined.sse": Quirk(
        {
            f"0.{DELTA}.content": "a",
            f"1.{DELTA}.content": "😀b",
            f"2.{DELTA}.reasoning": "",
            f"4.{DELTA}.reasoning": "😀",
            f"5.{CALL}.function.arguments": "",
            f"6.{CALL}.function.arguments": "😀",
        }
    ),
    "surrogates-alone.sse": Quirk(
        {
            f"0.{DELTA}.content": "a",
            f"1.{DELTA}.content": f"{LOST}b",
            f"2.{DELTA}.content": LOST,
            f"3.{DELTA}.content": "c",
            f"4.{CALL}.function.arguments": "",
            f"5.{DELTA}": {"content": LOST, "tool_calls": [{"function": {"arguments": LOST}}]},
        }
    ),
    "surrogates-no-finish.sse": Quirk(
        {f"0.{DELTA}.content": "a", "1": {"id": "c1", "choices": [{"delta": {"content": LOST}}]}}
    ),
    "depth.sse": Quirk({f"0.{CALL}.function.arguments": DEEP}),
    # Framing of events, and the end of a stream.
    "last-event-cut.sse": ends(TRUNCATED),
    "last-event-cut-after-finish.sse": Quirk(delivered=2),
    "nothing.sse": ends(TRUNCATED, 0),
    "comments-only.sse": ends(TRUNCATED, 0),
    "garbage.sse": ends(INVALID),
    # For the other RPC.
    "streamed-answer.sse": Quirk(
        {"4.choices.0.delta.tool_calls.1.id": GONE, "4.choices.0.delta.tool_calls.1.function.name": GONE}
    ),
    "whole-answer.json": Quirk({"choices.0.message.tool_calls.1.function.arguments": "{}"}),
    # Errors inside of streams.
    "error-object.sse": erred(Code.RESOURCE_EXHAUSTED, "UPSTREAM_RATE_LIMITED", "slow down"),
    "error-object-eof.sse": erred(Code.RESOURCE_EXHAUSTED, "UPSTREAM_RATE_LIMITED", "slow down"),
    "error-beside-choices.sse": erred(Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", "gone"),
    "error-unknown-code.sse": erred(Code.INTERNAL, "", "oops"),
    "error-text.sse": erred(Code.INTERNAL, "", "oops"),
    "error-flat.sse": erred(Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST", "too long"),
    "error-list.sse": erred(Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", "busy"),
    "error-field.sse": erred(Code.INTERNAL, "UPSTREAM_INTERNAL", "oops"),
    "error-event.sse": erred(Code.UNAVAILABLE, "UPSTREAM_OVERLOADED", "busy"),
    "error-event-text.sse": erred(Code.INTERNAL, "", "out of memory"),
    # Bodies of error statuses.
    "error-openai.json": refused("400 Bad Request", Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST", "no such key"),
    "error-quota.json": refused("429 Slow", Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA_EXHAUSTED", "pay first"),
    "error-code-number.json": refused("429 Slow", Code.RESOURCE_EXHAUSTED, "UPSTREAM_RATE_LIMITED", "slow down"),
    "error-text.json": refused("404 Not Found", Code.NOT_FOUND, "UPSTREAM_NOT_FOUND", "no such key"),
    "error-text-beside.json": refused(
        "400 Bad Request", Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST", "Bad Request"
    ),
    "error-message.json": refused(
        "422 Odd", Code.INVALID_ARGUMENT, "UPSTREAM_UNPROCESSABLE", "Malformed input request"
    ),
    "error-flat.json": refused("400 Bad Request", Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST", "too long"),
    "error-detail.json": refused("403 Forbidden", Code.PERMISSION_DENIED, "UPSTREAM_FORBIDDEN", "Not authenticated"),
    "error-detail-list.json": refused(
        "422 Odd",
        Code.INVALID_ARGUMENT,
        "UPSTREAM_UNPROCESSABLE",
        '[{"loc":["body","n"],"msg":"field required","type":"missing"}]',
    ),
    "error-list.json": refused("400 Bad Request", Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST", UNKNOWN_FIELD),
    "error-html.html": refused(
        "502 Bad Gateway", Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", "the upstream responded with HTTP 502 Bad Gateway"
    ),
    "error-empty.json": refused("500 Oh", Code.INTERNAL, "UPSTREAM_INTERNAL", "HTTP 500 Internal Server Error"),
    "error-null-fields.json": refused(
        "529 Full", Code.UNAVAILABLE, "UPSTREAM_OVERLOADED", "the upstream responded with HTTP 529"
    ),
    "error-surrogate.json": refused("418 Teapot", Code.FAILED_PRECONDITION, "UPSTREAM_ERROR", HALF_A_PAIR),
    "error-openrouter.json": refused(
        "502 Bad Gateway", Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", "Provider returned error"
    ),
}

IN_SUCCESS: dict[str, tuple[Code, str]] = {
    # Error bodies that occur in a 200 too: the code, and the reason of the error.
    "error-openai.json": (Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST"),
    "error-quota.json": (Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA_EXHAUSTED"),
    "error-code-number.json": (Code.RESOURCE_EXHAUSTED, "UPSTREAM_RATE_LIMITED"),
    "error-text.json": (Code.INTERNAL, ""),
    "error-flat.json": (Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST"),
    "error-list.json": (Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_REQUEST"),
    "error-null-fields.json": (Code.INTERNAL, ""),
    "error-openrouter.json": (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
}

MEDIA = {".json": "application/json", ".sse": "text/event-stream; charset=utf-8", ".html": "text/html"}
UNARY, STREAM = "CreateChatCompletion", "CreateChatCompletionStream"
FILES = {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA}
assert QUIRKS.keys() <= FILES.keys(), "rows without a fixture"
ROWS = {name: QUIRKS.get(name, LOSSLESS) for name in FILES}
COMPLETIONS = [name for name, quirk in ROWS.items() if quirk.http == LOSSLESS.http]


def http_response(name: str, status: str = LOSSLESS.http) -> bytes:
    """Return the fixture as an HTTP response."""
    return http(FILES[name].read_bytes(), status, MEDIA[FILES[name].suffix])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Script]:
    async with Script() as script:
        yield script


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat(upstream: Script) -> AsyncIterator[Service]:
    """One service for all rows, because its start takes longer than they do."""
    async with service(upstream.base_url, upstream={"max_retries": 0}) as running:
        yield running


@pytest.mark.parametrize("name", COMPLETIONS)
async def test_quirk(upstream: Script, chat: Service, name: str) -> None:
    quirk, body = ROWS[name], FILES[name].read_bytes()
    upstream.respond_with(http_response(name))
    if name.endswith(".json"):
        received = await received_by(chat.stub.CreateChatCompletion(request()), quirk)
        source = lenient(body) if received else None
        assert [*map(to_json, received)] == [pruned(changed(source, quirk.changes), ChatResponse)][: len(received)]
        return
    single = await received_by(chat.stub.CreateChatCompletionStream(request(), metadata=ONE_BY_ONE), quirk)
    sources = [lenient(event) for event in events(body)[: quirk.delivered]]
    heartbeats_removed = [source for source in sources if isinstance(source, dict)]
    expected = changed(heartbeats_removed, quirk.changes)
    assert [*map(to_json, single)] == [pruned(event, ChatChunk) for event in expected]
    assert read_byte_by_byte(body) == single
    merged = await received_by(chat.stub.CreateChatCompletionStream(request()), quirk)
    assert texts(merged) == texts(single)
    assert quirk.merges or merged == single


@pytest.mark.parametrize("name", COMPLETIONS)
async def test_the_other_form(upstream: Script, chat: Service, name: str) -> None:
    """A stream for the unary RPC and a whole response for the streaming one have the same end and texts."""
    quirk = ROWS[name]
    upstream.respond_with(http_response(name))
    if name.endswith(".json"):
        received = await received_by(chat.stub.CreateChatCompletionStream(request()), quirk)
        as_usual = await received_by(chat.stub.CreateChatCompletion(request()), quirk)
    else:
        whole = ends(INVALID, 0) if name == "nothing.sse" else quirk
        received = await received_by(chat.stub.CreateChatCompletion(request()), whole)
        as_usual = await received_by(chat.stub.CreateChatCompletionStream(request()), quirk)
    if quirk.end == LOSSLESS.end:
        assert (len(received), texts(received)) == (1, texts(as_usual))
    expected = FILES[name].with_suffix(".expected")
    if expected.exists():
        assert to_json(received[0]) == json.loads(expected.read_text())


@pytest.mark.parametrize("rpc", [UNARY, STREAM])
@pytest.mark.parametrize("name", sorted(ROWS.keys() - COMPLETIONS))
async def test_error_body(upstream: Script, chat: Service, name: str, rpc: str) -> None:
    upstream.respond_with(http_response(name, ROWS[name].http))
    assert await received_by(getattr(chat.stub, rpc)(request()), ROWS[name]) == []
    if name in IN_SUCCESS:
        code, mapped = IN_SUCCESS[name]
        upstream.respond_with(http_response(name))
        says = ROWS[name].says if "null" not in name else "an error without a message"
        assert await received_by(getattr(chat.stub, rpc)(request()), erred(code, mapped, says)) == []


async def received_by(call: Any, quirk: Quirk) -> list[Any]:
    """Return the messages of a call; check that its end is the row's."""
    if quirk.end == LOSSLESS.end:
        return await collect(call) if hasattr(call, "__aiter__") else [await call]
    failed = await failure(call)
    assert (failed.code, failed.reason) == quirk.end
    assert quirk.says in failed.message
    assert failed.details["ErrorInfo"].metadata.get("mapped_reason", "") == quirk.mapped
    if quirk.says:
        assert failed.details["UpstreamError"].http_status == int(quirk.http[:3])
    return failed.messages


def lenient(data: bytes) -> Any:
    """Return the value of JSON as servers write it."""
    return json.loads(data.decode("utf-8-sig", "replace"))


def events(body: bytes) -> list[bytes]:
    """Return the data of a stream's events before `[DONE]`. Without blank lines each line is an event."""
    lines = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    blocks = lines.split(b"\n\n" if b"\n\n" in lines else b"\n")
    found = []
    for block in blocks:
        data = b"\n".join(line[5:].strip(b" ") for line in block.split(b"\n") if line.startswith(b"data:"))
        if data.startswith(b"[DONE]"):
            break
        if data:
            found.append(data)
    return found


def pruned(source: Any, kind: Any) -> Any:
    """Remove values that protobuf cannot distinguish from an absent key."""
    return prune(source, kind.DESCRIPTOR)


def changed(value: Any, changes: dict[str, Any]) -> Any:
    """Return the JSON with these changes."""
    for path, change in changes.items():
        *keys, last = (int(key) if key.isdecimal() else key for key in path.split("."))
        place = value
        for key in keys:
            place = place[key]
        if change is GONE:
            del place[last]
        elif last == len(place) and isinstance(place, list):
            place.append(change)
        else:
            place[last] = change
    return value


def read_byte_by_byte(body: bytes) -> list[Any]:
    """Return the messages of a stream that arrives byte by byte."""
    reader = StreamReader(1 << 20)
    chunks = [chunk for byte in body for chunk in reader.feed(bytes([byte]))]
    return chunks + reader.finish()


def texts(messages: list[Any]) -> dict[Any, str]:
    """Return the concatenated texts by place, and the finish reasons."""
    texts: dict[Any, str] = defaultdict(str)
    for choice in (choice for message in messages for choice in message.choices):
        said = getattr(choice, "delta", None) or choice.message
        for name in ("content", "reasoning", "reasoning_content", "refusal"):
            texts[choice.index, name] += getattr(said, name)
        for position, call in enumerate(said.tool_calls):
            index = getattr(call, "index", position)
            for holder, name in ((call, "id"), (call.function, "name"), (call.custom, "name")):
                texts[choice.index, index, name] = getattr(holder, name) or texts[choice.index, index, name]
            texts[choice.index, index] += call.function.arguments + call.custom.input
        texts[choice.index, "function_call"] += said.function_call.arguments
        texts[choice.index, "finish_reason"] += choice.finish_reason
    return {place: text for place, text in texts.items() if text}
