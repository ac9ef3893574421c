"""Maps the bytes of a response to chunks as they arrive: an event stream, or JSON without SSE framing.

The bytes decide what a response is, not its content type. An event passes these steps: parse the JSON, detect an error,
normalise, join surrogates, map to a message, learn the template. Most events match the template and skip them
(`chunk_template.py`). The rules for the end of a stream and for its errors are those of
protos/chatrpc/v1/chat_service.proto. No value is invented: a missing key stays unset.
"""

from typing import Any

from google.protobuf.message import Message

from chatrpc.v1.chat_response_pb2 import Usage
from chatrpc_server.core.errors import ChatError, InvalidResponse, Truncated, UpstreamFault
from chatrpc_server.core.openai import heartbeats, jsontext, large_responses, limits, mapping, sse, unframed
from chatrpc_server.core.openai.choices import Choices
from chatrpc_server.core.openai.chunk_template import ChunkTemplate
from chatrpc_server.core.openai.coalesce import coalesce
from chatrpc_server.core.openai.error_responses import error_in_success, invalid_response, of_remains
from chatrpc_server.core.openai.normalise import ChunkNormaliser
from chatrpc_server.core.openai.surrogates import SurrogateJoiner
from chatrpc_server.core.openai.usage import NO_USAGE, StreamUsage
from chatrpc_server.core.upstream import ChatChunk

_BLANK = unframed.BLANK
_MAX_EARLY_BYTES = 1 << 16
"""Bytes of an event that is parsed before its blank line has arrived."""


