"""The message of a choice as far as it has arrived, to reduce what an upstream repeats to its new part.

A snapshot is a message that holds the whole text so far: some servers send one as the last event, or one in each event.
Nothing here keeps a whole text: its length, its first and its last characters recognise it in a snapshot.
"""

from typing import Any

from chatrpc_server.core.openai import TEXT_FIELDS, jsontext

JsonObject = dict[str, Any]

_EDGE_CHARACTERS = 64
"""Characters that are remembered of the beginning and of the end of a text."""
_MIN_REPEATED_CHARACTERS = 5
"""Shortest text that a last delta can repeat. A shorter one can be part of the text, as in "haha"."""
_MAX_NAMES = 64
"""Names of other keys that are remembered, and characters of a name that is."""
_MAX_NAME_CHARACTERS = 1024
"""Characters of a function's name that arrives in pieces."""


class TextSoFar:
    """A text that arrives in pieces."""

    __slots__ = ("_head", "_tail", "length", "pieces")

    def __init__(self) -> None:
        self.length = self.pieces = 0
        self._head = self._tail = ""

    def add(self, text: str) -> None:
        """Append a piece."""
        if not self.length:
            self._head = text[:_EDGE_CHARACTERS]
        self.pieces += 1
        self.length += len(text)
        self._tail = text if len(text) <= _EDGE_CHARACTERS else text[-_EDGE_CHARACTERS:]

    def add_unseen(self, length: int, end: str) -> None:
        """Append pieces of which only the length and the end are known."""
        self.pieces += 1
        self.length += length
        self._tail = end[-_EDGE_CHARACTERS:]

    def differs(self, whole: Any) -> bool:
        """Return whether this is a text that does not begin with the text so far."""
        return type(whole) is str and whole != "" and self.rest(whole) is None

    def rest(self, whole: str) -> str | None:
        """Return the part of a whole text that has not arrived, or None if it does not begin with the text so far."""
        if whole.startswith(self._head) and whole.endswith(self._tail, 0, self.length) and len(whole) >= self.length:
            return whole[self.length :]
        return None


class CallSoFar:
    """A tool call or a function call."""

    __slots__ = ("name", "names", "text")

    def __init__(self) -> None:
        self.name = ""
        self.names: set[str] = set()
        """The keys that have arrived."""
        self.text = TextSoFar()
        """The arguments, or the input of a custom tool."""

    def add(self, call: JsonObject) -> None:
        """Add the delta of a tool call, and remove the parts of its function that are repeated."""
        for key, value in call.items():
            if value:
                if key not in self.names:
                    self._add_key(key)
                if type(value) is dict and key in ("function", "custom"):
                    self.add_function(value)

    def add_function(self, function: JsonObject) -> None:
        """Add the delta of a function or custom tool, and remove its parts that are repeated."""
        for key, value in function.items():
            if not value:
                continue
            if key == "arguments" or key == "input":
                text = value if type(value) is str else _argument_text(value)
                if text is None:
                    continue
                # One JSON object cannot follow another one.
                if len(text) == self.text.length and self.text.rest(text) == "" and _is_object(text):
                    function[key] = ""
                else:
                    self.text.add(text)
            elif key == "name" and type(value) is str:
                self._add_name(value, function)
            else:
                self._add_key(f"function.{key}")

    def _add_key(self, key: str) -> None:
        if len(self.names) < _MAX_NAMES and len(key) <= _MAX_NAMES:
            self.names.add(key)

    def _add_name(self, name: str, function: JsonObject) -> None:
        if not self.name:
            self.name = name[:_MAX_NAME_CHARACTERS]
        elif name == self.name or self.text.length:  # A name is complete when its arguments begin.
            function["name"] = ""
        elif name.startswith(self.name):
            function["name"] = name[len(self.name) :]
            self.name = name[:_MAX_NAME_CHARACTERS]
        else:
            self.name = (self.name + name)[:_MAX_NAME_CHARACTERS]

    def reduce(self, call: JsonObject) -> JsonObject:
        """Return the new part of a whole call."""
        new: JsonObject = {}
        for key, value in call.items():
            if key in ("function", "custom") and type(value) is dict:
                function = self.reduce_function(value)
                if function:
                    new[key] = function
            elif value and key not in self.names:
                new[key] = value
        return new

    def reduce_function(self, function: JsonObject) -> JsonObject:
        """Return the new part of a whole function or custom tool."""
        new: JsonObject = {}
        for key, value in function.items():
            if key == "name":
                if not self.name or (type(value) is str and value.startswith(self.name) and value != self.name):
                    new[key] = value
            elif key in ("arguments", "input"):
                rest = self.text.rest(value) if type(value) is str else None
                if rest or not self.text.length:
                    new[key] = rest or value
            elif f"function.{key}" not in self.names:
                new[key] = value
        return new


