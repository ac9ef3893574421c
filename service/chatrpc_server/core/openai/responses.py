"""Maps the upstream's responses to messages: a complete body, or the bytes of a stream as they arrive.

An event passes these steps: parse the JSON, detect an error, normalise, join surrogates, map to a message, learn the
template. Most events match the template and skip them (`chunk_template.py`). The rules for the end of a stream and for
its errors are those of protos/chatrpc/v1/chat_service.proto. No value is invented: a missing key stays unset.
"""

from typing import Any

from google.protobuf.message import Message

from chatrpc.v1.chat_response_pb2 import Usage
from chatrpc_server.core.errors import ChatError, InvalidResponse, Truncated, UpstreamFault
from chatrpc_server.core.openai import heartbeats, jsontext, large_responses, limits, mapping, sse
from chatrpc_server.core.openai.assemble import Assembler
from chatrpc_server.core.openai.choice_indexes import ChoiceNumbering
from chatrpc_server.core.openai.choices import Choices
from chatrpc_server.core.openai.chunk_template import ChunkTemplate
from chatrpc_server.core.openai.coalesce import coalesce
from chatrpc_server.core.openai.error_responses import error_in_success, invalid_response
from chatrpc_server.core.openai.normalise import ChunkNormaliser
from chatrpc_server.core.openai.surrogates import SurrogateJoiner
from chatrpc_server.core.openai.usage import NO_USAGE, StreamUsage
from chatrpc_server.core.upstream import ChatChunk, ChatResponse

_BLANK = b" \t\r\n\xef\xbb\xbf"
"""Bytes that can precede JSON: blank lines that keep a connection alive, and a byte order mark."""

_SLICE_BYTES = 1 << 16
"""Bytes of a whole stream that are parsed at once, because all chunks of them are in memory together."""


def parse_response(body: bytes) -> ChatResponse:
    """Return the message of a complete response.

    Raises `ErrorResponse` if the body is an error despite status 200, and `InvalidResponse` if it is no completion.
    """
    message, source = ChatResponse(), _load_response(body)[0]
    ChoiceNumbering().number(source["choices"])
    _read(message, source)
    return message


def _load_response(body: bytes) -> tuple[dict[str, Any], bool]:
    """Return the JSON of a complete response, and whether only the lenient parser accepts it."""
    if not body.strip(_BLANK):
        raise InvalidResponse("the upstream's response is empty", "bad_json", is_transient=True)
    try:
        source, is_lenient = _loads(body)
    except ValueError:
        raise invalid_response(f"the upstream's response is not JSON ({len(body)} bytes)", "bad_json", body) from None
    error = error_in_success(source, body, is_whole=True)
    if error is not None:
        raise error
    if not isinstance(source, dict) or not isinstance(source.get("choices"), list):
        problem = "the upstream's response is not a chat completion: it has no array `choices`"
        raise invalid_response(problem, "not_a_completion", body)
    limits.check_choices(source["choices"])
    return source, is_lenient


def parse_streamed_response(body: bytes, max_event_bytes: int) -> ChatResponse:
    """Return the message of a response that is a stream although none was requested. Raises the stream's error."""
    response = StreamedResponse(max_event_bytes)
    for at in range(0, len(body), _SLICE_BYTES):
        response.feed(body[at : at + _SLICE_BYTES])
    return response.finish()


class StreamedResponse:
    """Parser of a response that is a stream although none was requested. It keeps no chunks, only their texts."""

    def __init__(self, max_event_bytes: int, requested_choices: int = 1) -> None:
        self._reader = StreamReader(max_event_bytes, requested_choices=requested_choices, coalesce=True)
        self._assembler = Assembler()

    @property
    def done(self) -> bool:
        """Whether nothing more can follow: `[DONE]` has arrived, or the stream has failed."""
        return self._reader.done or self._reader.error is not None

    @property
    def choices(self) -> Choices:
        """The state of the choices so far."""
        return self._reader.choices

    @property
    def chunks(self) -> int:
        """Number of chunks received."""
        return self._reader.chunks

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished event, which the next `feed` can complete."""
        return self._reader.pending_bytes

    def feed(self, data: bytes) -> None:
        """Add bytes of the body."""
        for chunk in self._reader.feed(data):
            self._assembler.add(chunk)

    def finish(self, fault: UpstreamFault | None = None) -> ChatResponse:
        """Return the message after the last byte. Raises the stream's error. `fault`: see `StreamReader.finish`."""
        for chunk in self._reader.finish(fault):
            self._assembler.add(chunk)
        if self._reader.error:
            raise self._reader.error
        return self._assembler.response()


