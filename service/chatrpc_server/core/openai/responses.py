"""What an upstream answers, to messages: a whole response, or the bytes of a stream as they come.

The mapping itself is `mapping.py`; here are the rules of protos/chatrpc/v1/chat_service.proto for streams: what is an
end, what is an error, what is normalised. Nothing is invented: what the upstream left out stays unset.
"""

from typing import Any

from google.protobuf.message import Message

from chatrpc.v1.chat_response_pb2 import ChunkChoice, Usage
from chatrpc_server.core.errors import ChatError, InvalidResponse, Truncated
from chatrpc_server.core.openai import jsontext, mapping, sse
from chatrpc_server.core.openai.assemble import assemble
from chatrpc_server.core.openai.chunk_template import ChunkTemplate
from chatrpc_server.core.openai.coalesce import coalesce
from chatrpc_server.core.openai.error_responses import error_in_success
from chatrpc_server.core.openai.surrogates import SurrogateJoiner
from chatrpc_server.core.upstream import ChatChunk, ChatResponse

_DONE = b"[DONE]"
_BLANK = b" \t\r\n\xef\xbb\xbf"
"""What may stand before JSON: blank lines that keep a connection alive, and a byte order mark."""


def response(body: bytes) -> ChatResponse:
    """The message of a unary answer.

    Raises `ErrorResponse` if the body is an error although the status was 200, and `InvalidResponse` if it is neither.
    """
    try:
        source, _ = _loads(body)
    except ValueError:
        what = f"the upstream answered with something that is not JSON ({len(body)} bytes)"
        raise InvalidResponse(what, "bad_json") from None
    error = error_in_success(source, body)
    if error is not None:
        raise error
    if not isinstance(source, dict) or not isinstance(source.get("choices"), list):
        what = "the upstream answered with JSON that is no chat completion: it has no array `choices`"
        raise InvalidResponse(what, "not_a_completion")
    message = ChatResponse()
    _read(message, source)
    return message


def assembled(body: bytes, max_event_bytes: int) -> ChatResponse:
    """The message of a unary answer that came as a stream unasked. Raises as a stream fails."""
    reader = StreamReader(max_event_bytes)
    message = assemble([*reader.feed(body), *reader.finish()])
    if reader.error:
        raise reader.error
    return message