class MessageSoFar:
    """The message of one choice."""

    def __init__(self) -> None:
        self.texts = {name: TextSoFar() for name in TEXT_FIELDS}
        self.calls: dict[int, CallSoFar] = {}
        """The tool calls by their index."""
        self._function = CallSoFar()
        self._others: dict[str, int] = {}
        """The other keys that have arrived, and how many elements of a list."""
        self.has_deltas = self.has_finished = self._has_snapshots = False

    def finish(self, delta: JsonObject) -> None:
        """Begin the end of the choice with a delta, which can repeat the whole text."""
        self.has_finished = True
        for key, text in self.texts.items():
            value = delta.get(key)
            if text.pieces > 1 and text.length >= _MIN_REPEATED_CHARACTERS and type(value) is str:
                rest = text.rest(value)
                if rest is not None:
                    delta[key] = rest

    def add(self, delta: JsonObject) -> bool:
        """Add a delta, and remove its parts that are repeated. Return whether it holds more than a role."""
        is_more = False
        for key, value in delta.items():
            if not value:
                continue
            is_more = is_more or key != "role"
            if type(value) is str and key in self.texts:
                self.texts[key].add(value)
            elif key == "tool_calls" and type(value) is list:
                for call in value:
                    if type(call) is dict:
                        known = self.calls.get(call["index"])
                        if known is None:
                            known = self.calls[call["index"]] = CallSoFar()
                        known.add(call)
            elif key == "function_call" and type(value) is dict:
                self._function.add_function(value)
            elif key in self._others or (len(self._others) < _MAX_NAMES and len(key) <= _MAX_NAMES):
                self._others[key] = self._others.get(key, 0) + (len(value) if type(value) is list else 0)
        return is_more

    def read_message(self, message: JsonObject) -> JsonObject:
        """Return the delta of a message that came in place of one: the message if it is a piece, else its new part."""
        if not self.has_deltas and not self._has_snapshots and self._differs(message):
            self.add(message)
            return message
        self._has_snapshots = self._has_snapshots or self._extends(message)
        return self.read_snapshot(message)

    def read_snapshot(self, message: JsonObject) -> JsonObject:
        """Return the new part of a whole message."""
        new: JsonObject = {}
        for key, value in message.items():
            if key in self.texts:
                self._reduce_text(key, value, new)
            elif key == "tool_calls" and type(value) is list:
                calls = [reduced for call in value if (reduced := self._reduce_call(call))]
                if calls or not value:
                    new[key] = calls
            elif key == "function_call" and type(value) is dict:
                function = self._function.reduce_function(value)
                if function or not value:
                    new[key] = function
            elif key not in self._others:
                new[key] = value
            elif type(value) is list and len(value) > self._others[key]:
                new[key] = value[self._others[key] :]
        self.add(new)
        return new

    def find_call(self, position: int, call: JsonObject) -> int | None:
        """Return the index of the call at a position of a whole message, or None if it is new."""
        if position >= len(self.calls):
            return None
        index = sorted(self.calls)[position]
        function = call.get("function") or call.get("custom")
        name = function.get("name") if type(function) is dict else None
        known = self.calls[index].name
        return index if not name or not known or (type(name) is str and name.startswith(known)) else None

    def _reduce_text(self, key: str, value: Any, new: JsonObject) -> None:
        text = self.texts[key]
        if not text.length and key not in self._others:
            new[key] = value
        elif text.length and (rest := text.rest(_text_of(value))):
            new[key] = rest

    def _reduce_call(self, call: Any) -> JsonObject:
        known = self.calls.get(call["index"]) if type(call) is dict else None
        if known is None:
            return call  # type: ignore[no-any-return]
        new = known.reduce({key: value for key, value in call.items() if key != "index"})
        return {"index": call["index"], **new} if new else new

    def _differs(self, message: JsonObject) -> bool:
        """Return whether a text of the message does not begin with the text so far."""
        return any(text.differs(message.get(key)) for key, text in self.texts.items()) or any(
            type(call) is dict
            and (known := self.calls.get(call["index"])) is not None
            and type(function := call.get("function")) is dict
            and known.text.differs(function.get("arguments"))
            for call in calls_of(message)
        )

    def _extends(self, message: JsonObject) -> bool:
        """Return whether a text of the message is longer than the text so far, which it begins with."""
        return any(
            text.length and type(message.get(key)) is str and text.rest(message[key])
            for key, text in self.texts.items()
        )


def calls_of(message: JsonObject) -> list[Any]:
    """Return the tool calls of a message."""
    calls = message.get("tool_calls")
    return calls if type(calls) is list else []


def _argument_text(value: Any) -> str | None:
    """Return the text of arguments that are an object."""
    if type(value) is not dict and type(value) is not list:
        return None
    try:
        return jsontext.dumps(value).decode()
    except ValueError:
        return None  # nested too deeply: the mapping rejects it


def _text_of(value: Any) -> str:
    """Return the text of content, which can be an array of parts."""
    if type(value) is list:
        texts = [part.get("text") for part in value if type(part) is dict]
        return "".join(text for text in texts if type(text) is str)
    return value if type(value) is str else ""


def _is_object(text: str) -> bool:
    try:
        return type(jsontext.loads(text.encode())) is dict
    except ValueError:
        return False
