"""The end of a stream by its choices: every finish by everything that can follow it."""

import json
from typing import Any

import pytest

from chatrpc.v1.chat_response_pb2 import Usage
from chatrpc_server.core.errors import ErrorResponse, InvalidResponse, Truncated
from chatrpc_server.core.openai.responses import StreamedResponse, StreamReader

LIMIT = 2000


def event(source: Any) -> bytes:
    return b"data: " + json.dumps(source).encode() + b"\n\n"


def chunk(*choices: dict[str, Any], **more: Any) -> bytes:
    return event({"id": "c", "choices": choices, **more})


def delta(index: int = 0, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def text(content: str, index: int = 0, **more: Any) -> bytes:
    return chunk(delta(index, content=content), **more)


def finish(*indexes: int, reason: str = "stop") -> bytes:
    return chunk(*(delta(index, reason) for index in indexes))


USAGE = chunk(usage={"total_tokens": 3})
ERROR = {"message": "m", "code": 500}


def read(*pieces: bytes, requested: int = 1) -> StreamReader:
    """Feed the pieces one by one, as an upstream that keeps its connection open."""
    reader = StreamReader(LIMIT, requested_choices=requested, coalesce=True, reuse=True)
    for piece in pieces:
        reader.feed(piece)
    return reader


FINISHES = {
    "alone": (text("a"), finish(0)),
    "with text": (chunk(delta(0, "stop", content="a")),),
    "with usage": (text("a"), chunk(delta(0, "stop"), usage={"total_tokens": 3})),
    "two in one": (text("a"), text("b", 1), finish(0, 1)),
    "one after the other": (text("a"), text("b", 1), finish(0), finish(1)),
    "all of the first before the second": (text("a"), finish(0), text("b", 1), finish(1)),
    "without text": (finish(0, reason="tool_calls"),),
    "after a template": (*(text(letter) for letter in "abcd"), finish(0)),
    "twice": (text("a"), finish(0), finish(0)),
    "resumed": (text("a"), finish(0), text("b"), finish(0)),
}
HARMLESS = {
    "nothing": b"",
    "a comment": b": ping\n\n",
    "usage": USAGE,
    "usage beside an empty choice": chunk(delta(0), usage={"total_tokens": 3}),
    "usage beside empty texts": chunk(delta(0, role="assistant", content="", reasoning=""), usage={"total_tokens": 3}),
    "empty tool calls": chunk(delta(0, tool_calls=[])),
    "a tool call without text": chunk(delta(0, tool_calls=[{"index": 0, "function": {"arguments": ""}}])),
    "filter results": chunk({"index": 0, "finish_reason": None, "content_filter_results": {}}),
    "annotations": chunk(delta(0, annotations=[{"type": "url_citation"}])),
    "no choices": chunk(),
    "the finish again": finish(0),
    "an error object": event({"error": ERROR}),
    "an error text": event({"error": "m"}),
    "an error event": b"event: error\ndata: m\n\n",
    "an error field": b'error: {"message":"m"}\n\n',
    "an error in a list": event([{"error": ERROR}]),
    "an error without blank line": event({"error": ERROR})[:-2],
    "an error in lines without blank lines": event({"error": ERROR})[:-1] * 2 + b"\n",
    "broken JSON": b'data: {"choices":[{"index":0,"del\n\n',
    "broken JSON, cut": b'data: {"choices":[{"index":0,"del',
    "no object": b"data: [{}]\n\n",
    "a page": b"data: <html>\n\n<html>",
    "garbage": bytes(range(256)),
    "too much": b"data: " + b"x" * 2 * LIMIT,
    "too many choices": chunk(*(delta(index) for index in range(200))),
    "half a mark": b"data: [DO",
}


@pytest.mark.parametrize("following", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("begin", FINISHES.values(), ids=FINISHES)
def test_nothing_that_follows_the_finish_fails_the_stream(begin: tuple[bytes, ...], following: bytes) -> None:
    for pieces in ((*begin, following), (b"".join((*begin, following)),)):
        reader = read(*pieces)
        assert (reader.error, reader.choices.is_final) == (None, True)
        if not reader.done:
            reader.feed(b"\n\n" + USAGE)
            if not reader.done:
                assert reader.usage == Usage(total_tokens=3)
        reader.finish(Truncated("cut"))
        assert (reader.error, reader.choices.is_whole) == (None, True)
        response = StreamedResponse(LIMIT)
        for piece in pieces:
            response.feed(piece)
        assert (response.choices.is_final, response.chunks > 0) == (True, True)
        assert response.finish().choices[0].finish_reason


FAILURES: dict[str, tuple[bytes, type[Exception]]] = {
    "an error object": (event({"error": ERROR}), ErrorResponse),
    "broken JSON": (b"data: {\n\n", InvalidResponse),
    "too much": (b"data: " + b"x" * 2 * LIMIT, InvalidResponse),
}
UNFINISHED = {
    "no choice": ((), 1),
    "text": ((text("a"),), 1),
    "an empty delta": ((chunk(delta(0)),), 1),
    "one of two": ((text("a"), text("b", 1), finish(0)), 1),
    "the other one of two": ((text("a"), text("b", 1), finish(1)), 1),
    "a second one after the finish": ((text("a"), finish(0), text("b", 1)), 1),
    "an empty second one after the finish": ((text("a"), finish(0), chunk(delta(1))), 1),
    "resumed": ((text("a"), finish(0), text("b")), 1),
    "resumed, after a template": ((*(text(letter) for letter in "abcd"), finish(0), text("e")), 1),
    "resumed twice": ((text("a"), finish(0), text("b"), finish(0), text("c")), 1),
    "resumed, one of two": ((text("a"), text("b", 1), finish(0, 1), text("b", 1)), 1),
    "resumed after an empty text": (
        (text("a"), text("b", 1), finish(0), text(""), text("", 0), text("x"), finish(1)),
        1,
    ),
    **{
        f"resumed with {name}": ((text("a"), finish(0), chunk(delta(0, **more))), 1)
        for name, more in {
            "reasoning": {"reasoning": "r"},
            "reasoning_content": {"reasoning_content": "r"},
            "refusal": {"refusal": "r"},
            "a tool call": {"tool_calls": [{"index": 0, "id": "i", "function": {"name": "f"}}]},
            "arguments": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
            "a custom tool": {"tool_calls": [{"index": 0, "custom": {"input": "x"}}]},
            "a function": {"function_call": {"name": "f"}},
            "a function's arguments": {"function_call": {"arguments": "{"}},
            "audio": {"audio": {"data": "AA=="}},
            "a transcript": {"audio": {"transcript": "a"}},
            "parts": {"content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        }.items()
    },
    **{
        f"reason {reason!r}": ((text("a"), finish(0, reason=reason)), 1) for reason in ("", "null", "None", "NULL", " ")
    },
}


@pytest.mark.parametrize(("begin", "requested"), UNFINISHED.values(), ids=UNFINISHED)
def test_unfinished_choices(begin: tuple[bytes, ...], requested: int) -> None:
    """The stream is not whole: its cut is an error, and an error in it too."""
    reader = read(*begin, requested=requested)
    assert not reader.choices.is_whole
    reader.finish()
    assert isinstance(reader.error, Truncated)
    for data, kind in FAILURES.values():
        assert isinstance(read(*begin, data, requested=requested).error, kind)


WHOLE_BUT_NOT_FINAL = {
    "fewer choices than requested": ((text("a"), finish(0)), 2),
    "a finish_reason in each chunk": (tuple(chunk(delta(0, "stop", content=letter)) for letter in "abc"), 1),
}


@pytest.mark.parametrize(("begin", "requested"), WHOLE_BUT_NOT_FINAL.values(), ids=WHOLE_BUT_NOT_FINAL)
def test_more_can_follow(begin: tuple[bytes, ...], requested: int) -> None:
    """The end of the bytes is the end; an error is an error, and so is a cut."""
    invalid = InvalidResponse("framing", "unexpected_content")
    for fault, error in ((None, None), (Truncated("cut"), Truncated), (invalid, InvalidResponse)):
        reader = read(*begin, requested=requested)
        assert (reader.choices.is_whole, reader.choices.is_final) == (True, False)
        reader.finish(fault)
        assert type(reader.error) is (error or type(None))
    for data, kind in FAILURES.values():
        assert isinstance(read(*begin, data, requested=requested).error, kind)


def test_a_finish_because_of_an_error_has_its_error() -> None:
    begin = (text("a"), finish(0, reason="error"))
    assert read(*begin).choices.is_final
    assert isinstance(read(*begin, event({"error": ERROR})).error, ErrorResponse)
    reader = read(*begin)
    reader.finish()
    assert reader.error is None


def test_an_error_after_the_finish_is_an_extra() -> None:
    """So the usage beside it counts, and nothing is lost."""
    reader = StreamReader(LIMIT)
    reader.feed(text("a") + finish(0))
    chunks = reader.feed(chunk(delta(0), usage={"total_tokens": 3}, error=ERROR) + event({"error": "m"}))
    assert [chunk.extra_json for chunk in chunks] == ['{"error":{"message":"m","code":500}}', '{"error":"m"}']
    assert (reader.error, reader.usage) == (None, Usage(total_tokens=3))


def test_choices_beyond_the_limit_end_a_final_stream() -> None:
    """They cannot fail it, and they are not remembered."""
    reader = read(text("a"), finish(0))
    for index in range(1, 1000):
        reader.feed(chunk(delta(index, "stop", content="a")))
    assert (reader.error, reader.done, len(reader.choices.finish_reasons)) == (None, True, 128)


def test_all_requested_choices_are_final() -> None:
    begin = (text("a"), finish(0), text("b", 1), finish(1))
    assert read(*begin, requested=2).choices.is_final
    assert read(*begin, event({"error": ERROR}), requested=2).error is None


def test_a_template_of_another_choice_resumes_none() -> None:
    """Choice 0 has finished; texts of choice 1 match a template."""
    reader = read(
        *(text(letter, 1) for letter in "abcd"), text("x"), finish(0), *(text(letter, 1) for letter in "efgh")
    )
    assert (reader.choices.is_whole, reader.chunks) == (False, 10)
    reader.feed(finish(1))
    assert reader.choices.is_final
