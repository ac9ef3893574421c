"""The received part of a stream, assembled into the response that the unary call would return.

The rules are those of chatrpc/v1/chat_service.proto: text and the names of functions concatenate, the lists of a delta
grow, of every other field the newest value counts. `index` identifies choices and tool calls. Pieces are joined once,
when they are read: a message keeps the memory of every text that it has held, so time and memory would grow with the
square of their number.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage, ToolCall
from chatrpc.v1.chat_response_pb2 import (
    Choice,
    ChunkChoice,
    CreateChatCompletionResponse,
    CreateChatCompletionStreamResponse,
    Delta,
    Logprobs,
    ToolCallDelta,
    Usage,
)

_HEAD = frozenset(("id", "created", "model", "system_fingerprint", "service_tier", "moderation_json"))
_TEXTS = frozenset(("content", "reasoning_content", "reasoning", "refusal"))


def text_deltas(chunk: CreateChatCompletionStreamResponse) -> list[str]:
    """Return the pieces of the first choice's text."""
    return [part.delta.content for part in chunk.choices if not part.index and part.delta.content]


class Chunks(Sequence[CreateChatCompletionStreamResponse]):
    """The messages of a stream. They are kept encoded, because that takes a tenth of the memory of messages."""

    def __init__(self) -> None:
        self._encoded: list[bytes] = []

    def append(self, chunk: CreateChatCompletionStreamResponse) -> None:
        """Add a message at the end."""
        self._encoded.append(chunk.SerializeToString())

    def __iadd__(self, chunks: Iterable[CreateChatCompletionStreamResponse]) -> "Chunks":
        for chunk in chunks:
            self.append(chunk)
        return self

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> CreateChatCompletionStreamResponse: ...

    @overload
    def __getitem__(self, index: slice) -> list[CreateChatCompletionStreamResponse]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(map(CreateChatCompletionStreamResponse.FromString, self._encoded[index]))
        return CreateChatCompletionStreamResponse.FromString(self._encoded[index])

    def __iter__(self) -> Iterator[CreateChatCompletionStreamResponse]:
        return map(CreateChatCompletionStreamResponse.FromString, self._encoded)


class Snapshot:
    """The messages of one stream so far. Each property is computed when it is read."""

    def __init__(self) -> None:
        self.chunks = Chunks()
        """The messages in the order of arrival."""
        self._read = 0
        """The number of chunks whose pieces the other fields hold."""
        self._head = _Pieces(newest=_HEAD)
        self._usage: Usage | None = None
        self._choices: dict[int, _ChoicePieces] = {}

    @property
    def text(self) -> str:
        """The first choice's text."""
        self._read_chunks()
        return self._choices[0].text if 0 in self._choices else ""

    @property
    def usage(self) -> Usage | None:
        """The token usage. None until the upstream has reported it."""
        self._read_chunks()
        return self._usage

    @property
    def finish_reasons(self) -> dict[int, str]:
        """The finish reason of each finished choice, by its index."""
        self._read_chunks()
        reasons = ((index, pieces.finish_reason) for index, pieces in self._choices.items())
        return {index: reason for index, reason in reasons if reason is not None}

    @property
    def message(self) -> ChatMessage:
        """The first choice's message, tool calls included, for the next turn of the chat."""
        message = next((choice.message for choice in self.response.choices if not choice.index), ChatMessage())
        message.role = message.role or "assistant"
        return message

    @property
    def response(self) -> CreateChatCompletionResponse:
        """The response as far as it has arrived."""
        self._read_chunks()
        response = CreateChatCompletionResponse(object="chat.completion")
        self._head.write(response)
        if self._usage is not None:
            response.usage.CopyFrom(self._usage)
        for index in sorted(self._choices):
            self._choices[index].write(response.choices.add(index=index))
        return response

    def _read_chunks(self) -> None:
        """Add the pieces of the chunks that have arrived since the last time."""
        while self._read < len(self.chunks):
            chunk = self.chunks[self._read]
            self._read += 1
            self._head.add(chunk)
            if chunk.HasField("usage"):
                self._usage = chunk.usage
            for choice in chunk.choices:
                pieces = self._choices.get(choice.index)
                if pieces is None:
                    pieces = self._choices[choice.index] = _ChoicePieces()
                pieces.add(choice)


