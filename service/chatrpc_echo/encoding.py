"""Encodes a completion: the JSON of a unary response, or the events of a stream.

Load tests depend on its speed, so the parts that all chunks of a stream share are encoded once. A chunk joins three
byte strings.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import orjson

from chatrpc_echo.completions import Choice, Completion
from chatrpc_echo.tools import ToolCall

CREATED = 1_700_000_000
"""Unix seconds. Constant, so that the same request gets the same bytes."""
_FINGERPRINT = "fp_echo"
DONE = b"data: [DONE]\n\n"
_ARGUMENT_SLICE = 12


def unary_body(completion: Completion, *, with_usage: bool) -> bytes:
    """Return the body of a unary response."""
    body = _head(completion, "chat.completion")
    body["choices"] = [
        {
            "index": index,
            "message": _message(choice),
            "logprobs": _logprobs(choice.content or (), completion.top_logprobs),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(completion.choices)
    ]
    if with_usage:
        body["usage"] = completion.usage
    return orjson.dumps(body)


def error_event(body: bytes) -> bytes:
    """Return an error object as an event of a stream."""
    return b"data: " + body + b"\n\n"


def models_body() -> bytes:
    """Return the body of GET /v1/models."""
    model = {"id": "echo", "object": "model", "created": CREATED, "owned_by": "chatrpc"}
    return orjson.dumps({"object": "list", "data": [model]})


class StreamEvents:
    """The events of one streamed completion, in three parts: `opening`, single `deltas`, `closing`."""

    def __init__(self, completion: Completion, *, with_usage: bool) -> None:
        self._completion = completion
        self._with_usage = with_usage
        self._prefix = b"data: " + orjson.dumps(_head(completion, "chat.completion.chunk"))[:-1] + b',"choices":['
        # If usage is requested, OpenAI sends it as null in all chunks except the last.
        self._suffix = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"

    def opening(self) -> bytes:
        """Return the first event of each choice, which carries only the role."""
        choices = enumerate(self._completion.choices)
        return b"".join(self._event(index, _first_delta(choice)) for index, choice in choices)

    def deltas(self) -> Iterator[bytes]:
        """Yield the events with reasoning, content or parts of tool calls; choices alternate."""
        rows = zip_longest(*(self._deltas(index, choice) for index, choice in enumerate(self._completion.choices)))
        return (event for row in rows for event in row if event is not None)

    def closing(self) -> bytes:
        """Return the events with finish reasons, and the event with the usage; not DONE."""
        choices = enumerate(self._completion.choices)
        finished = b"".join(self._event(index, {}, finish_reason=choice.finish_reason) for index, choice in choices)
        if not self._with_usage:
            return finished
        return finished + self._prefix + b'],"usage":' + orjson.dumps(self._completion.usage) + b"}\n\n"

    def _event(
        self, index: int, delta: dict[str, Any], *, logprobs: Any = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._prefix + orjson.dumps(choice) + self._suffix

    def _deltas(self, index: int, choice: Choice) -> Iterator[bytes]:
        yield from self._text_events(index, "reasoning_content", choice.reasoning)
        content = choice.content or ()
        if self._completion.top_logprobs is None:
            yield from self._text_events(index, "content", content)
        else:
            for token in content:
                yield self._event(index, {"content": token}, logprobs=_logprobs([token], self._completion.top_logprobs))
        for position, call in enumerate(choice.tool_calls):
            for delta in _call_deltas(call):
                yield self._event(index, {"tool_calls": [{"index": position, **delta}]})
        if choice.function_call:
            for delta in _function_call_deltas(choice.function_call):
                yield self._event(index, {"function_call": delta})

    def _text_events(self, index: int, name: str, texts: Iterable[str]) -> Iterator[bytes]:
        """Yield one event per text and encode only the text, because this is the hot path."""
        prefix = self._prefix + b'{"index":%d,"delta":{"%s":' % (index, name.encode())
        suffix = b'},"logprobs":null,"finish_reason":null}' + self._suffix
        dumps = orjson.dumps
        for text in texts:
            yield prefix + dumps(text) + suffix


def _head(completion: Completion, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{completion.identity}",
        "object": kind,
        "created": CREATED,
        "model": completion.model,
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
        # As at OpenAI, only the first delta carries id and name. The field name repeats the type of a custom call.
        yield {call.kind: {_text_field(call): text}}


def _function_call_deltas(call: ToolCall) -> Iterator[dict[str, Any]]:
    yield {"name": call.name, "arguments": ""}
    for text in _slices(call.text):
        yield {"arguments": text}


def _slices(text: str) -> Iterator[str]:
    """Yield slices. Even two characters give two slices, so that tests detect a client that does not join them."""
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
    # Synthetic but deterministic: negative, and lower for higher ranks.
    return {"token": token, "logprob": -(rank * 8 + len(token) % 7 + 1) / 8, "bytes": list(token.encode())}