class StreamReader:
    """Parser of one stream: call `feed` for each read, and `finish` after the last byte.

    Deliver the returned chunks even if `error` is set afterwards, because they arrived before the fault.
    """

    def __init__(
        self,
        max_event_bytes: int,
        *,
        max_response_bytes: int | None = None,
        requested_choices: int = 1,
        usage: StreamUsage = NO_USAGE,
        coalesce: bool = False,
        reuse: bool = False,
    ) -> None:
        """Create the parser. `coalesce`: merge the chunks of one read into as few messages as possible.

        `max_response_bytes`: limit of a response that is not streamed; by default that of an event. `reuse`: a returned
        message is valid only until the next `feed`, which can return the same object again.
        """
        self.chunks = 0
        """Number of chunks received."""
        self.done = False
        """Whether `[DONE]` has arrived; later events are ignored."""
        self.error: ChatError | None = None
        """The reason why the stream failed."""
        self.usage: Usage | None = None
        self.choices = Choices(requested_choices)
        self._decoder = sse.Decoder(max_event_bytes)
        self._max_event_bytes = max_event_bytes
        self._max_response_bytes = max_response_bytes or max_event_bytes
        self._has_begun = False
        self._objects: unframed.Objects | None = None
        """JSON without SSE framing. The content type of the response does not matter."""
        self._has_completion = False
        """Whether the latest JSON without framing is a complete response, which needs no mark of the end."""
        self._usage = usage
        self._coalesce, self._reuse = coalesce, reuse
        self._template = ChunkTemplate(max_event_bytes)
        self._expects_match = False
        """Whether the next read can be exactly one event that matches the template."""
        self._normaliser = ChunkNormaliser()
        self._surrogates = SurrogateJoiner()
        self._unknown_text = b""
        """A dropped text that is no usual heartbeat: an error if the stream ends without a chunk."""
        self._remark = b""
        """The last event without choices: an error if the completion does not arrive."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished event, which the next `feed` can complete."""
        return (self._decoder if self._objects is None else self._objects).pending_bytes

    def feed(self, data: bytes) -> list[ChatChunk]:
        """Return the chunks that these bytes complete."""
        if self._expects_match and (chunk := self._template.match(data)):
            self.chunks += 1
            return [chunk]
        chunks: list[ChatChunk] = []
        if self.done or self.error:
            return chunks
        try:
            if not self._has_begun:
                data = self._begin(data)
            if self._objects is not None:
                data = self._read_objects(self._objects, data, chunks)
            self._read_events(self._decoder.only_lf(data), chunks)
        except ChatError as error:
            if self.choices.is_final:
                self.done = True  # because the next event cannot be found
            else:
                self.error = error
        if self.done or self.error:
            self._flush_surrogates(chunks)
        self._expects_match = self._reuse and not self.done and not self.error and self._can_match()
        return list(coalesce(chunks)) if self._coalesce and len(chunks) > 1 else chunks

    def finish(self, fault: UpstreamFault | None = None) -> list[ChatChunk]:
        """Return the chunks of an event without its blank line. Set `error` unless the completion is complete.

        `fault`: what cut off the bytes, if not their end. Then a choice that was requested can be missing.
        """
        chunks: list[ChatChunk] = []
        if self.done or self.error:
            return chunks
        for kind, payload in self._decoder.flush():
            self._read_event(kind, payload, chunks)
        if isinstance(self.error, InvalidResponse):
            self.error = None  # The event was cut off. That is an error only if the completion was cut off too.
        if self._has_completion and not (self._objects and self._objects.is_open):
            self.done = True
        is_whole = self.choices.is_whole if fault is None else self.choices.is_final
        self._flush_surrogates(chunks)
        if not self.error and not self.done and not is_whole:
            self.error = fault if isinstance(fault, InvalidResponse) else self._missing_end(is_cut=fault is not None)
        return chunks

    def _missing_end(self, *, is_cut: bool) -> ChatError:
        """Return the error of a response that ended before its completion."""
        is_cut = is_cut or self.chunks > 0
        unknown = self._decoder.unknown
        are_heartbeats = self._decoder.has_fields and all(map(heartbeats.is_text, unknown.split(b"\n")))
        if unknown and not is_cut and not are_heartbeats:
            problem = "the upstream's response is neither JSON nor an event stream"
            return invalid_response(problem, "bad_json", unknown)
        if not is_cut and self._objects is not None and self._objects.is_open:
            problem = f"the upstream's response is not JSON ({self._objects.pending_bytes} bytes)"
            return invalid_response(problem, "bad_json", self._objects.start)
        error = error_in_success(loads(self._remark)[0], self._remark, is_whole=True) if self._remark else None
        problem = "the upstream closed the stream before [DONE] and before every choice had a finish_reason"
        return error or Truncated(problem, detail=None if are_heartbeats else of_remains(problem, unknown))

    def _begin(self, data: bytes) -> bytes:
        """Decide by the first bytes whether the body is an event stream. Return the bytes to read."""
        start = data.lstrip(_BLANK)
        if not start:
            return data
        self._has_begun = True
        if start.startswith(b"<"):
            raise invalid_response("the upstream's response is an HTML page", "unexpected_content", start)
        if not start.startswith((b"{", b"[")):
            return data
        self._objects = unframed.Objects(self._max_response_bytes, "upstream.max_response_bytes")
        self._decoder = sse.Decoder(self._max_event_bytes)  # without a part of a byte order mark
        return start

    def _read_objects(self, objects: unframed.Objects, data: bytes, chunks: list[ChatChunk]) -> bytes:
        """Read JSON without SSE framing. Return the bytes that follow it, such as an event with `[DONE]`."""
        for payload in objects.feed(data):
            self._read_event("message", payload, chunks)
            if self.done or self.error:
                return b""
            objects.limit(self._max_event_bytes, "upstream.max_event_bytes")
        rest = objects.rest
        if rest:
            self._objects = None
        return rest

    def _read_events(self, data: bytes, chunks: list[ChatChunk]) -> None:
        """Read events. Those that match the template are not decoded."""
        at = scanned_to = 0
        while at < len(data) and not self.done and not self.error:
            if at >= scanned_to and self._can_match():
                matches, events, scanned_to = self._template.scan(data, at, join=self._coalesce)
                if matches:
                    chunks += matches
                    self.chunks += events
                    at = scanned_to
                    continue
            cut = data.find(b"\n\n", at)
            end = cut + 2 if cut >= 0 else len(data)
            for kind, payload in self._decoder.feed_lines(data[at:end]):
                self._read_event(kind, payload, chunks)
                if self.done or self.error:
                    break
            at = end
        early = self._decoder.offer()
        if early is not None and not self.done and not self.error and _is_whole_chunk(early):
            self._read_event(*self._decoder.take(), chunks)

    def _can_match(self) -> bool:
        return self._template.known and self._decoder.is_between_events and not self._surrogates.waiting

    def _read_event(self, kind: str, payload: bytes, chunks: list[ChatChunk]) -> None:
        """Pass one event through all steps. Its error counts only if the completion had not arrived before."""
        can_fail = not self.choices.is_whole or self.choices.can_fail
        try:
            self._read_payload(kind, payload, chunks, can_fail=can_fail)
        except ChatError as error:
            if can_fail:
                self.error = error
            elif isinstance(error, InvalidResponse) and error.kind == "oversize":
                self.done = True  # because the state for further events would grow without a limit

    def _read_payload(self, kind: str, payload: bytes, chunks: list[ChatChunk], *, can_fail: bool) -> None:
        if not payload:
            return
        if not payload.startswith(b"{"):
            while payload.startswith(b"data:"):  # written twice
                payload = payload[len(b"data:") :].lstrip(b" ")
            if heartbeats.ends_stream(payload):
                if self._unknown_text and not self.chunks:
                    problem = "the upstream's stream has no chunk"
                    raise invalid_response(problem, "bad_json", self._unknown_text)
                self.done = True
                return
            if kind != "error" and heartbeats.is_text(payload):
                if not self.chunks and not heartbeats.is_known(payload):
                    self._unknown_text = payload
                return
        if kind != "message" and heartbeats.is_named(kind, payload):
            return
        try:
            source, is_lenient = loads(payload)
        except ValueError:
            lines = payload.split(b"\n")
            if len(lines) > 1:
                self._read_lines(kind, lines, chunks)
                return
            if heartbeats.is_foreign(kind, payload):
                return
            if kind != "error":
                problem = f"an event of the upstream's stream is not JSON ({len(payload)} bytes)"
                raise invalid_response(problem, "bad_json", payload) from None
            source, is_lenient = payload.decode("utf-8", "replace"), False
        is_whole = self._objects is not None and not self.chunks
        error = error_in_success(source, payload, certain=kind == "error", is_whole=is_whole) if can_fail else None
        if error is not None:
            if isinstance(source, dict) and self._carries(source):
                del source["error"]
                self._read_source(source, is_lenient, chunks)
            raise error
        if not isinstance(source, dict):
            if heartbeats.is_foreign(kind, payload):
                return
            problem = "an event of the upstream's stream is not a JSON object"
            raise invalid_response(problem, "not_a_completion", payload)
        if "choices" not in source and len(payload) <= _MAX_EARLY_BYTES:
            self._remark = payload
        if self._objects is not None:
            self._read_head(source, payload)
        chunk = self._read_source(source, is_lenient, chunks)
        if self._has_completion and source.get("object") == "chat.completion":
            self.choices.complete()
        if is_lenient or chunk is None:
            return
        if not self.choices.finish_reasons or self.choices.are_open(chunk):  # because a match resumes no choice
            self._template.learn(payload, source, chunk)

    def _carries(self, source: dict[str, Any]) -> bool:
        """Return whether JSON with an error also has a part of the completion, which is delivered before the error."""
        choices = source.get("choices")
        if not isinstance(choices, list) or "error" not in source:
            return False
        return any(map(_has_content, choices))

    def _read_head(self, source: dict[str, Any], payload: bytes) -> None:
        """Check JSON without SSE framing, and note whether it is a complete response."""
        choices = source.get("choices")
        if not isinstance(choices, list):
            if self.chunks:
                return
            problem = "the upstream's response is not a chat completion: it has no array `choices`"
            raise invalid_response(problem, "not_a_completion", payload)
        is_chunk = any(isinstance(choice, dict) and "delta" in choice for choice in choices)
        self._has_completion = not is_chunk and source.get("object") != "chat.completion.chunk"

    def _read_source(self, source: dict[str, Any], is_lenient: bool, chunks: list[ChatChunk]) -> ChatChunk | None:
        """Pass the JSON of one chunk through the steps from normalisation on."""
        if self._template.characters:
            self._normaliser.add_text(*self._template.take_text())
        self._normaliser.normalise(source)
        if is_lenient or self._surrogates.waiting:
            self._surrogates.join(source)
        return self._add_chunk(source, chunks)

    def _read_lines(self, kind: str, lines: list[bytes], chunks: list[ChatChunk]) -> None:
        """Read each line as an event, because some servers omit the blank lines between events."""
        limits.check("lines in one event", len(lines), limits.MAX_EVENT_LINES)
        for line in lines:
            if not self.done and not self.error:
                self._read_event(kind, line, chunks)

    def _flush_surrogates(self, chunks: list[ChatChunk]) -> None:
        """Flush unpaired surrogates at the end of the stream."""
        source = self._surrogates.flush()
        if source is not None:
            self._add_chunk(source, chunks)

    def _add_chunk(self, source: dict[str, Any], chunks: list[ChatChunk]) -> ChatChunk | None:
        """Map the JSON to a message and append it; return None if the message is hidden from the caller."""
        chunk = ChatChunk()
        read(chunk, source)
        for choice in chunk.choices:
            self.choices.add(choice)
            if choice.finish_reason:
                self._template.forget()  # because a match would not resume the choice
        if chunk.HasField("usage"):
            self.usage = Usage()
            self.usage.CopyFrom(chunk.usage)  # because a part of a message keeps the memory of the whole
            if self._usage.hides(chunk):
                return None
        self.chunks += 1
        chunks.append(chunk)
        return chunk