class _Pieces:
    """The values of one message: `texts` are the fields that are concatenated, `newest` those that are replaced."""

    __slots__ = ("_extras", "_first_extras", "_newest", "_newest_names", "_text_names", "_texts")

    def __init__(self, *, texts: frozenset[str] = frozenset(), newest: frozenset[str] = frozenset()) -> None:
        self._text_names, self._newest_names = texts, newest
        self._texts: dict[str, list[str]] = {}
        self._newest: dict[str, Any] = {}
        self._first_extras = ""
        """The only `extra_json` so far, which stays as it is; further ones are merged in `_extras`."""
        self._extras: dict[str, _JsonTexts] | None = None

    def add(self, source: Message, *, grow: bool = False) -> None:
        """Add a delta. If `grow`, lists arrive in parts (reasoning_details), else complete (citations)."""
        for field, value in source.ListFields():
            name = field.name
            if name in self._text_names:
                self._texts.setdefault(name, []).append(value)
            elif name in self._newest_names:
                self._newest[name] = value
            elif name == "extra_json":
                self._merge(value, grow)

    def text(self, name: str) -> str:
        """Return a text so far."""
        text = "".join(self._texts.get(name, ()))
        if text:
            self._texts[name] = [text]  # so that the next join has fewer pieces
        return text

    def newest(self, name: str) -> Any:
        """Return the newest value of a field, or None."""
        return self._newest.get(name)

    def write(self, into: Message) -> None:
        """Set all values in a message."""
        for name, value in self._newest.items():
            setattr(into, name, value)
        for name in self._texts:
            setattr(into, name, self.text(name))
        if self._extras is not None:
            members = (f"{json.dumps(key)}:{value.text()}" for key, value in self._extras.items())
            into.extra_json = f"{{{','.join(members)}}}"  # type: ignore[attr-defined]
        elif self._first_extras:
            into.extra_json = self._first_extras  # type: ignore[attr-defined]

    def _merge(self, extra_json: str, grow: bool) -> None:
        if self._extras is None:
            if not self._first_extras:
                self._first_extras = extra_json
                return
            self._extras = {key: _JsonTexts(text) for key, text in _members(self._first_extras)}
        for key, text in _members(extra_json):
            known = self._extras.get(key)
            if not (grow and known is not None and known.grow(text)):
                self._extras[key] = _JsonTexts(text)


class _JsonTexts:
    """The text of a JSON value, or the texts of an array's parts. A value would not keep numbers such as 1e400."""

    __slots__ = ("_is_array", "_texts")

    def __init__(self, text: str) -> None:
        self._is_array = text.startswith("[")
        self._texts = [text[1:-1] if self._is_array else text]

    def grow(self, text: str) -> bool:
        """Append the elements of another array. Return whether both are arrays."""
        if not self._is_array or not text.startswith("["):
            return False
        self._texts.append(text[1:-1])
        return True

    def text(self) -> str:
        """Return the text of the whole value."""
        if not self._is_array:
            return self._texts[0]
        return f"[{','.join(filter(str.strip, self._texts))}]"