class StreamReader:
    """Parser of one stream: call `feed` for each read, and `finish` after the last byte.

    Deliver the returned chunks even if `error` is set afterwards, because they arrived before the fault.
    """

    def __init__(
        self,
        max_event_bytes: int,
        *,
        requested_choices: int = 1,
        usage: StreamUsage = NO_USAGE,
        coalesce: bool = False,
        reuse: bool = False,
    ) -> None:
        """Create the parser. `coalesce`: merge the chunks of one read into as few messages as possible.

        `reuse`: a returned message is valid only until the next `feed`, which can return the same object again.
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
        self._has_begun = False
        self._unframed: bytearray | None = None
        """JSON without SSE framing. The content type of the response does not matter."""
        self._usage = usage
        self._coalesce, self._reuse = coalesce, reuse
        self._template = ChunkTemplate(max_event_bytes)
        self._expects_match = False
        """Whether the next read can be exactly one event that matches the template."""
        self._normaliser = ChunkNormaliser()
        self._surrogates = SurrogateJoiner()

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished event, which the next `feed` can complete."""
        return self._decoder.pending_bytes if self._unframed is None else len(self._unframed)

    def feed(self, data: bytes) -> list[ChatChunk]:
        """Return the chunks that these bytes complete."""
        if self._expects_match and (chunk := self._template.match(data)):
            self.chunks += 1
            return [chunk]
        chunks: list[ChatChunk] = []
        if self.done or self.error:
            return chunks
        if not self._has_begun and (start := data.lstrip(_BLANK)):
            self._has_begun = True
            if start.startswith((b"{", b"[")):
                self._unframed, data = bytearray(), start
        try:
            if self._unframed is not None:
                self._unframed += data
                if len(self._unframed) > self._max_event_bytes:
                    problem = f"the upstream sent more than {self._max_event_bytes} bytes without an event"
                    raise InvalidResponse(f"{problem}; raise upstream.max_event_bytes", "oversize")
                return chunks
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

    def feed_response(self, body: bytes) -> list[ChatChunk]:
        """Return the single chunk of a complete response that arrived although a stream was requested."""
        chunks: list[ChatChunk] = []
        try:
            source, is_lenient = _load_response(body)
            self._read_source(source, is_lenient, chunks)
            self._flush_surrogates(chunks)
            self.done = True
        except ChatError as error:
            self.error = error
        return chunks

    def finish(self, fault: UpstreamFault | None = None) -> list[ChatChunk]:
        """Return the chunks of an event without its blank line. Set `error` unless the completion is complete.

        `fault`: what cut off the bytes, if not their end. Then a choice that was requested can be missing.
        """
        chunks: list[ChatChunk] = []
        if self.done or self.error:
            return chunks
        if self._unframed is not None:
            return self.feed_response(bytes(self._unframed))
        for kind, payload in self._decoder.flush():
            self._read_event(kind, payload, chunks)
        if isinstance(self.error, InvalidResponse):
            self.error = None  # The event was cut off. That is an error only if the completion was cut off too.
        is_whole = self.choices.is_whole if fault is None else self.choices.is_final
        self._flush_surrogates(chunks)
        if not self.error and not self.done and not is_whole:
            problem = "the upstream closed the stream before [DONE] and before every choice had a finish_reason"
            self.error = fault if isinstance(fault, InvalidResponse) else Truncated(problem)
        return chunks

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
            if heartbeats.ends_stream(payload):
                self.done = True
                return
            if kind != "error" and heartbeats.is_text(payload):
                return
        if kind != "message" and heartbeats.is_named(kind, payload):
            return
        try:
            source, is_lenient = _loads(payload)
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
        error = error_in_success(source, payload, certain=kind == "error") if can_fail else None
        if error is not None:
            raise error
        if not isinstance(source, dict):
            if heartbeats.is_foreign(kind, payload):
                return
            problem = "an event of the upstream's stream is not a JSON object"
            raise invalid_response(problem, "not_a_completion", payload)
        chunk = self._read_source(source, is_lenient, chunks)
        if is_lenient or chunk is None:
            return
        if not self.choices.finish_reasons or self.choices.are_open(chunk):  # because a match resumes no choice
            self._template.learn(payload, source, chunk)

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
        _read(chunk, source)
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


def _loads(data: bytes) -> tuple[Any, bool]:
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


def _read(message: Message, source: dict[str, Any]) -> None:
    try:
        mapping.read(message, source)
    except ValueError as error:
        raise InvalidResponse(f"the upstream's JSON is {error}", "not_a_completion") from None