def _has_content(choice: Any) -> bool:
    """Return whether a choice has more than a role."""
    message = choice.get("delta") or choice.get("message") if isinstance(choice, dict) else None
    return isinstance(message, dict) and any(message[key] for key in message if key != "role")


def _is_whole_chunk(payload: bytes) -> bool:
    """Return whether the data of an event without its blank line is a chunk."""
    if len(payload) > _MAX_EARLY_BYTES or b'"choices"' not in payload:
        return False
    try:
        jsontext.loads(payload)
    except ValueError:
        return False
    return True


def loads(data: bytes) -> tuple[Any, bool]:
    """Return the value, and whether only the lenient parser accepts the text. Only such text can hold surrogates."""
    try:
        if large_responses.is_large(data):
            return large_responses.loads(data), True
    except jsontext.TooManyValues as error:
        raise InvalidResponse(f"the upstream's JSON is too large: {error}", "oversize") from None
    try:
        return jsontext.loads(data), False
    except ValueError:
        return jsontext.loads_leniently(data), True


def read(message: Message, source: dict[str, Any]) -> None:
    """Map JSON to a message. Raises `InvalidResponse`."""
    try:
        mapping.read(message, source)
    except ValueError as error:
        raise InvalidResponse(f"the upstream's JSON is {error}", "not_a_completion") from None