class StreamReader:
    """The state of one stream. `feed` it what was read, `finish` it at the end of the bytes.

    What a call returns is to be delivered even if `error` is set afterwards: it arrived before the fault.
    """

    def __init__(
        self, max_event_bytes: int, *, drop_usage_chunk: bool = False, coalesce: bool = False, reuse: bool = False
    ) -> None:
        """`coalesce`: what a read brings becomes as few messages as can say the same.

        `reuse`: a message is the caller's only until it feeds again, when the same one may bring the next text.
        """
        self.chunks = 0
        """So many have come."""
        self.done = False
        """`[DONE]` was seen: whatever follows does not count."""
        self.error: ChatError | None = None
        """Why the stream failed."""
        self.usage: Usage | None = None
        self.finish_reasons: dict[int, str] = {}
        """By choice, for those that have ended."""
        self._decoder = sse.Decoder(max_event_bytes)
        self._max_event_bytes = max_event_bytes
        self._begun = False
        self._bare: bytearray | None = None
        """JSON that came without any framing, whatever the response was labelled."""
        self._drop_usage_chunk = drop_usage_chunk
        self._coalesce, self._reuse = coalesce, reuse
        self._repeats = ChunkTemplate(max_event_bytes)
        self._may_be_one = False
        """Could the next bytes be one event that repeats, and nothing else?"""
        self._surrogates = SurrogateJoiner()
        self._tool_calls: dict[int, ToolCallNumbering] = {}
        self._open_choices: set[int] = set()

    def feed(self, data: bytes) -> list[ChatChunk]:
        """The chunks that these bytes complete."""
        if self._may_be_one and (chunk := self._repeats.only(data)):
            self.chunks += 1
            return [chunk]
        chunks: list[ChatChunk] = []
        if self.done or self.error:
            return chunks
        if not self._begun and (start := data.lstrip(_BLANK)):
            self._begun = True
            if start.startswith((b"{", b"[")):
                self._bare, data = bytearray(), start
        try:
            if self._bare is not None:
                self._bare += data
                if len(self._bare) > self._max_event_bytes:
                    what = f"the upstream sent more than {self._max_event_bytes} bytes without an event"
                    raise InvalidResponse(what, "oversize")
                return chunks
            self._take_events(self._decoder.only_lf(data), chunks)
        except ChatError as error:
            self.error = error
        if self.done or self.error:
            self._take_rest(chunks)
        self._may_be_one = self._reuse and not self.done and not self.error and self._may_repeat()
        return list(coalesce(chunks)) if self._coalesce and len(chunks) > 1 else chunks

    def whole(self, body: bytes) -> list[ChatChunk]:
        """The one chunk of an answer that came in one piece although a stream was asked for."""
        chunks: list[ChatChunk] = []
        try:
            response(body)  # which raises if it is none
            self._take("message", body, chunks)
            self._take_rest(chunks)
            self.done = True
        except ChatError as error:
            self.error = error
        return chunks

    def finish(self) -> list[ChatChunk]:
        """The chunks of an event that lacked its blank line. Sets `error` unless the completion has ended."""
        chunks: list[ChatChunk] = []
        if self.done or self.error:
            return chunks
        if self._bare is not None:
            return self.whole(bytes(self._bare))
        try:
            for kind, payload in self._decoder.flush():
                self._take(kind, payload, chunks)
        except InvalidResponse:
            pass  # It was cut off, which matters only if the completion was too.
        except ChatError as error:
            self.error = error
        self._take_rest(chunks)
        if not self.error and not self.done and (self._open_choices or not self.finish_reasons):
            self.error = Truncated("the upstream's stream ended without [DONE] and before every choice had finished")
        return chunks

    def _take_events(self, data: bytes, chunks: list[ChatChunk]) -> None:
        """What only repeats is told apart here, and needs no decoding."""
        at = looked_at = 0
        while at < len(data) and not self.done:
            if at >= looked_at and self._may_repeat():
                texts, looked_at = self._repeats.read(data, at)
                if texts and self._add_repeated(texts, chunks):
                    at = looked_at
                    continue
            cut = data.find(b"\n\n", at)
            end = cut + 2 if cut >= 0 else len(data)
            for kind, payload in self._decoder.feed_lines(data[at:end]):
                self._take(kind, payload, chunks)
                if self.done:
                    break
            at = end

    def _may_repeat(self) -> bool:
        return self._repeats.known and self._decoder.is_between_events and not self._surrogates.waiting

    def _add_repeated(self, texts: list[bytes], chunks: list[ChatChunk]) -> bool:
        read = self._repeats.texts(texts, joined=self._coalesce)
        self.chunks += len(texts) if read else 0
        chunks += map(self._repeats.chunk, read)
        return bool(read)

    def _take(self, kind: str, payload: bytes, chunks: list[ChatChunk]) -> None:
        if not payload:
            return
        if payload.startswith(_DONE):
            self.done = True
            return
        try:
            source, odd = _loads(payload)
        except ValueError:
            lines = payload.split(b"\n")
            if len(lines) > 1:
                self._take_each(kind, lines, chunks)
                return
            if kind != "error":
                what = f"the upstream sent an event that is not JSON ({len(payload)} bytes)"
                raise InvalidResponse(what, "bad_json") from None
            source, odd = payload.decode("utf-8", "replace"), False
        error = error_in_success(source, payload, certain=kind == "error")
        if error is not None:
            raise error
        if not isinstance(source, dict):
            raise InvalidResponse("the upstream sent an event that is no JSON object", "not_a_completion")
        self._normalise(source)
        if odd or self._surrogates.waiting:
            self._surrogates.join(source)
        chunk = self._add(source, chunks)
        if not odd and chunk is not None:
            self._repeats.learn(payload, source, chunk)

    def _take_each(self, kind: str, lines: list[bytes], chunks: list[ChatChunk]) -> None:
        """Where a server leaves the blank lines out, several events come as the lines of one."""
        for line in lines:
            if not self.done:
                self._take(kind, line, chunks)

    def _take_rest(self, chunks: list[ChatChunk]) -> None:
        """Halves of pairs for which nothing comes any more; without a finish_reason that was not told before."""
        source = self._surrogates.rest()
        if source is not None:
            self._add(source, chunks)

    def _add(self, source: dict[str, Any], chunks: list[ChatChunk]) -> ChatChunk | None:
        chunk = ChatChunk()
        _read(chunk, source)
        for choice in chunk.choices:
            if choice.finish_reason:
                self.finish_reasons[choice.index] = choice.finish_reason
                self._open_choices.discard(choice.index)
            elif choice.index not in self.finish_reasons:
                self._open_choices.add(choice.index)
        if chunk.HasField("usage"):
            self.usage = chunk.usage
            if self._drop_usage_chunk and not any(map(_says_something, chunk.choices)):
                return None
        self.chunks += 1
        chunks.append(chunk)
        return chunk

    def _normalise(self, source: dict[str, Any]) -> None:
        choices = source.get("choices")
        if not isinstance(choices, list):
            choices = []
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            if "delta" not in choice and isinstance(choice.get("message"), dict):
                choice["delta"] = choice.pop("message")
            delta = choice.get("delta")
            if isinstance(delta, dict) and isinstance(delta.get("tool_calls"), list):
                index = mapping.whole(choice.get("index")) or 0
                self._tool_calls.setdefault(index, ToolCallNumbering()).number(delta["tool_calls"])
        if source.get("usage") is None:
            usage = _usage_elsewhere(source, choices)
            if usage is not None:
                source["usage"] = usage


