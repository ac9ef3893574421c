"""Most chunks of a stream are the last one once more, byte by byte, but for their text: those need no decoding.

What stands before and after the text is learnt from a chunk that was decoded, and proven by decoding it with another
text in its place. An event with the same bytes there, and what JSON calls a string between them, says the same with
its own text. That takes a third of the time, a fifth where one read brings several (bench/chunks.py).
"""

from typing import Any

from chatrpc.v1.chat_response_pb2 import Delta
from chatrpc_server.core.openai import jsontext, mapping
from chatrpc_server.core.openai.coalesce import coalesce
from chatrpc_server.core.upstream import ChatChunk

_KEYS = (b'"content":"', b'"content": "')
_MORE = "x"
"""What is put behind the text for the proof: the text has to be another, since it may stand at other places too."""
_LESSONS = 3
"""After so many without use this stream's chunks differ in more than text: as with OpenAI's `obfuscation`."""
_USES = 1000
"""So often a message is reused: it keeps the memory of every text that it ever had (upb's arena)."""
_BACKSLASH = ord("\\")


class ChunkTemplate:
    """What one stream repeats."""

    def __init__(self, max_event_bytes: int) -> None:
        self._most_bytes = max_event_bytes + len("data: \n\n")
        self._start = self._end = b""
        """Of an event that repeats: what stands before its text, and after it."""
        self.known = False
        """Has one been learnt?"""
        self._pattern = ChatChunk()
        self._lessons_left = _LESSONS
        self._joins = False
        """May several of these become one message with the joined text?"""
        self._reused = ChatChunk()
        self._reused_delta = Delta()
        self._uses_left = 0

    def read(self, data: bytes, at: int) -> tuple[list[bytes], int]:
        """The texts of the events from there on that repeat, as they stand in JSON; and where the next event begins.

        To be asked once one is known. Whether they are texts is for `texts` to find out.
        """
        texts: list[bytes] = []
        start, end = self._start, self._end
        most_bytes = self._most_bytes - len(end)
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
        chunk.CopyFrom(self._pattern)
        chunk.choices[0].delta.content = text
        return chunk

    def only(self, data: bytes) -> ChatChunk | None:
        """What these bytes say if they are one event that repeats, in the message that the last call gave.

        To be asked once one is known. All in one place, since with paced streams each function more finds cold caches.
        """
        begins = len(self._start)
        ends = data.find(self._end, begins)
        if ends < 0 or ends + len(self._end) != len(data) or not data.startswith(self._start):
            return None
        if len(data) > self._most_bytes:
            return None
        try:
            text = jsontext.text(data[begins:ends])
        except ValueError:
            return None
        self._lessons_left = _LESSONS
        if not self._uses_left:
            self._reused, self._uses_left = self.chunk(""), _USES
            self._reused_delta = self._reused.choices[0].delta
        self._uses_left -= 1
        self._reused_delta.content = text
        return self._reused

    def learn(self, payload: bytes, source: dict[str, Any], chunk: ChatChunk) -> None:
        """Looks at a chunk that had to be decoded: `source` is the JSON of the payload, `chunk` what it says."""
        if not self._lessons_left or not _is_text(source) or b"\n" in payload:
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
                self._pattern, self._uses_left, self.known = pattern, 0, True
                self._joins = list(coalesce([self.chunk("a"), self.chunk("b")])) == [self.chunk("ab")]


def _is_text(source: dict[str, Any]) -> bool:
    """One choice that says nothing but some content. Looked for in the JSON: that is the cheapest way to say no."""
    choices = source.get("choices")
    if type(choices) is not list or len(choices) != 1 or source.get("usage") is not None:
        return False
    choice = choices[0]
    delta = choice.get("delta") if type(choice) is dict else None
    return (
        type(delta) is dict
        and type(delta.get("content")) is str
        and [key for key, value in delta.items() if value or key == "content"] == ["content"]
        and not choice.get("finish_reason")
        and choice.get("logprobs") is None
    )


def _says(payload: bytes, chunk: ChatChunk) -> bool:
    read = ChatChunk()
    try:
        mapping.read(read, jsontext.loads(payload))
    except ValueError:  # at the very brink of what can be nested it comes down to how deep we are ourselves
        return False
    return read == chunk
