"""Most chunks of a stream are the last one once more, byte by byte, but for their text: those need no decoding.

What stands before and after the text is learnt from a chunk that was decoded, and proven by decoding it with another
text in its place. An event with the same bytes there, and what JSON calls a string between them, says the same with
its own text. That takes a tenth of the time (tests/bench/chunks.py).
"""

from chatrpc.v1.chat_response_pb2 import Delta
from chatrpc_server.core import jsontext, mapping
from chatrpc_server.core.coalesce import coalesce
from chatrpc_server.core.upstream import ChatChunk

_KEYS = (b'"content":"', b'"content": "')
_MORE = "x"
"""What is put behind the text for the proof: the text has to be another, since it may stand at other places too."""
_LESSONS = 3
"""After so many without use this stream's chunks differ in more than text: as with OpenAI's `obfuscation`."""
_USES = 1000
"""So often a message is reused: it keeps the memory of every text that it ever had (upb's arena)."""
_BACKSLASH = ord("\\")


class Repeats:
    """What one stream repeats."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._start = self._end = b""
        """Of an event that repeats: what stands before its text, and after it."""
        self._pattern: ChatChunk | None = None
        self._lessons_left = _LESSONS
        self._joins = False
        """May several of these become one message with the joined text?"""
        self._reused = ChatChunk()
        self._reused_delta = Delta()
        self._uses_left = 0

    def read(self, data: bytes, at: int) -> tuple[list[bytes], int]:
        """The texts of the events from there on that repeat, as they stand in JSON; and where the next event begins.

        Whether they are texts is for `texts` to find out.
        """
        texts: list[bytes] = []
        if self._pattern is None:
            return texts, at
        start, end = self._start, self._end
        most_bytes = self._max_event_bytes + len("data: \n\n") - len(end)
        while data.startswith(start, at):
            begins = at + len(start)
            ends = data.find(end, begins)
            # After a backslash it would not be the quotation mark that ends the text.
            if ends < 0 or data[ends - 1] == _BACKSLASH or ends - at > most_bytes:
                break
            texts.append(data[begins:ends])
            at = ends + len(end)
        return texts, at

    def texts(self, written: list[bytes], *, joined: bool) -> list[str]:
        """What is written there, in one if it may be; nothing at all where one of them is no text."""
        try:
            texts = [jsontext.text(text) for text in ([b"".join(written)] if joined and self._joins else written)]
        except ValueError:
            return []
        self._lessons_left = _LESSONS
        return texts

    def chunk(self, text: str) -> ChatChunk:
        """The chunk learnt, with this text."""
        chunk = ChatChunk()
        assert self._pattern is not None  # else nothing repeats it
        chunk.CopyFrom(self._pattern)
        chunk.choices[0].delta.content = text
        return chunk

    def reused(self, text: str) -> ChatChunk:
        """The same, in the message that the last call gave: a fifth of the time."""
        if not self._uses_left:
            self._reused, self._uses_left = self.chunk(""), _USES
            self._reused_delta = self._reused.choices[0].delta
        self._uses_left -= 1
        self._reused_delta.content = text
        return self._reused

    def learn(self, payload: bytes, chunk: ChatChunk) -> None:
        """Looks at a chunk that had to be decoded: `chunk` is what it says."""
        if not self._lessons_left or b"\n" in payload or not _is_text(chunk):
            return
        self._lessons_left -= 1
        written = jsontext.dumps(chunk.choices[0].delta.content)[1:-1]
        pattern = ChatChunk()
        pattern.CopyFrom(chunk)
        pattern.choices[0].delta.content += _MORE
        for key in _KEYS:
            before, _, after = payload.partition(key + written)
            if after and _says(before + key + written + _MORE.encode() + after, pattern):
                self._start, self._end = b"data: " + before + key, after + b"\n\n"
                self._pattern, self._uses_left = pattern, 0
                self._joins = list(coalesce([self.chunk("a"), self.chunk("b")])) == [self.chunk("ab")]


def _is_text(chunk: ChatChunk) -> bool:
    """One choice that says nothing but some content."""
    if len(chunk.choices) != 1 or chunk.HasField("usage"):
        return False
    choice = chunk.choices[0]
    fields = [field.name for field, _ in choice.delta.ListFields()]
    return fields == ["content"] and not choice.HasField("finish_reason") and not choice.HasField("logprobs")


def _says(payload: bytes, chunk: ChatChunk) -> bool:
    read = ChatChunk()
    try:
        mapping.read(read, jsontext.loads(payload))
    except ValueError:  # at the very brink of what can be nested it comes down to how deep we are ourselves
        return False
    return read == chunk