def _says_something(choice: ChunkChoice) -> bool:
    """LiteLLM sends the usage beside a choice with an empty delta."""
    return bool(choice.finish_reason or choice.delta.ByteSize() or choice.HasField("logprobs") or choice.extra_json)


class ToolCallNumbering:
    """Gives each tool call of a choice an index of its own: without, parallel calls merge.

    The upstream's counts, unless it sends none, or the same one for all: then the calls are told apart by their ids.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int | None, str], int] = {}
        """By index as sent and id. With the empty id: the one that was spoken of last under the index."""
        self._identified: set[int] = set()
        self._last = -1

    def number(self, calls: list[Any]) -> None:
        """Sets `index` in the deltas."""
        for position, call in enumerate(calls):
            if not isinstance(call, dict):
                continue
            identity = call.get("id")
            if not isinstance(identity, str):
                identity = ""
            sent = _sent_index(call.get("index"))
            if sent is None:
                # One that tells nothing of itself among several continues the call at its place, alone the last one.
                index = self._index(call, identity, position if len(calls) > 1 else max(self._last, 0))
            else:
                index = self._index_for(sent, call, identity)
                self._known[sent, identity] = self._known[sent, ""] = index
            call["index"] = index
            if identity:
                self._known.setdefault((None, identity), index)
                self._identified.add(index)
            self._last = max(self._last, index)

    def _index(self, call: dict[str, Any], identity: str, otherwise: int) -> int:
        if identity and (None, identity) in self._known:
            return self._known[None, identity]
        return self._last + 1 if identity or _has_name(call) else otherwise

    def _index_for(self, sent: int, call: dict[str, Any], identity: str) -> int:
        if (sent, identity) in self._known:
            return self._known[sent, identity]
        index = self._known.get((sent, ""), sent)
        # Ollama sends index 0 for all calls. A new id without a name is no new call: Poolside changes the ids of one.
        another = identity and index in self._identified and self._known.get((None, identity)) != index
        return self._last + 1 if another and _has_name(call) else index


def _sent_index(value: Any) -> int | None:
    if isinstance(value, str) and len(value) < 10 and value.isdecimal():
        return int(value)
    return mapping.whole(value)


def _has_name(call: dict[str, Any]) -> bool:
    return any(isinstance(holder, dict) and holder.get("name") for holder in (call.get("function"), call.get("custom")))


def _loads(data: bytes) -> tuple[Any, bool]:
    """The value, and whether it took good will to read it: only then can it hold surrogates."""
    try:
        return jsontext.loads(data), False
    except ValueError:
        return jsontext.loads_leniently(data), True


def _read(message: Message, source: dict[str, Any]) -> None:
    try:
        mapping.read(message, source)
    except ValueError as error:
        raise InvalidResponse(f"the upstream answered with JSON that is {error}", "not_a_completion") from None


def _usage_elsewhere(source: dict[str, Any], choices: list[Any]) -> dict[str, Any] | None:
    """Moonshot puts the usage of a stream into its first choice, Groq into `x_groq`. Both stay there too, as extras."""
    holders = [choices[0]] if choices else []
    holders.append(source.get("x_groq"))
    for holder in holders:
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            usage: dict[str, Any] = holder["usage"]
            return usage
    return None
