"""Assembly of a stream's chunks into one response, for servers that stream although no stream was requested.

Texts and the lists of a delta are concatenated. For all other values, the newest replaces the older ones. Pieces are
joined once, at the end: a message keeps the memory of every text that it has held (upb's arena), so time and memory
would grow with the square of the number of chunks.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from chatrpc.v1.chat_message_pb2 import ChatMessage, ToolCall
from chatrpc.v1.chat_response_pb2 import Choice, ChunkChoice, Delta, Logprobs, ToolCallDelta, Usage
from chatrpc_server.core.openai import TEXT_FIELDS, jsontext
from chatrpc_server.core.upstream import ChatChunk, ChatResponse

_HEAD = frozenset(("id", "object", "created", "model", "system_fingerprint", "service_tier", "moderation_json"))
_TEXTS = frozenset(TEXT_FIELDS)


def assemble(chunks: Iterable[ChatChunk]) -> ChatResponse:
    """Return the response of a stream."""
    assembler = Assembler()
    for chunk in chunks:
        assembler.add(chunk)
    return assembler.response()


class Assembler:
    """The pieces of one response, with choices in the order of appearance and tool calls in that of their indexes."""

    def __init__(self) -> None:
        self._head = _Pieces(newest=_HEAD)
        self._usage: Usage | None = None
        self._choices: dict[int, _ChoicePieces] = {}

    def add(self, chunk: ChatChunk) -> None:
        """Add a chunk. It keeps no reference to the chunk."""
        self._head.add(chunk)
        if chunk.HasField("usage"):
            self._usage = Usage()
            self._usage.CopyFrom(chunk.usage)
        for choice in chunk.choices:
            pieces = self._choices.get(choice.index)
            if pieces is None:
                pieces = self._choices[choice.index] = _ChoicePieces()
            pieces.add(choice)

    def response(self) -> ChatResponse:
        """Return the response to all chunks."""
        response = ChatResponse()
        self._head.write(response)
        if self._usage is not None:
            response.usage.CopyFrom(self._usage)
        for index, pieces in self._choices.items():
            pieces.write(response.choices.add(index=index))
        return response


class _Pieces:
    """The values of one message: `texts` are the fields that are concatenated, `newest` those that are replaced."""

    __slots__ = ("_extras", "_newest", "_newest_names", "_text_names", "_texts")

    def __init__(self, *, texts: frozenset[str] = frozenset(), newest: frozenset[str] = frozenset()) -> None:
        self._text_names, self._newest_names = texts, newest
        self._texts: dict[str, list[str]] = {}
        self._newest: dict[str, Any] = {}
        self._extras: dict[str, Any] = {}

    def add(self, source: Message, *, grow: bool = False) -> None:
        """Add a delta. If `grow`, lists arrive in parts (reasoning_details), else complete (citations)."""
        for field, value in source.ListFields():
            name = field.name
            if name in self._text_names:
                self._texts.setdefault(name, []).append(value)
            elif name in self._newest_names:
                self._newest[name] = value
            elif name == "extra_json":
                self._merge(jsontext.loads_leniently(value.encode()), grow)

    def text(self, name: str) -> str:
        """Return a text so far."""
        return "".join(self._texts.get(name, ()))

    def write(self, into: Message) -> None:
        """Set all values in a message."""
        for name, value in self._newest.items():
            setattr(into, name, value)
        for name, pieces in self._texts.items():
            setattr(into, name, "".join(pieces))
        if self._extras:
            into.extra_json = jsontext.dumps(self._extras).decode()  # type: ignore[attr-defined]

    def _merge(self, extras: dict[str, Any], grow: bool) -> None:
        for key, value in extras.items():
            known = self._extras.get(key)
            if grow and isinstance(known, list) and isinstance(value, list):
                known += value
            else:
                self._extras[key] = value


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
            part.text = "".join([part.text, *texts])
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
