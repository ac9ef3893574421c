"""Maps complete responses to messages. The bytes decide what a response is, not its content type."""

from chatrpc_server.core.errors import ChatError, InvalidResponse, Truncated, UpstreamFault
from chatrpc_server.core.openai import limits, unframed
from chatrpc_server.core.openai.assemble import Assembler
from chatrpc_server.core.openai.choice_indexes import ChoiceNumbering
from chatrpc_server.core.openai.choices import Choices
from chatrpc_server.core.openai.error_responses import error_in_success, invalid_response
from chatrpc_server.core.openai.stream_reader import StreamReader as StreamReader  # part of this interface
from chatrpc_server.core.openai.stream_reader import loads, read
from chatrpc_server.core.upstream import ChatResponse

_FIELDS = (b":", b"d", b"e", b"i", b"r")
"""First characters of a comment and of the fields data, event, error, id and retry."""
_SLICE_BYTES = 1 << 16
"""Bytes of a whole stream that are parsed at once, because all chunks of them are in memory together."""


def is_event_stream(start: bytes) -> bool:
    """Return whether a response that starts with these bytes can be an event stream."""
    return start.lstrip(unframed.BLANK).startswith(_FIELDS)


def parse_response(body: bytes) -> ChatResponse:
    """Return the message of a complete response: one JSON object, several that are chunks, or an event stream.

    Raises `ErrorResponse` if the body is an error despite a status of success, `InvalidResponse` if it is no
    completion, and `Truncated` if chunks have no end.
    """
    if not body.strip(unframed.BLANK):
        raise InvalidResponse("the upstream's response is empty", "bad_json", is_transient=True)
    try:
        source = loads(body)[0]
    except ValueError:
        return _parse_sequence(body)
    error = error_in_success(source, body, is_whole=True)
    if error is not None:
        raise error
    if isinstance(source, list) and source and isinstance(source[0], dict):
        return _parse_sequence(body)
    if not isinstance(source, dict) or not isinstance(source.get("choices"), list):
        problem = "the upstream's response is not a chat completion: it has no array `choices`"
        raise invalid_response(problem, "not_a_completion", body)
    limits.check_choices(source["choices"])
    ChoiceNumbering().number(source["choices"])
    message = ChatResponse()
    read(message, source)
    return message


def _parse_sequence(body: bytes) -> ChatResponse:
    """Return the message of a response that is not one JSON object."""
    response = _read_streamed(body, len(body))
    try:
        return response.finish()
    except (InvalidResponse, Truncated) as error:
        if response.chunks or (isinstance(error, InvalidResponse) and error.kind != "bad_json"):
            raise
    raise invalid_response(f"the upstream's response is not JSON ({len(body)} bytes)", "bad_json", body)


def is_whole(body: bytes) -> bool:
    """Return whether a response is whole, although its framing has no end."""
    try:
        loads(body)
    except ValueError:
        response = _read_streamed(body, len(body))
        return response.done or response.choices.is_whole
    except ChatError:
        pass
    return True


def parse_streamed_response(body: bytes, max_event_bytes: int) -> ChatResponse:
    """Return the message of a response that is a stream although none was requested. Raises the stream's error."""
    return _read_streamed(body, max_event_bytes).finish()


def _read_streamed(body: bytes, max_event_bytes: int) -> "StreamedResponse":
    response = StreamedResponse(max_event_bytes)
    for at in range(0, len(body), _SLICE_BYTES):
        response.feed(body[at : at + _SLICE_BYTES])
    return response


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
        """Return the message after the last byte. Raises the stream's error; see `StreamReader.finish`."""
        for chunk in self._reader.finish(fault):
            self._assembler.add(chunk)
        if self._reader.error:
            raise self._reader.error
        return self._assembler.response()
