"""Most chunks of a stream are the last one once more, byte by byte, but for their text: those need no decoding.

What stands before and after the text is learnt from a chunk that was decoded, and proven by decoding it with another
text in its place. A chunk with the same bytes there, and with nothing between them that JSON would escape, says the
same with its own text. That takes a tenth of the time (tests/bench/chunks.py).
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


class Repeats:
    """What one stream repeats."""

    def __init__(self) -> None:
        self._before = self._after = b""
        self._around_bytes = 0
        self._pattern: ChatChunk | None = None
        self._lessons_left = _LESSONS
        self._joins = False
        """May several of these become one message with the joined text?"""
        self._reused = ChatChunk()
        self._reused_delta = Delta()
        self._uses_left = 0

    def text(self, payload: bytes) -> str | None:
        """The text of a chunk that repeats the one learnt; None for all others."""
        if self._pattern is None or not self._fits(payload):
            return None
        try:
            text = payload[len(self._before) : len(payload) - len(self._after)].decode()
        except UnicodeDecodeError:
            return None
        if not text.isprintable() or '"' in text or "\\" in text:
            return None
        self._lessons_left = _LESSONS
        return text

    def chunk(self, text: str) -> ChatChunk:
        """The chunk learnt, with this text."""
        chunk = ChatChunk()
        assert self._pattern is not None  # else there was no text
        chunk.CopyFrom(self._pattern)
        chunk.choices[0].delta.content = text
        return chunk

    def joined(self, texts: list[str]) -> list[ChatChunk]:
        """What `coalesce` would make of chunks with these texts."""
        return [self.chunk("".join(texts))] if self._joins else [self.chunk(text) for text in texts]

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
        if not self._lessons_left or not _is_text(chunk):
            return
        if self._pattern is not None and self._fits(payload):
            return  # it does repeat: only its text is out of the ordinary
        self._lessons_left -= 1
        written = jsontext.dumps(chunk.choices[0].delta.content)[1:-1]
        pattern = ChatChunk()
        pattern.CopyFrom(chunk)
        pattern.choices[0].delta.content += _MORE
        for key in _KEYS:
            before, _, after = payload.partition(key + written)
            if after and _says(before + key + written + _MORE.encode() + after, pattern):
                self._before, self._after, self._pattern = before + key, after, pattern
                self._around_bytes = len(self._before) + len(after)
                self._joins = list(coalesce([self.chunk("a"), self.chunk("b")])) == [self.chunk("ab")]
                self._uses_left = 0

    def _fits(self, payload: bytes) -> bool:
        return len(payload) >= self._around_bytes and payload.startswith(self._before) and payload.endswith(self._after)


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