_skip_blanks = re.compile(r"[ \t\n\r]*").match
_scan = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of a JSON object with the texts of their values."""
    at = _blanks_end(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _scan(text, at)
        begin = _blanks_end(text, _blanks_end(text, at) + 1)  # after the colon
        _, end = _scan(text, begin)
        yield key, text[begin:end]
        at = _blanks_end(text, end)
        if text[at] == ",":
            at = _blanks_end(text, at + 1)


def _blanks_end(text: str, at: int) -> int:
    match = _skip_blanks(text, at)
    return match.end() if match else at


class _ChoicePieces:
    """One choice. `_message` holds what only grows: content parts and annotations."""

    def __init__(self) -> None:
        self._choice = _Pieces(newest=frozenset(("finish_reason",)))
        self._logprobs: Logprobs | None = None
        self._message: ChatMessage | None = None
        self._delta = _Pieces(texts=_TEXTS, newest=frozenset(("role",)))
        self._part_texts: dict[int, list[str]] = {}
        """Texts that follow a content part, by the part's position."""
        self._function: _Pieces | None = None
        self._audio: _AudioPieces | None = None
        self._calls: dict[int, _CallPieces] = {}

    def add(self, choice: ChunkChoice) -> None:
        self._choice.add(choice)
        if choice.HasField("logprobs"):
            if self._logprobs is None:
                self._logprobs = Logprobs()
            self._logprobs.MergeFrom(choice.logprobs)
        if choice.HasField("delta"):
            self._add_delta(choice.delta)

    def _add_delta(self, delta: Delta) -> None:
        message = self._message
        if message is None:
            message = self._message = ChatMessage()
        if delta.content_parts or message.content_parts:
            self._add_parts(message, delta)
        self._delta.add(delta, grow=True)
        if delta.annotations:
            message.annotations.extend(delta.annotations)
        if delta.HasField("function_call"):
            if self._function is None:
                self._function = _Pieces(texts=frozenset(("name", "arguments")))
            self._function.add(delta.function_call)
        if delta.HasField("audio"):
            if self._audio is None:
                self._audio = _AudioPieces()
            self._audio.add(delta.audio)
        for call in delta.tool_calls:
            pieces = self._calls.get(call.index)
            if pieces is None:
                pieces = self._calls[call.index] = _CallPieces()
            pieces.add(call)

    def _add_parts(self, message: ChatMessage, delta: Delta) -> None:
        """Add content to the parts if it comes as text and as arrays (Mistral's reasoning models)."""
        parts = message.content_parts
        if delta.content_parts:
            text = "" if parts else self._delta.text("content")
            if text:
                parts.add(type="text", text=text)
            parts.extend(delta.content_parts)
        elif delta.content:
            if not (parts[-1].HasField("text") or len(parts) - 1 in self._part_texts):
                parts.add(type="text")
            self._part_texts.setdefault(len(parts) - 1, []).append(delta.content)

    @property
    def text(self) -> str:
        """The text so far."""
        return self._delta.text("content")

    @property
    def finish_reason(self) -> str | None:
        """The finish reason; None until the choice is finished."""
        reason: str | None = self._choice.newest("finish_reason")
        return reason

    def write(self, choice: Choice) -> None:
        self._choice.write(choice)
        if self._logprobs is not None:
            choice.logprobs.CopyFrom(self._logprobs)
        if self._message is None:
            return
        message = choice.message
        message.CopyFrom(self._message)
        message.SetInParent()
        for position, texts in self._part_texts.items():
            part = message.content_parts[position]
            texts[:] = ["".join(texts)]
            part.text += texts[0]
        self._delta.write(message)
        if self._function is not None:
            self._function.write(message.function_call)
        if self._audio is not None:
            self._audio.write(message.audio)
        for _, call in sorted(self._calls.items()):
            call.write(message.tool_calls.add())


class _CallPieces:
    """One tool call."""

    def __init__(self) -> None:
        self._call = _Pieces(newest=frozenset(("id", "type")))
        self._function = _Pieces(texts=frozenset(("name", "arguments")))
        self._custom = _Pieces(texts=frozenset(("name", "input")))

    def add(self, delta: ToolCallDelta) -> None:
        self._call.add(delta)
        if delta.HasField("function"):
            self._function.add(delta.function)
        if delta.HasField("custom"):
            self._custom.add(delta.custom)

    def write(self, call: ToolCall) -> None:
        self._call.write(call)
        self._function.write(call.function)
        self._custom.write(call.custom)


class _AudioPieces:
    """Spoken content. Each piece of data is encoded separately, so padding can occur between them."""

    def __init__(self) -> None:
        self._audio = _Pieces(texts=frozenset(("transcript",)), newest=frozenset(("id", "expires_at")))
        self._has_data = False
        self._decoded = bytearray()
        """The data before `_encoded`, if padding ended it."""
        self._encoded: list[str] = []
        self._is_base64 = True

    def add(self, delta: Any) -> None:
        self._audio.add(delta)
        if not delta.HasField("data"):
            return
        self._has_data = True
        if self._is_base64 and self._is_padded():
            try:
                # Both are decoded before either is kept, because a failure keeps both as they are.
                more = b64decode("".join(self._encoded)) + b64decode(delta.data)
                self._decoded += more
                self._encoded.clear()
                return
            except ValueError:
                self._is_base64 = False
        if delta.data:
            self._encoded.append(delta.data)

    def _is_padded(self) -> bool:
        """Return whether the data so far ends in padding."""
        return self._encoded[-1].endswith("=") if self._encoded else len(self._decoded) % 3 != 0

    def write(self, audio: Any) -> None:
        self._audio.write(audio)
        if self._has_data:
            audio.data = b64encode(self._decoded).decode() + "".join(self._encoded)
