"""A validated request → what echo answers, complete and ready to be written: pure, and always the same.

How it is written (one body or a stream) is for `wire`; when it breaks is for `delivery`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from chatrpc_echo import pieces
from chatrpc_echo.directives import Behaviour
from chatrpc_echo.errors import ApiError
from chatrpc_echo.instances import NoInstanceError, instance
from chatrpc_echo.tools import ToolCall, calls

_LONGEST_ECHO = 400
_ATTACHMENTS = {"image_url": "image", "input_audio": "audio clip", "file": "file", "video_url": "video"}
_TOKENS_BESIDE_TEXT = 4  # for each message: role and separators
_TOKENS_FOR_ATTACHMENT = 85
_CACHED_BLOCK = 16  # prompt caches count in whole blocks; a small one, so that short prompts show a figure


@dataclass(slots=True)
class Choice:
    """One of the `n` answers. Texts are in pieces: one piece is one token and one chunk."""

    content: Sequence[str] | None
    finish_reason: str
    reasoning: Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()
    function_call: ToolCall | None = None


@dataclass(slots=True)
class Answer:
    """Everything a response says, whichever way it is written."""

    identity: str
    model: str
    choices: list[Choice]
    prompt_tokens: int
    top_logprobs: int | None
    """How many alternatives to show for each token; None: no logprobs at all."""
    usage: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        reasoning = sum(len(choice.reasoning) for choice in self.choices)
        completion = reasoning + sum(map(_spoken_tokens, self.choices))
        self.usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.prompt_tokens // _CACHED_BLOCK * _CACHED_BLOCK},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }


def compose(body: dict[str, Any], identity: str, behaviour: Behaviour) -> Answer:
    """The answer to a validated request; `identity` is the hash that its ids are made of.

    Raises ApiError (400) for tools, a tool choice or a response format that make no sense.
    """
    return Answer(
        identity=identity,
        model=body["model"],
        choices=[_choice(body, identity, behaviour, index) for index in range(body.get("n", 1))],
        prompt_tokens=sum(map(_tokens_in, body["messages"])),
        top_logprobs=body.get("top_logprobs", 0) if body.get("logprobs") else None,
    )


def _choice(body: dict[str, Any], identity: str, behaviour: Behaviour, index: int) -> Choice:
    reasoning = _reasoning(body)
    said = _prescribed(behaviour)
    if said is None:
        question = text_of(_last_user_message(body).get("content"))
        called = calls(body, question, f"{identity}_{index}")
        if called and called[0].kind == "function_call":
            return Choice(None, "function_call", reasoning, function_call=called[0])
        if called:
            return Choice(None, "tool_calls", reasoning, tool_calls=called)
        said = pieces.split(_formatted(body) or _remark(body, index))
    return _cut(said, reasoning, body)


def _cut(said: Sequence[str], reasoning: Sequence[str], body: dict[str, Any]) -> Choice:
    """Ends the text where `stop` or the token limit says; reasoning is paid from the same limit, as OpenAI does."""
    stop = body.get("stop", ())
    kept = pieces.cut_before(said, [stop] if isinstance(stop, str) else stop)
    said = said if kept is None else kept
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is None or len(reasoning) + len(said) <= limit:
        return Choice(said, "stop", reasoning)
    return Choice(said[: max(0, limit - len(reasoning))], "length", reasoning[:limit])


def _prescribed(behaviour: Behaviour) -> Sequence[str] | None:
    """The text that `pieces` and `size` ask for, if any."""
    if behaviour.size is None:
        return None if behaviour.pieces is None else _numbers(behaviour.pieces)
    parts = min(behaviour.size, 1 if behaviour.pieces is None else behaviour.pieces)
    if not parts:
        return []
    each, rest = divmod(behaviour.size, parts)
    return ["x" * each] * (parts - 1) + ["x" * (each + rest)]


@lru_cache(maxsize=8)
def _numbers(count: int) -> tuple[str, ...]:
    """'1', ' 2', ' 3' …: a reader sees at once which piece is lost, doubled, or out of order."""
    return tuple(f" {number}" if number > 1 else "1" for number in range(1, count + 1))


def _reasoning(body: dict[str, Any]) -> Sequence[str]:
    effort = body.get("reasoning_effort", "none")
    if effort == "none":
        return ()
    words = len(text_of(_last_user_message(body).get("content")).split())
    return pieces.split(f"Thinking with {effort} effort: {words} words came in, and I shall repeat them.")


def _formatted(body: dict[str, Any]) -> str | None:
    """The JSON text that `response_format` asks for; None: it asks for prose."""
    form = body.get("response_format", {})
    match form.get("type", "text"):
        case "text":
            return None
        case "json_object":
            value: Any = {"you_said": text_of(_last_user_message(body).get("content"))}
        case "json_schema" if isinstance(form.get("json_schema"), dict):
            value = _structured(form["json_schema"])
        case "json_schema":
            raise ApiError(400, "Missing required parameter: 'response_format.json_schema'.", param="response_format")
        case other:
            raise ApiError(
                400,
                f"Invalid value: '{other}'. Supported values are: 'json_object', 'json_schema', and 'text'.",
                param="response_format.type",
                code="invalid_value",
            )
    return json.dumps(value, ensure_ascii=False)


def _structured(form: dict[str, Any]) -> Any:
    try:
        return instance(form.get("schema") or {"type": "object"})
    except NoInstanceError as error:
        raise ApiError(
            400,
            f"Invalid schema for response_format '{form.get('name', '')}': {error}.",
            param="response_format",
        ) from error


def _remark(body: dict[str, Any], index: int) -> str:
    """What echo says in prose; the other choices say which one they are, so that they can be told apart."""
    results = _results(body["messages"])
    if results:
        remark = f"The tool says: {'; '.join(map(_shortened, results))}"
    else:
        remark = _repeated(_last_user_message(body).get("content"))
    return f"{remark} ({index + 1})" if index else remark


def _repeated(content: Any) -> str:
    text, attached = text_of(content).strip(), _attached(content)
    if not text:
        return f"You sent {attached}" if attached else "You said nothing"
    return f"You said: {_shortened(text)}" + (f" … and {attached}" if attached else "")


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_ECHO:
        return text
    return f"{text[:_LONGEST_ECHO].rstrip()} … ({len(text):,} characters)"


def _results(messages: list[dict[str, Any]]) -> list[str]:
    """What the tools answered, if the conversation ends with that."""
    results: list[str] = []
    for message in reversed(messages):
        if message["role"] not in ("tool", "function"):
            break
        results.insert(0, text_of(message.get("content")))
    return results


def _last_user_message(body: dict[str, Any]) -> dict[str, Any]:
    return next((message for message in reversed(body["messages"]) if message["role"] == "user"), {})


def text_of(content: Any) -> str:
    """The text in a message's content: a string, or parts of which some are texts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return " ".join(part["text"] for part in parts if part["type"] == "text" and isinstance(part.get("text"), str))


def _attached(content: Any) -> str:
    """'1 image, 2 files', in order of appearance."""
    counts = _attachments(content)
    return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())


def _attachments(content: Any) -> Counter[str]:
    parts = content if isinstance(content, list) else ()
    kinds = [str(part["type"]) for part in parts if part["type"] not in ("text", "refusal")]
    return Counter(_ATTACHMENTS.get(kind, f"{kind} part") for kind in kinds)


def _tokens_in(message: dict[str, Any]) -> int:
    content = message.get("content")
    attachments = _attachments(content).total() * _TOKENS_FOR_ATTACHMENT
    return _TOKENS_BESIDE_TEXT + pieces.count(text_of(content)) + attachments


def _spoken_tokens(choice: Choice) -> int:
    called = [*choice.tool_calls, *([choice.function_call] if choice.function_call else [])]
    return len(choice.content or ()) + sum(pieces.count(call.name) + pieces.count(call.text) for call in called)
