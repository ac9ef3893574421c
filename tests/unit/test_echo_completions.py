"""The embedded upstream: the content of its responses, whole and streamed."""

import json
from typing import Any

import pytest

from support.echo_caller import (
    CLOCK,
    PNG,
    SQL,
    WEATHER,
    Caller,
    deltas,
    joined,
)


async def test_a_unary_response_has_all_fields(caller: Caller) -> None:
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


async def test_a_stream_has_role_contents_finish_usage_done_in_this_order(caller: Caller) -> None:
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


async def test_a_stream_without_the_option_has_no_usage(caller: Caller) -> None:
    events = await caller.stream()
    assert all("usage" not in event for event in events[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_gives_the_same_bytes(caller: Caller, stream: bool) -> None:
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
async def test_both_modes_echo_the_last_user_message(caller: Caller, text: Any, said: str) -> None:
    assert (await caller.choice(text))["message"]["content"] == said
    assert joined(await caller.stream(text=text)) == said


async def test_the_last_of_several_messages_is_echoed(caller: Caller) -> None:
    roles = ("developer", "system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} {index}"} for index, role in enumerate(roles)]
    assert (await caller.choice(messages=messages))["message"]["content"] == "You said: user 4"


async def test_several_choices_alternate_and_differ(caller: Caller) -> None:
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
async def test_stop_and_limits_cut_the_content(caller: Caller, fields: dict[str, Any], said: str, reason: str) -> None:
    choice = await caller.choice(**fields)
    assert (choice["message"]["content"], choice["finish_reason"]) == (said, reason)
    events = await caller.stream(**fields)
    assert (joined(events), events[-2]["choices"][0]["finish_reason"]) == (said, reason)


async def test_reasoning_precedes_the_content_and_is_counted(caller: Caller) -> None:
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
    # Ids derive from the request, and this one has `stream`.
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
