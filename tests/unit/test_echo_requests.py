"""The embedded upstream: routes, key, headers, and the requests that it rejects."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc_echo import completions, directives, encoding, errors, validation
from support.echo_caller import CLOCK, INVALID, Caller, calling, joined, parsed, soon


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


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        pytest.param("{", None, None, "We could not parse the JSON body", id="not JSON"),
        pytest.param([], "request body", "invalid_type", "an object, but got an array", id="not an object"),
        pytest.param({"messages": [USER]}, "model", "missing_required_parameter", "'model'", id="no model"),
        pytest.param({"model": "echo"}, "messages", "missing_required_parameter", "'messages'", id="no messages"),
        pytest.param({"model": "echo", "messages": []}, "messages", "empty_array", "empty array", id="empty messages"),
        pytest.param(
            {"model": "echo", "messages": "x"}, "messages", "invalid_type", "got a string", id="messages is a string"
        ),
        pytest.param(
            {"model": 5, "messages": [USER]}, "model", "invalid_type", "got an integer", id="model is a number"
        ),
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
async def test_rejected_fields(caller: Caller, fields: dict[str, Any], param: str, code: str | None) -> None:
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
def test_any_request_gets_a_response_or_an_error(fields: dict[str, Any]) -> None:
    content = fields.pop("content", "x")
    raw = json.dumps({"model": "echo", "messages": [{"role": "user", "content": content}], **fields}).encode()
    refusal = None
    try:
        answer = completions.compose(validation.validate(raw), "0", directives.Behaviour())
    except errors.ApiError as error:
        refusal = error.status
    else:
        whole = json.loads(encoding.unary_body(answer, with_usage=True))
        streamed = parsed(b"".join(encoding.StreamEvents(answer, with_usage=True).deltas()))
        assert joined(streamed) == (whole["choices"][0]["message"]["content"] or "")
    assert refusal in (None, 400)
