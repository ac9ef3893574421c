"""An answer as bytes: the JSON of a unary response, and the events of a stream.

A load test runs through here: what all chunks of a stream share is encoded once, and a chunk is three bytes joined.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import orjson

from chatrpc_echo.answers import Answer, Choice
from chatrpc_echo.tools import ToolCall

CREATED = 1_700_000_000
"""Unix seconds, in every answer: the same request gets the same bytes."""
_FINGERPRINT = "fp_echo"
DONE = b"data: [DONE]\n\n"
_ARGUMENT_SLICE = 12


def unary(answer: Answer, *, with_usage: bool) -> bytes:
    """The body of a unary response."""
    body = _head(answer, "chat.completion")
    body["choices"] = [
        {
            "index": index,
            "message": _message(choice),
            "logprobs": _logprobs(choice.content or (), answer.top_logprobs),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(answer.choices)
    ]
    if with_usage:
        body["usage"] = answer.usage
    return orjson.dumps(body)


def error_event(body: bytes) -> bytes:
    """An error object as an event of a stream."""
    return b"data: " + body + b"\n\n"


def models() -> bytes:
    """The body of GET /v1/models."""
    model = {"id": "echo", "object": "model", "created": CREATED, "owned_by": "chatrpc"}
    return orjson.dumps({"object": "list", "data": [model]})


class Events:
    """The events of one streamed answer, in three parts: `opening`, `deltas` one by one, `closing`."""

    def __init__(self, answer: Answer, *, with_usage: bool) -> None:
        self._answer = answer
        self._with_usage = with_usage
        self._before = b"data: " + orjson.dumps(_head(answer, "chat.completion.chunk"))[:-1] + b',"choices":['
        # With usage asked for, all chunks but the last say that it is null.
        self._after = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"

    def opening(self) -> bytes:
        """For each choice the event that carries only the role."""
        choices = enumerate(self._answer.choices)
        return b"".join(self._event(index, _first_delta(choice)) for index, choice in choices)

    def deltas(self) -> Iterator[bytes]:
        """The events with reasoning, content, or pieces of tool calls; those of several choices alternate."""
        rows = zip_longest(*(self._deltas(index, choice) for index, choice in enumerate(self._answer.choices)))
        return (event for row in rows for event in row if event is not None)

    def closing(self) -> bytes:
        """The events with the finish reasons, and the one with the usage; not DONE."""
        choices = enumerate(self._answer.choices)
        finished = b"".join(self._event(index, {}, finish_reason=choice.finish_reason) for index, choice in choices)
        if not self._with_usage:
            return finished
        return finished + self._before + b'],"usage":' + orjson.dumps(self._answer.usage) + b"}\n\n"

    def _event(
        self, index: int, delta: dict[str, Any], *, logprobs: Any = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._before + orjson.dumps(choice) + self._after

    def _deltas(self, index: int, choice: Choice) -> Iterator[bytes]:
        yield from self._texts(index, "reasoning_content", choice.reasoning)
        content = choice.content or ()
        if self._answer.top_logprobs is None:
            yield from self._texts(index, "content", content)
        else:
            for piece in content:
                yield self._event(index, {"content": piece}, logprobs=_logprobs([piece], self._answer.top_logprobs))
        for position, call in enumerate(choice.tool_calls):
            for delta in _call_deltas(call):
                yield self._event(index, {"tool_calls": [{"index": position, **delta}]})
        if choice.function_call:
            for delta in _function_call_deltas(choice.function_call):
                yield self._event(index, {"function_call": delta})

    def _texts(self, index: int, name: str, texts: Iterable[str]) -> Iterator[bytes]:
        """The hot path: one event for each text, of which only the text itself is encoded anew."""
        before = self._before + b'{"index":%d,"delta":{"%s":' % (index, name.encode())
        after = b'},"logprobs":null,"finish_reason":null}' + self._after
        dumps = orjson.dumps
        for text in texts:
            yield before + dumps(text) + after


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answer.identity}",
        "object": kind,
        "created": CREATED,
        "model": answer.model,
        "system_fingerprint": _FINGERPRINT,
    }


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.content is None else "".join(choice.content),
        "refusal": None,
    }
    if choice.reasoning:
        message["reasoning_content"] = "".join(choice.reasoning)
    if choice.tool_calls:
        message["tool_calls"] = [_call(call, call.text) for call in choice.tool_calls]
    if choice.function_call:
        message["function_call"] = {"name": choice.function_call.name, "arguments": choice.function_call.text}
    return message


def _call(call: ToolCall, text: str) -> dict[str, Any]:
    return {"id": call.identity, "type": call.kind, call.kind: {"name": call.name, _text_field(call): text}}


def _text_field(call: ToolCall) -> str:
    return "input" if call.kind == "custom" else "arguments"


def _first_delta(choice: Choice) -> dict[str, Any]:
    return {"role": "assistant", "content": None if choice.content is None else "", "refusal": None}


def _call_deltas(call: ToolCall) -> Iterator[dict[str, Any]]:
    yield _call(call, "")
    for text in _slices(call.text):
        # As OpenAI does, only the first delta carries id and name; the type of a custom call is repeated by its field.
        yield {call.kind: {_text_field(call): text}}


def _function_call_deltas(call: ToolCall) -> Iterator[dict[str, Any]]:
    yield {"name": call.name, "arguments": ""}
    for text in _slices(call.text):
        yield {"arguments": text}


def _slices(text: str) -> Iterator[str]:
    """At least two slices where there are two characters, so that whoever forgets to join them is found out."""
    length = max(1, min(_ARGUMENT_SLICE, (len(text) + 1) // 2))
    return (text[start : start + length] for start in range(0, len(text), length))


def _logprobs(tokens: Sequence[str], alternatives: int | None) -> dict[str, Any] | None:
    if alternatives is None or not tokens:
        return None
    return {"content": [_token_logprob(token, alternatives) for token in tokens], "refusal": None}


def _token_logprob(token: str, alternatives: int) -> dict[str, Any]:
    likeliest = _token(token, 0)
    others = [_token(token if rank == 0 else f"{token}~{rank}", rank) for rank in range(alternatives)]
    return {**likeliest, "top_logprobs": others}


def _token(token: str, rank: int) -> dict[str, Any]:
    # Made up, but the same each time, below zero, and falling with the rank.
    return {"token": token, "logprob": -(rank * 8 + len(token) % 7 + 1) / 8, "bytes": list(token.encode())}
