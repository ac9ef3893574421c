"""echo, the embedded upstream: real requests over loopback, one table for each thing it does."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc_echo import DIRECTIVES, Echo, answers, directives, errors, validation, wire
from chatrpc_echo.instances import NoInstanceError, instance
from chatrpc_echo.pieces import cut_before, split

PATIENCE_SECONDS = 5.0
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
SQL = {"type": "custom", "custom": {"name": "sql"}}
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


class Caller:
    """A client of one Echo."""

    def __init__(self, echo: Echo, session: aiohttp.ClientSession) -> None:
        self.echo = echo
        self._session = session

    def post(self, model: str = "echo", text: Any = "hello there", **fields: Any) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return self._session.post(f"{self.echo.base_url}/chat/completions", json=body)

    def send(self, data: bytes, path: str = "/chat/completions", **options: Any) -> Any:
        return self._session.post(self.echo.base_url + path, data=data, **options)

    def get(self, url: str, **options: Any) -> Any:
        return self._session.get(url, **options)

    async def unary(self, model: str = "echo", text: Any = "hello there", **fields: Any) -> tuple[int, Any]:
        async with self.post(model, text, **fields) as response:
            return response.status, await response.json(content_type=None)

    async def choice(self, text: Any = "hello there", **fields: Any) -> Any:
        status, body = await self.unary(text=text, **fields)
        assert status == 200, body
        return body["choices"][0]

    async def stream(self, model: str = "echo", text: Any = "hello there", **fields: Any) -> list[Any]:
        """The events; '[DONE]' as text, the others parsed."""
        async with self.post(model, text, stream=True, **fields) as response:
            assert response.status == 200, await response.text()
            return parsed(await response.read())


def parsed(raw: bytes | bytearray) -> list[Any]:
    events = raw.decode().split("\n\n")
    assert events.pop() == ""
    payloads = [event.removeprefix("data: ") for event in events]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def deltas(events: list[Any], index: int = 0) -> list[Any]:
    choices = [choice for event in events if event != "[DONE]" for choice in event.get("choices", [])]
    return [choice["delta"] for choice in choices if choice["index"] == index]


def joined(events: list[Any], field: str = "content", index: int = 0) -> str:
    return "".join(delta.get(field) or "" for delta in deltas(events, index))


async def gather(response: aiohttp.ClientResponse, received: bytearray) -> None:
    """Adds what arrives to `received`, so that it is still there when the reading fails."""
    async for data in response.content.iter_any():
        received += data


@asynccontextmanager
async def calling(**options: Any) -> AsyncIterator[Caller]:
    async with Echo(**options) as echo, aiohttp.ClientSession() as session:
        yield Caller(echo, session)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with calling() as caller:
        yield caller


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), PATIENCE_SECONDS)


# --- What a plain answer looks like ---


async def test_unary_answer_has_the_whole_shape(caller: Caller) -> None:
    status, body = await caller.unary()
    assert status == 200
    assert body["id"].startswith("chatcmpl-")
    assert {**body, "id": ""} == {
        "id": "",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "echo",
        "system_fingerprint": "fp_echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "You said: hello there", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 4,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def test_stream_has_role_contents_finish_usage_done_in_this_order(caller: Caller) -> None:
    events = await caller.stream(stream_options={"include_usage": True})
    *chunks, usage, done = events
    assert done == "[DONE]"
    assert deltas(chunks) == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "You"},
        {"content": " said:"},
        {"content": " hello"},
        {"content": " there"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["stop"]
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert len({event["id"] for event in (*chunks, usage)}) == 1


async def test_stream_without_the_option_never_speaks_of_usage(caller: Caller) -> None:
    events = await caller.stream()
    assert all("usage" not in event for event in events[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_same_request_same_bytes(caller: Caller, stream: bool) -> None:
    answers = []
    for _ in range(2):
        async with caller.post(stream=stream, tools=[WEATHER], n=2) as response:
            answers.append((dict(response.headers), await response.read()))
    assert answers[0] == answers[1]
    assert not {"Server", "Date"} & answers[0][0].keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("hi", "You said: hi", id="short"),
        pytest.param("你好 世界 👩‍👩‍👧 naïve", "You said: 你好 世界 👩‍👩‍👧 naïve", id="unicode"),
        pytest.param("w" * 1000, f"You said: {'w' * 400} … (1,000 characters)", id="long"),
        pytest.param("", "You said nothing", id="empty"),
        pytest.param([{"type": "text", "text": "what is it?"}, PNG], "You said: what is it? … and 1 image", id="image"),
        pytest.param([PNG, PNG, {"type": "file", "file": {}}], "You sent 2 images, 1 file", id="no text"),
        pytest.param([{"type": "input_audio"}, {"type": "odd"}], "You sent 1 audio clip, 1 odd part", id="odd part"),
    ],
)
async def test_content_echoes_the_last_user_message_alike_in_both_modes(caller: Caller, text: Any, said: str) -> None:
    assert (await caller.choice(text))["message"]["content"] == said
    assert joined(await caller.stream(text=text)) == said


async def test_echoes_the_last_of_several_messages(caller: Caller) -> None:
    roles = ("developer", "system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} {index}"} for index, role in enumerate(roles)]
    assert (await caller.choice(messages=messages))["message"]["content"] == "You said: user 4"


async def test_several_choices_alternate_and_can_be_told_apart(caller: Caller) -> None:
    _, body = await caller.unary(n=3)
    said = [choice["message"]["content"] for choice in body["choices"]]
    assert said == ["You said: hello there", "You said: hello there (2)", "You said: hello there (3)"]
    events = await caller.stream(n=3)
    assert [joined(events, index=index) for index in range(3)] == said
    assert [event["choices"][0]["index"] for event in events[3:9]] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "said", "reason"),
    [
        pytest.param({"stop": "there"}, "You said: hello ", "stop", id="stop text"),
        pytest.param({"stop": ["zzz", "lo th"]}, "You said: hel", "stop", id="stop array, across pieces"),
        pytest.param({"stop": ["You"]}, "", "stop", id="stop at once"),
        pytest.param({"stop": "zzz"}, "You said: hello there", "stop", id="stop that never comes"),
        pytest.param({"max_tokens": 2}, "You said:", "length", id="max_tokens"),
        pytest.param({"max_completion_tokens": 3, "max_tokens": 1}, "You said: hello", "length", id="newer limit wins"),
        pytest.param({"max_tokens": 4}, "You said: hello there", "stop", id="limit just enough"),
        pytest.param({"max_tokens": 1, "stop": "hello"}, "You", "length", id="limit before stop"),
        pytest.param({"max_tokens": 9, "stop": "hello"}, "You said: ", "stop", id="stop before limit"),
        pytest.param(
            {"seed": 7, "user": "u", "temperature": 2, "top_p": 0.5}, "You said: hello there", "stop", id="ignored"
        ),
    ],
)
async def test_stop_and_limits_cut_the_answer(caller: Caller, fields: dict[str, Any], said: str, reason: str) -> None:
    choice = await caller.choice(**fields)
    assert (choice["message"]["content"], choice["finish_reason"]) == (said, reason)
    events = await caller.stream(**fields)
    assert (joined(events), events[-2]["choices"][0]["finish_reason"]) == (said, reason)


async def test_reasoning_comes_before_the_content_and_is_counted(caller: Caller) -> None:
    _, body = await caller.unary(reasoning_effort="low")
    thought = body["choices"][0]["message"]["reasoning_content"]
    assert thought.startswith("Thinking with low effort: 2 words")
    reasoning_tokens = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert body["usage"]["completion_tokens"] == reasoning_tokens + 4
    events = await caller.stream(reasoning_effort="low")
    kinds = [next(iter(delta)) for delta in deltas(events)[1:-1]]
    assert kinds == ["reasoning_content"] * reasoning_tokens + ["content"] * 4
    assert joined(events, "reasoning_content") == thought
    assert "reasoning_content" not in (await caller.choice(reasoning_effort="none"))["message"]
    cut = await caller.choice(reasoning_effort="low", max_completion_tokens=reasoning_tokens + 1)
    assert (cut["message"]["content"], cut["finish_reason"]) == ("You", "length")


async def test_logprobs_for_each_token_with_alternatives(caller: Caller) -> None:
    whole = (await caller.choice("é", logprobs=True, top_logprobs=2))["logprobs"]
    assert [token["token"] for token in whole["content"]] == ["You", " said:", " é"]
    assert whole["content"][2]["bytes"] == list(" é".encode())
    for token in whole["content"]:
        first, second = token["top_logprobs"]
        assert (first["token"], first["logprob"]) == (token["token"], token["logprob"])
        assert second["logprob"] < first["logprob"] < 0
    events = await caller.stream(text="é", logprobs=True, top_logprobs=2)
    streamed = [choice["logprobs"]["content"] for e in events[1:-2] for choice in e["choices"]]
    assert [token for tokens in streamed for token in tokens] == whole["content"]
    assert (await caller.choice(logprobs=True))["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("form", "value"),
    [
        pytest.param({"type": "text"}, None, id="text"),
        pytest.param({"type": "json_object"}, {"you_said": "hello there"}, id="json_object"),
        pytest.param(
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"type": "integer"}}}}},
            {"a": 0},
            id="json_schema",
        ),
        pytest.param({"type": "json_schema", "json_schema": {"name": "x"}}, {}, id="json_schema without schema"),
    ],
)
async def test_response_format(caller: Caller, form: dict[str, Any], value: Any) -> None:
    content = (await caller.choice(response_format=form))["message"]["content"]
    assert joined(await caller.stream(response_format=form)) == content
    assert content == "You said: hello there" if value is None else json.loads(content) == value


# --- Tools ---


@pytest.mark.parametrize(
    ("text", "fields", "called"),
    [
        pytest.param("hi", {"tools": [WEATHER, CLOCK]}, ["get_weather"], id="first"),
        pytest.param("ask the clock!", {"tools": [WEATHER, CLOCK]}, ["clock"], id="named in the question"),
        pytest.param(
            "hi", {"tools": [WEATHER, CLOCK], "parallel_tool_calls": True}, ["get_weather", "clock"], id="all"
        ),
        pytest.param(
            "hi", {"tools": [WEATHER, CLOCK], "parallel_tool_calls": False}, ["get_weather"], id="not parallel"
        ),
        pytest.param(
            "clock", {"tools": [WEATHER, CLOCK], "parallel_tool_calls": True}, ["clock"], id="all that are named"
        ),
        pytest.param(
            "hi",
            {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
            ["clock"],
            id="tool_choice function",
        ),
        pytest.param(
            "hi",
            {"tools": [WEATHER, SQL], "tool_choice": {"type": "custom", "custom": {"name": "sql"}}},
            ["sql"],
            id="tool_choice custom",
        ),
        pytest.param(
            "hi",
            {
                "tools": [WEATHER, CLOCK],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CLOCK]}},
            },
            ["clock"],
            id="tool_choice allowed_tools",
        ),
        pytest.param("hi", {"tools": [WEATHER], "tool_choice": "required"}, ["get_weather"], id="required"),
        pytest.param("hi", {"tools": [WEATHER], "tool_choice": "none"}, [], id="none"),
        pytest.param("hi", {"tools": []}, [], id="no tools"),
    ],
)
async def test_which_tools_are_called(caller: Caller, text: str, fields: dict[str, Any], called: list[str]) -> None:
    choice = await caller.choice(text, **fields)
    calls = choice["message"].get("tool_calls", [])
    assert [call[call["type"]]["name"] for call in calls] == called
    assert choice["finish_reason"] == ("tool_calls" if called else "stop")
    assert (choice["message"]["content"] is None) == bool(called)
    assert len({call["id"] for call in calls}) == len(calls)


async def test_tool_calls_are_streamed_in_several_deltas(caller: Caller) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER, CLOCK, SQL], "parallel_tool_calls": True}
    whole = (await caller.choice("select 1", **fields))["message"]["tool_calls"]
    assert json.loads(whole[0]["function"]["arguments"]) == {"city": "text", "unit": "C"}
    assert whole[1]["function"] == {"name": "clock", "arguments": "{}"}
    assert whole[2]["custom"] == {"name": "sql", "input": "select 1"}
    events = await caller.stream(text="select 1", **fields)
    gathered: dict[int, dict[str, Any]] = {}
    counts: dict[int, int] = {}
    for delta in deltas(events)[1:-1]:
        (call,) = delta["tool_calls"]
        index = call.pop("index")
        counts[index] = counts.get(index, 0) + 1
        if index not in gathered:
            gathered[index] = call
            continue
        (kind,) = call
        ((field, text),) = call[kind].items()
        gathered[index][kind][field] += text
    # Ids are made of the request, and this one says `stream`.
    assert [{**gathered[index], "id": ""} for index in range(3)] == [{**call, "id": ""} for call in whole]
    assert min(counts.values()) >= 3
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_tool_results_are_quoted(caller: Caller) -> None:
    messages = [
        {"role": "user", "content": "weather and time?"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
    ]
    choice = await caller.choice(messages=messages, tools=[WEATHER])
    assert choice["message"]["content"] == "The tool says: sunny; noon"


async def test_legacy_functions(caller: Caller) -> None:
    functions = [WEATHER["function"], CLOCK["function"]]
    choice = await caller.choice(functions=functions, function_call={"name": "clock"})
    assert choice["message"]["function_call"] == {"name": "clock", "arguments": "{}"}
    assert choice["finish_reason"] == "function_call"
    events = await caller.stream(functions=functions)
    calls = [delta["function_call"] for delta in deltas(events)[1:-1]]
    assert calls[0] == {"name": "get_weather", "arguments": ""}
    assert json.loads("".join(call["arguments"] for call in calls)) == {"city": "text", "unit": "C"}
    assert (await caller.choice(functions=functions, function_call="none"))["finish_reason"] == "stop"


# --- Routes, key, headers ---


@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_routes_with_and_without_v1(caller: Caller, prefix: str) -> None:
    origin = caller.echo.base_url.removesuffix("/v1")
    async with caller.get(f"{origin}{prefix}/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["echo"]
    data = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "x"}]}).encode()
    async with caller.send(data, f"/..{prefix}/chat/completions") as response:
        assert response.status == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/", "/v1/chat/completions"])
async def test_other_routes_and_methods_are_404(caller: Caller, path: str) -> None:
    async with caller.get(caller.echo.base_url.removesuffix("/v1") + path) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (404, "unknown_url")
        assert error["message"] == f"Invalid URL (GET {path})"


@pytest.mark.parametrize(
    ("authorization", "status", "quoted"),
    [
        pytest.param("Bearer right-key-123456", 200, "", id="right"),
        pytest.param("Bearer wrong-key-123456", 401, "provided: wron" + "*" * 8 + "3456.", id="wrong"),
        pytest.param("Bearer short", 401, "provided: *****.", id="short"),
        pytest.param("Basic right-key-123456", 401, "You didn't provide an API key", id="other scheme"),
        pytest.param(None, 401, "You didn't provide an API key", id="missing"),
    ],
)
async def test_api_key(authorization: str | None, status: int, quoted: str) -> None:
    async with calling(api_key="right-key-123456") as caller:
        headers = {"authorization": authorization} if authorization else {}
        async with caller.get(f"{caller.echo.base_url}/models", headers=headers) as response:
            assert response.status == status
            body = await response.json()
            assert status == 200 or (body["error"]["code"] == "invalid_api_key" and quoted in body["error"]["message"])


@pytest.mark.parametrize(
    ("sent", "returned"),
    [("abc-1", "abc-1"), ("", "req_"), ("x" * 600, "req_"), ("ü", "req_")],
    ids=["given", "none", "too long", "not ascii"],
)
async def test_request_id_and_rate_limit_headers(caller: Caller, sent: str, returned: str) -> None:
    async with caller.get(f"{caller.echo.base_url}/models", headers={"x-request-id": sent}) as response:
        assert response.headers["x-request-id"].startswith(returned)
        assert response.headers["x-ratelimit-limit-requests"] == "10000"
        assert response.headers["x-ratelimit-remaining-requests"] == "9999"


async def test_requests_are_recorded(caller: Caller) -> None:
    await caller.unary(text="one")
    async with caller.send(b"{", headers={"X-Thing": "Two"}):
        pass
    first, second = caller.echo.requests
    assert (first.method, first.path, first.body["messages"][0]["content"]) == ("POST", "/v1/chat/completions", "one")
    assert (second.headers["x-thing"], second.body) == ("Two", None)
    assert await caller.echo.arrived(2) is second
    for each in caller.echo.requests:
        await soon(each.finished)
        assert not each.disconnected.is_set()


# --- Refusals ---

USER = {"role": "user", "content": "x"}
INVALID = "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        pytest.param("{", None, None, "We could not parse the JSON body", id="not JSON"),
        pytest.param([], "request body", "invalid_type", "an object, but got an array", id="not an object"),
        pytest.param({"messages": [USER]}, "model", "missing_required_parameter", "'model'", id="no model"),
        pytest.param({"model": "echo"}, "messages", "missing_required_parameter", "'messages'", id="no messages"),
        pytest.param({"model": "echo", "messages": []}, "messages", "empty_array", "empty array", id="empty messages"),
        pytest.param(
            {"model": "echo", "messages": "x"}, "messages", "invalid_type", "got a string", id="messages a text"
        ),
        pytest.param({"model": 5, "messages": [USER]}, "model", "invalid_type", "got an integer", id="model a number"),
        pytest.param(
            {"model": "echo", "messages": [{"role": "doctor", "content": "x"}]},
            None,
            None,
            "'doctor' is not one of ['system', 'assistant', 'user', 'function', 'tool', 'developer'] "
            "- 'messages.0.role'",
            id="role",
        ),
        pytest.param(
            {"model": "echo", "messages": [USER, {"content": "x"}]},
            "messages[1].role",
            "missing_required_parameter",
            "'messages[1].role'",
            id="no role",
        ),
        pytest.param(
            {"model": "echo", "messages": [{"role": "user"}]},
            "messages[0].content",
            None,
            "expected a string, got null",
            id="no content",
        ),
    ],
)
async def test_malformed_requests(caller: Caller, body: Any, param: str | None, code: str | None, message: str) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    async with caller.send(data) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert (error["type"], error["param"], error["code"]) == (INVALID, param, code)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}, "response_format", None),
        ({"tools": ["get_weather"]}, "tools[0]", "invalid_type"),
        ({"tools": [{}]}, "tools[0].type", "missing_required_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_required_parameter"),
        ({"tools": [{"type": "robot"}]}, "tools[0].type", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}]},
            "tools[0].function.parameters",
            "invalid_function_parameters",
        ),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice", None),
    ],
    ids=str,
)
async def test_refused_fields(caller: Caller, fields: dict[str, Any], param: str, code: str | None) -> None:
    status, body = await caller.unary(**fields)
    assert (status, body["error"]["type"]) == (400, INVALID)
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)


async def test_null_fields_count_as_absent(caller: Caller) -> None:
    names = (
        "n",
        "stop",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "max_tokens",
        "logprobs",
        "response_format",
    )
    assert (await caller.choice(**dict.fromkeys(names)))["message"]["content"] == "You said: hello there"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "function", "custom", "json_schema"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["type", "function", "name", "parameters", "json_schema", "schema", "custom", "items", "text"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
FIELDS = (
    "content",
    "tools",
    "tool_choice",
    "response_format",
    "functions",
    "function_call",
    "stream_options",
    "stop",
    "n",
)


@settings(max_examples=150, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, min_size=1, max_size=3))
def test_whatever_is_sent_is_answered_or_refused(fields: dict[str, Any]) -> None:
    content = fields.pop("content", "x")
    raw = json.dumps({"model": "echo", "messages": [{"role": "user", "content": content}], **fields}).encode()
    refusal = None
    try:
        answer = answers.compose(validation.validated(raw), "0", directives.Behaviour())
    except errors.ApiError as error:
        refusal = error.status
    else:
        whole = json.loads(wire.unary(answer, with_usage=True))
        streamed = parsed(b"".join(wire.Events(answer, with_usage=True).deltas()))
        assert joined(streamed) == (whole["choices"][0]["message"]["content"] or "")
    assert refusal in (None, 400)


# --- Behaviour on request: errors ---


@pytest.mark.parametrize(
    ("model", "status", "kind", "code", "message"),
    [
        ("echo:status=400", 400, INVALID, None, "Bad Request."),
        ("echo:status=401", 401, INVALID, "invalid_api_key", "Incorrect API key provided"),
        ("echo:status=403", 403, "request_forbidden", "unsupported_country_region_territory", "not supported"),
        ("echo:status=404", 404, INVALID, "model_not_found", "The model `echo:status=404` does not exist"),
        ("echo:status=418", 418, INVALID, None, "Teapot"),
        ("echo:status=429", 429, "requests", "rate_limit_exceeded", "Rate limit reached for `echo:status=429`"),
        ("echo:status=429,code=insufficient_quota", 429, "insufficient_quota", "insufficient_quota", "current quota"),
        ("echo:code=insufficient_quota", 429, "insufficient_quota", "insufficient_quota", "current quota"),
        ("echo:code=context_length_exceeded", 400, INVALID, "context_length_exceeded", "maximum context length"),
        ("echo:code=odd_one", 400, INVALID, "odd_one", "Bad Request."),
        ("echo:status=500", 500, "server_error", None, "The server had an error"),
        ("echo:status=502,code=502", 502, "server_error", 502, "Bad Gateway."),
        ("echo:status=503,message=Down%2C sorry", 503, "server_error", None, "Down, sorry"),
        ("echo:status=529", 529, "server_error", None, "Status 529."),
        ("gpt-9", 404, INVALID, "model_not_found", "The model `gpt-9` does not exist or you do not have access to it."),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_on_request(
    caller: Caller, model: str, status: int, kind: str, code: Any, message: str, stream: bool
) -> None:
    got, body = await caller.unary(model, stream=stream)
    error = body["error"]
    assert (got, error["type"], error["code"], error["param"]) == (status, kind, code, None)
    assert message in error["message"]


async def test_retry_headers(caller: Caller) -> None:
    async with caller.post("echo:status=429,retry_after=2,retry_after_ms=1500") as response:
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("2", "1500")


@pytest.mark.parametrize("fault", ["status=503", "truncate=1", "html", "error=0"])
async def test_times_limits_a_fault_for_the_same_model_and_user(caller: Caller, fault: str) -> None:
    model = f"echo:{fault},times=2,pieces=3"
    said = []
    for user in ("a", "b", "a", "a"):
        async with caller.post(model, user=user) as response:
            said.append("1 2 3" in await response.text() and response.status == 200)
    assert said == [False, False, False, True]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("echo:statsu=5", "unknown directive 'statsu'"),
        ("echo:status", "bad value for directive 'status'"),
        ("echo:status=abc", "bad value for directive 'status': expected an integer from 400 to 599, got 'abc'"),
        ("echo:status=700", "bad value for directive 'status'"),
        ("echo:pieces=-1", "bad value for directive 'pieces'"),
        ("echo:delay=nan", "bad value for directive 'delay'"),
        ("echo:pace=x", "bad value for directive 'pace'"),
        ("echo:html=yes", "directive 'html' takes no value"),
        ("echo:delay=0,delay=0", "directive 'delay' is given twice"),
    ],
)
async def test_bad_directives_are_named_and_the_valid_ones_listed(caller: Caller, model: str, named: str) -> None:
    status, body = await caller.unary(model)
    assert (status, body["error"]["param"]) == (400, "model")
    assert named in body["error"]["message"]
    assert all(name in body["error"]["message"] for name in DIRECTIVES)


@pytest.mark.parametrize("model", ["echo", "echo-large", "echo:", "echo: pieces=4 , no_done"])
async def test_names_that_begin_with_echo_answer_under_their_own_name(caller: Caller, model: str) -> None:
    status, body = await caller.unary(model)
    assert (status, body["model"]) == (200, model)


# --- Behaviour on request: shape, time, faults ---


async def test_pieces_and_size(caller: Caller) -> None:
    assert joined(await caller.stream("echo:pieces=100")) == " ".join(map(str, range(1, 101)))
    assert len(await caller.stream("echo:pieces=100")) == 103
    assert len(await caller.stream("echo:pieces=0")) == 3
    assert (await caller.unary("echo:pieces=5", max_tokens=3))[1]["choices"][0]["message"]["content"] == "1 2 3"
    for model, sizes in {
        "echo:size=100000": [100_000],
        "echo:size=10,pieces=3": [3, 3, 4],
        "echo:size=2,pieces=3": [1, 1],
        "echo:size=0": [],
    }.items():
        assert [len(delta["content"]) for delta in deltas(await caller.stream(model))[1:-1]] == sizes
    assert len((await caller.unary("echo:size=5000"))[1]["choices"][0]["message"]["content"]) == 5000


@pytest.mark.parametrize("stream", [False, True])
async def test_html(caller: Caller, stream: bool) -> None:
    async with caller.post("echo:html", stream=stream) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert (await response.text()).startswith("<!DOCTYPE html>")


async def test_usage_and_done_can_be_missing_or_refused(caller: Caller) -> None:
    options = {"include_usage": True}
    assert "usage" not in (await caller.unary("echo:no_usage"))[1]
    events = await caller.stream("echo:no_usage", stream_options=options)
    assert events[-1] == "[DONE]"
    assert all("usage" not in event for event in events[:-1])
    events = await caller.stream("echo:no_done", stream_options=options)
    assert events[-1]["usage"]["total_tokens"] > 0
    status, body = await caller.unary("echo:reject_usage", stream=True, stream_options=options)
    assert (status, body["error"]["param"], body["error"]["type"]) == (400, "stream_options", INVALID)
    assert joined(await caller.stream("echo:reject_usage")) == "You said: hello there"


@pytest.mark.parametrize(
    ("after", "seen"), [(0, None), (1, "You"), (3, "You said: hello"), (99, "You said: hello there")]
)
async def test_stream_truncated_cleanly(caller: Caller, after: int, seen: str | None) -> None:
    events = await caller.stream(f"echo:truncate={after}")
    assert (joined(events) if events else None) == seen
    assert all(event["choices"][0]["finish_reason"] is None for event in events)


@pytest.mark.parametrize(("after", "seen"), [(0, None), (2, "You said:"), (99, "You said: hello there")])
async def test_error_in_the_stream(caller: Caller, after: int, seen: str | None) -> None:
    *events, error = await caller.stream(f"echo:error={after},code=rate_limit_exceeded")
    assert (joined(events) if events else None) == seen
    assert (error["error"]["code"], error["error"]["type"]) == ("rate_limit_exceeded", "requests")


@pytest.mark.parametrize(("after", "seen"), [(0, 0), (1, 2), (3, 4)])
async def test_stream_reset(caller: Caller, after: int, seen: int) -> None:
    received = bytearray()
    async with caller.post(f"echo:reset={after}", stream=True) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await gather(response, received)
    assert len(parsed(received) if received else []) == seen
    await soon(caller.echo.requests[0].finished)


async def test_unary_faults(caller: Caller) -> None:
    async with caller.post("echo:truncate=1") as response:
        assert response.status == 200
        with pytest.raises(json.JSONDecodeError):
            await response.json()
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await caller.unary("echo:reset=0")
    async with caller.post("echo:reset=1") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    status, body = await caller.unary("echo:error=0,code=502")
    assert (status, body["error"]["code"]) == (200, 502)


@pytest.mark.parametrize("stream", [False, True])
async def test_delay_is_before_the_headers_and_first_after_them(caller: Caller, stream: bool) -> None:
    async with caller.post("echo:first=60", stream=stream) as response:
        assert response.status == 200
        response.close()
    start = time.monotonic()
    async with caller.post("echo:delay=0.05,first=0.05", stream=stream) as response:
        assert time.monotonic() - start >= 0.05
        await response.read()
    assert time.monotonic() - start >= 0.1


async def arrivals(caller: Caller, model: str) -> list[float]:
    """When each read of the stream arrived, in seconds since the headers."""
    async with caller.post(model, stream=True) as response:
        start = time.monotonic()
        return [time.monotonic() - start async for _ in response.content.iter_any()]


@pytest.mark.parametrize(("pace_seconds", "model"), [(0.02, "echo:pieces=4"), (60.0, "echo:pieces=4,pace=0.02")])
async def test_pace_of_constructor_gives_way_to_the_directive(pace_seconds: float, model: str) -> None:
    async with calling(pace_seconds=pace_seconds) as caller:
        assert (await arrivals(caller, model))[-1] >= 0.07


@pytest.mark.parametrize("pieces", [1, 2, 4])
async def test_gap_comes_however_short_the_answer(caller: Caller, pieces: int) -> None:
    times = await arrivals(caller, f"echo:pieces={pieces},gap=0.1")
    assert times[-1] >= 0.09


# --- Callers that leave, servers that stop ---


@pytest.mark.parametrize(
    ("model", "stream"),
    [
        pytest.param("echo:delay=60", False, id="before the headers, unary"),
        pytest.param("echo:delay=60", True, id="before the headers, stream"),
        pytest.param("echo:first=60", False, id="before the body"),
        pytest.param("echo:first=60", True, id="before the first chunk"),
        pytest.param("echo:pace=60", True, id="between chunks"),
        pytest.param("echo:gap=60", True, id="in the gap"),
        pytest.param("echo:pieces=1000000", True, id="while writing without pause"),
        pytest.param("echo:size=20000000", True, id="in one huge write"),
    ],
)
async def test_a_caller_that_leaves_is_noticed(caller: Caller, model: str, stream: bool) -> None:
    async def call() -> None:
        async with caller.post(model, stream=stream) as response:
            await asyncio.Event().wait()
            response.close()

    task = asyncio.create_task(call())
    received = await asyncio.wait_for(caller.echo.arrived(), PATIENCE_SECONDS)
    assert not received.disconnected.is_set()
    task.cancel()
    await soon(received.disconnected)
    assert not received.finished.is_set()


async def test_stop_ends_open_answers_within_a_second() -> None:
    echo = Echo()
    await echo.start()
    async with aiohttp.ClientSession() as session:
        caller = Caller(echo, session)
        silent = asyncio.create_task(caller.unary("echo:delay=60"))
        async with caller.post("echo:pace=60", stream=True) as response:
            await echo.arrived(2)
            start = time.monotonic()
            await echo.stop()
            assert time.monotonic() - start < 1
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        with pytest.raises(aiohttp.ClientError):
            await silent
    assert not any(each.disconnected.is_set() or each.finished.is_set() for each in echo.requests)


async def test_start_and_stop() -> None:
    echo = Echo()
    with pytest.raises(RuntimeError, match="not started"):
        _ = echo.base_url
    await echo.stop()
    async with echo:
        with pytest.raises(RuntimeError, match="already started"):
            await echo.start()
        port = int(echo.base_url.split(":")[2].removesuffix("/v1"))
        with pytest.raises(OSError, match="in use"):
            await Echo(port=port).start()
    async with echo:
        assert echo.base_url.startswith("http://127.0.0.1:")


# --- The pure parts that a request cannot show at a glance ---


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_pieces_join_to_the_text(text: str) -> None:
    pieces = split(text)
    assert "".join(pieces) == text
    assert all(pieces)


@given(st.text("ab "), st.text("ab ", min_size=1, max_size=3))
def test_cut_before_cuts_where_the_text_would_be_cut(text: str, stop: str) -> None:
    kept = cut_before(split(text), [stop])
    assert ("".join(kept) if kept is not None else text) == text.split(stop)[0]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one two", ["one", " two"]),
        ("你好 世界", ["你", "好", " 世", "界"]),
        ("internationalisation", ["internationalisa", "tion"]),
        ("end \n", ["end", " \n"]),
        ("👩‍👩‍👧 ok", ["👩‍👩‍👧", " ok"]),
    ],
)
def test_pieces_are_wordish(text: str, pieces: list[str]) -> None:
    assert split(text) == pieces


NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": []}
TREE = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, "text"),
        (True, "text"),
        ({"type": "object"}, {}),
        ({"type": "null"}, None),
        ({"type": "boolean"}, False),
        ({"type": ["string", "null"]}, "text"),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": {"k": 1}}, {"k": 1}),
        ({"type": "string", "default": "d"}, "d"),
        ({"type": "string", "minLength": 6}, "text.."),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "format": "date"}, "2000-01-01"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "integer", "exclusiveMinimum": 3}, 4),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "integer", "minimum": 7, "multipleOf": 5}, 10),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "array"}, []),
        ({"type": "array", "items": {"type": "integer"}}, [0]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, [0, 0, 0]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, []),
        ({"prefixItems": [{"const": 1}, {"const": 2}]}, [1, 2]),
        ({"properties": {"a": {"type": "integer"}, "b": {}}}, {"a": 0, "b": "text"}),
        ({"properties": {"a": {}, "b": {"const": 1}}, "required": ["b"]}, {"b": 1}),
        ({"required": ["z"], "additionalProperties": {"type": "integer"}}, {"z": 0}),
        ({"properties": {"o": {"properties": {"p": {"type": "array", "items": {"enum": [1]}}}}}}, {"o": {"p": [1]}}),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}}, 1),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        ({"oneOf": [{"const": "x"}]}, "x"),
        (
            {
                "allOf": [
                    {"properties": {"a": {"const": 1}}, "required": ["a"]},
                    {"properties": {"b": {"const": 2}}, "required": ["b"]},
                ]
            },
            {"a": 1, "b": 2},
        ),
        (NODE, {}),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_instance_fits_the_schema(schema: Any, value: Any) -> None:
    assert instance(schema) == value


def test_instance_of_an_optional_recursion_ends() -> None:
    assert json.dumps(instance(TREE)).count("children") < 10


DOUBLING = {
    f"d{depth}": {"properties": {s: {"$ref": f"#/$defs/d{depth + 1}"} for s in "ab"}, "required": ["a", "b"]}
    for depth in range(30)
}


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(5, id="a number"),
        pytest.param({"properties": {"a": False}}, id="false"),
        pytest.param({"type": "thing"}, id="unknown type"),
        pytest.param({"$ref": "#"}, id="refers to itself"),
        pytest.param({"$ref": "#/nowhere"}, id="refers nowhere"),
        pytest.param({"$ref": "https://example.com/x"}, id="refers abroad"),
        pytest.param({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, id="endless"),
        pytest.param({"$ref": "#/$defs/d0", "$defs": {**DOUBLING, "d30": {}}}, id="huge"),
        pytest.param({"type": "array", "minItems": 10**9}, id="endless array"),
        pytest.param({"type": "string", "minLength": 10**9}, id="endless string"),
        pytest.param({"type": "integer", "minimum": 3, "maximum": 2}, id="contradiction"),
    ],
)
def test_schema_without_instance(schema: Any) -> None:
    with pytest.raises(NoInstanceError):
        instance(schema)
