"""Composes the complete completion for a validated request. Pure and deterministic.

`encoding` turns it into one body or a stream; `responses` decides when it is interrupted.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from chatrpc_echo import tokens
from chatrpc_echo.directives import Behaviour
from chatrpc_echo.errors import ApiError
from chatrpc_echo.schema_instances import NoInstanceError, instance
from chatrpc_echo.tools import ToolCall, choose_calls

_LONGEST_ECHO_CHARACTERS = 400
_ATTACHMENTS = {"image_url": "image", "input_audio": "audio clip", "file": "file", "video_url": "video"}
_TOKENS_PER_MESSAGE = 4  # role and separators
_TOKENS_PER_ATTACHMENT = 85
_CACHED_BLOCK_TOKENS = 16
"""Prompt caches count whole blocks. This one is small so that short prompts have cached tokens."""


@dataclass(slots=True)
class Choice:
    """One of the `n` choices. Texts are split into tokens: one token is one chunk."""

    content: Sequence[str] | None
    finish_reason: str
    reasoning: Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()
    function_call: ToolCall | None = None


@dataclass(slots=True)
class Completion:
    """The content of a response, unary or streaming."""

    identity: str
    model: str
    choices: list[Choice]
    prompt_tokens: int
    top_logprobs: int | None
    """Number of alternatives per token. If None, the response has no logprobs."""
    usage: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        reasoning = sum(len(choice.reasoning) for choice in self.choices)
        completion = reasoning + sum(map(_output_tokens, self.choices))
        self.usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {
                "cached_tokens": self.prompt_tokens // _CACHED_BLOCK_TOKENS * _CACHED_BLOCK_TOKENS
            },
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }


def compose(body: dict[str, Any], identity: str, behaviour: Behaviour) -> Completion:
    """Return the completion for a validated request. Its ids derive from the hash `identity`.

    Raises ApiError (400) for invalid tools, tool choices and response formats.
    """
    return Completion(
        identity=identity,
        model=body["model"],
        choices=[_choice(body, identity, behaviour, index) for index in range(body.get("n", 1))],
        prompt_tokens=sum(map(_input_tokens, body["messages"])),
        top_logprobs=body.get("top_logprobs", 0) if body.get("logprobs") else None,
    )


def _choice(body: dict[str, Any], identity: str, behaviour: Behaviour, index: int) -> Choice:
    reasoning = _reasoning(body)
    content = _requested_text(behaviour)
    if content is None:
        question = text_of(_last_user_message(body).get("content"))
        called = choose_calls(body, question, f"{identity}_{index}")
        if called and called[0].kind == "function_call":
            return Choice(None, "function_call", reasoning, function_call=called[0])
        if called:
            return Choice(None, "tool_calls", reasoning, tool_calls=called)
        content = tokens.split(_json_text(body) or _prose(body, index))
    return _truncate(content, reasoning, body)


def _truncate(content: Sequence[str], reasoning: Sequence[str], body: dict[str, Any]) -> Choice:
    """Cut the text at `stop` and at the token limit. Reasoning counts towards the limit, as at OpenAI."""
    stop = body.get("stop", ())
    before_stop = tokens.cut_before(content, [stop] if isinstance(stop, str) else stop)
    content = content if before_stop is None else before_stop
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is None or len(reasoning) + len(content) <= limit:
        return Choice(content, "stop", reasoning)
    return Choice(content[: max(0, limit - len(reasoning))], "length", reasoning[:limit])


def _requested_text(behaviour: Behaviour) -> Sequence[str] | None:
    """Return the text that the directives `pieces` and `size` request, if any."""
    if behaviour.size is None:
        return None if behaviour.pieces is None else _numbers(behaviour.pieces)
    parts = min(behaviour.size, 1 if behaviour.pieces is None else behaviour.pieces)
    if not parts:
        return []
    each, remainder = divmod(behaviour.size, parts)
    return ["x" * each] * (parts - 1) + ["x" * (each + remainder)]


@lru_cache(maxsize=8)
def _numbers(count: int) -> tuple[str, ...]:
    """Return '1', ' 2', ' 3' …, so that lost, duplicate and misplaced chunks are obvious."""
    return tuple(f" {number}" if number > 1 else "1" for number in range(1, count + 1))


def _reasoning(body: dict[str, Any]) -> Sequence[str]:
    effort = body.get("reasoning_effort", "none")
    if effort == "none":
        return ()
    words = len(text_of(_last_user_message(body).get("content")).split())
    return tokens.split(f"Thinking with {effort} effort: {words} words came in, and I shall repeat them.")


def _json_text(body: dict[str, Any]) -> str | None:
    """Return the JSON text that `response_format` requests. If it requests prose, return None."""
    form = body.get("response_format", {})
    match form.get("type", "text"):
        case "text":
            return None
        case "json_object":
            value: Any = {"you_said": text_of(_last_user_message(body).get("content"))}
        case "json_schema" if isinstance(form.get("json_schema"), dict):
            value = _schema_instance(form["json_schema"])
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


def _schema_instance(form: dict[str, Any]) -> Any:
    try:
        return instance(form.get("schema") or {"type": "object"})
    except NoInstanceError as error:
        raise ApiError(
            400,
            f"Invalid schema for response_format '{form.get('name', '')}': {error}.",
            param="response_format",
        ) from error


def _prose(body: dict[str, Any], index: int) -> str:
    """Return prose. Choices after the first carry their number so that they differ."""
    results = _tool_results(body["messages"])
    if results:
        remark = f"The tool says: {'; '.join(map(_shorten, results))}"
    else:
        remark = _repeat(_last_user_message(body).get("content"))
    return f"{remark} ({index + 1})" if index else remark


def _repeat(content: Any) -> str:
    text, attached = text_of(content).strip(), _describe_attachments(content)
    if not text:
        return f"You sent {attached}" if attached else "You said nothing"
    return f"You said: {_shorten(text)}" + (f" … and {attached}" if attached else "")


def _shorten(text: str) -> str:
    if len(text) <= _LONGEST_ECHO_CHARACTERS:
        return text
    return f"{text[:_LONGEST_ECHO_CHARACTERS].rstrip()} … ({len(text):,} characters)"


def _tool_results(messages: list[dict[str, Any]]) -> list[str]:
    """Return the tool results at the end of the conversation."""
    results: list[str] = []
    for message in reversed(messages):
        if message["role"] not in ("tool", "function"):
            break
        results.insert(0, text_of(message.get("content")))
    return results


def _last_user_message(body: dict[str, Any]) -> dict[str, Any]:
    return next((message for message in reversed(body["messages"]) if message["role"] == "user"), {})


def text_of(content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return " ".join(part["text"] for part in parts if part["type"] == "text" and isinstance(part.get("text"), str))


def _describe_attachments(content: Any) -> str:
    """Return a text such as '1 image, 2 files', in order of appearance."""
    counts = _count_attachments(content)
    return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())


def _count_attachments(content: Any) -> Counter[str]:
    parts = content if isinstance(content, list) else ()
    kinds = [str(part["type"]) for part in parts if part["type"] not in ("text", "refusal")]
    return Counter(_ATTACHMENTS.get(kind, f"{kind} part") for kind in kinds)


def _input_tokens(message: dict[str, Any]) -> int:
    content = message.get("content")
    attachments = _count_attachments(content).total() * _TOKENS_PER_ATTACHMENT
    return _TOKENS_PER_MESSAGE + tokens.count(text_of(content)) + attachments


def _output_tokens(choice: Choice) -> int:
    called = [*choice.tool_calls, *([choice.function_call] if choice.function_call else [])]
    return len(choice.content or ()) + sum(tokens.count(call.name) + tokens.count(call.text) for call in called)
