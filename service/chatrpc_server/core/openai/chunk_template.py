"""Template of a stream's chunks: most chunks differ from the previous one only in their text, and need no decoding.

The bytes before and after the text are learnt from a decoded chunk, and proven by decoding it with another text. An
event with the same bytes around a valid JSON string is the same chunk with that text. This takes a third of the time,
or a fifth if one read brings several events (bench/chunks.py).
"""

from typing import Any

from chatrpc.v1.chat_response_pb2 import Delta
from chatrpc_server.core.openai import jsontext, mapping
from chatrpc_server.core.openai.coalesce import coalesce
from chatrpc_server.core.upstream import ChatChunk

_KEYS = (b'"content":"', b'"content": "')
_PROOF_SUFFIX = "x"
"""Appended to the text for the proof. The text must change, because the same bytes can also occur elsewhere."""
_MAX_UNUSED_LESSONS = 3
"""Learnt templates without a match. Learning then stops: the chunks differ in more than text (`obfuscation`)."""
_MAX_REUSED_CHARACTERS = 1 << 12
"""Characters for which one message is used: it keeps the memory of every text that it has held (upb's arena)."""
_BACKSLASH = ord("\\")


class ChunkTemplate:
    """The repeated part of one stream's chunks."""

    def __init__(self, max_event_bytes: int) -> None:
        self.characters = 0
        """Characters of the texts since the last `take_text`."""
        self.known = False
        """Whether a template has been learnt. `match` and `scan` require it."""
        self._max_bytes = max_event_bytes + len("data: \n\n")
        self._prefix = self._suffix = b""
        """The bytes of an event before and after its text."""
        self._chunk = ChatChunk()
        self._is_joinable = False
        """Whether several matching events can become one message with the joined text."""
        self._lessons_left = _MAX_UNUSED_LESSONS
        self._reused = ChatChunk()
        self._reused_delta = Delta()
        self._reusable_to = 0
        """The value of `characters` from which another message is used."""
        self._text = ""
        """The last text."""

    def match(self, data: bytes) -> ChatChunk | None:
        """Return the chunk if the bytes are exactly one matching event. The next match returns the same object.

        This is one function because with paced streams each further function finds cold caches.
        """
        begin = len(self._prefix)
        end = data.find(self._suffix, begin)
        if end < 0 or end + len(self._suffix) != len(data) or not data.startswith(self._prefix):
            return None
        if len(data) > self._max_bytes:
            return None
        try:
            text = jsontext.text(data[begin:end])
        except ValueError:
            return None
        if self.characters >= self._reusable_to:
            self._reused, self._reusable_to = self._fill(""), self.characters + _MAX_REUSED_CHARACTERS
            self._reused_delta = self._reused.choices[0].delta
        self.characters += len(text)
        self._text = text
        self._reused_delta.content = text
        return self._reused

    def scan(self, data: bytes, at: int, *, join: bool) -> tuple[list[ChatChunk], int, int]:
        """Return the chunks of the matching events from offset `at` on, the number of events, and their end offset.

        If one of their texts is invalid, there are no chunks. `join`: allow one chunk for the texts of all events.
        """
        encoded: list[bytes] = []
        prefix, suffix = self._prefix, self._suffix
        max_bytes = self._max_bytes - len(suffix)
        while data.startswith(prefix, at):
            begin = at + len(prefix)
            end = data.find(suffix, begin)
            # After a backslash the quotation mark would not be the end of the text.
            if end < 0 or data[end - 1] == _BACKSLASH or end - at > max_bytes:
                break
            encoded.append(data[begin:end])
            at = end + len(suffix)
        if not encoded:
            return [], 0, at
        try:
            texts = [jsontext.text(text) for text in ([b"".join(encoded)] if join and self._is_joinable else encoded)]
        except ValueError:
            return [], 0, at
        chunks = []
        for text in texts:
            self.characters += len(text)
            chunks.append(self._fill(text))
        self._text = texts[-1]
        return chunks, len(encoded), at

    def take_text(self) -> tuple[int, int, str]:
        """Return the index of the choice that the texts belong to, their characters, and the last one.

        Call this before `learn` if there are any.
        """
        characters, self.characters = self.characters, 0
        self._reusable_to -= characters
        self._lessons_left = _MAX_UNUSED_LESSONS
        return self._chunk.choices[0].index, characters, self._text

    def learn(self, payload: bytes, source: dict[str, Any], chunk: ChatChunk) -> None:
        """Learn from a decoded chunk: `source` is the JSON of the payload, `chunk` the message."""
        if not self._lessons_left or not _has_only_text(source) or b"\n" in payload:
            return
        self._lessons_left -= 1
        text = jsontext.dumps(chunk.choices[0].delta.content)[1:-1]
        proof = ChatChunk()
        proof.CopyFrom(chunk)
        proof.choices[0].delta.content += _PROOF_SUFFIX
        for key in _KEYS:
            before, _, after = payload.partition(key + text)
            if after and _decodes_to(before + key + text + _PROOF_SUFFIX.encode() + after, proof):
                self._prefix, self._suffix = b"data: " + before + key, after + b"\n\n"
                self._chunk, self._reusable_to, self.known = proof, 0, True
                self._is_joinable = list(coalesce([self._fill("a"), self._fill("b")])) == [self._fill("ab")]

    def forget(self) -> None:
        """Match nothing until the next lesson."""
        self.known = False

    def _fill(self, text: str) -> ChatChunk:
        """Return a new chunk with this text."""
        chunk = ChatChunk()
        chunk.CopyFrom(self._chunk)
        chunk.choices[0].delta.content = text
        return chunk


def _has_only_text(source: dict[str, Any]) -> bool:
    """Return whether the only content is one choice's text. It checks the JSON, the cheapest way to reject a chunk."""
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


def _decodes_to(payload: bytes, chunk: ChatChunk) -> bool:
    decoded = ChatChunk()
    try:
        mapping.read(decoded, jsontext.loads(payload))
    except ValueError:  # because the nesting limit depends on the depth of the Python stack, which differs here
        return False
    return decoded == chunk
