"""Chunks that arrived together: which are merged, which never are, and that a reader gets the same."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from chatrpc.v1.chat_message_pb2 import Annotation, ContentPart
from chatrpc.v1.chat_response_pb2 import (
    AudioDelta,
    ChunkChoice,
    CustomToolCallDelta,
    Delta,
    FunctionCallDelta,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from chatrpc_server.core.openai.coalesce import coalesce
from chatrpc_server.core.upstream import ChatChunk

COMMON: dict[str, Any] = {
    "id": "i",
    "object": "o",
    "created": 1,
    "model": "m",
    "system_fingerprint": "f",
    "service_tier": "t",
}


def chunk(choice: ChunkChoice, **fields: Any) -> ChatChunk:
    return ChatChunk(**{**COMMON, "choices": [choice], **fields})


def delta(index: int = 0, **fields: Any) -> ChatChunk:
    return chunk(ChunkChoice(index=index, delta=Delta(**fields)))


def call(index: int = 0, arguments: str | None = None, name: str | None = None, **fields: Any) -> ToolCallDelta:
    return ToolCallDelta(index=index, function=FunctionCallDelta(name=name, arguments=arguments), **fields)


def logprobs(*tokens: str, refusal: Sequence[str] = (), **fields: Any) -> Logprobs:
    content = [TokenLogprob(token=token) for token in tokens]
    return Logprobs(content=content, refusal=[TokenLogprob(token=token) for token in refusal], **fields)


def text(content: str, **fields: Any) -> ChatChunk:
    return chunk(ChunkChoice(delta=Delta(content=content), **fields))


MERGED: dict[str, tuple[list[ChatChunk], ChatChunk]] = {
    "content": ([delta(content=letter) for letter in "abc"], delta(content="abc")),
    "the role and content": (
        [delta(role="assistant", content=""), delta(content="a"), delta(content="b")],
        delta(role="assistant", content="ab"),
    ),
    "the role and a call": (
        [delta(role="assistant", tool_calls=[call(0, "", "f", id="a")]), delta(tool_calls=[call(0, "{}")])],
        delta(role="assistant", tool_calls=[call(0, "{}", "f", id="a")]),
    ),
    "content, empty": ([delta(content="a"), delta(content=""), delta(content="b")], delta(content="ab")),
    "reasoning_content": ([delta(reasoning_content="a"), delta(reasoning_content="b")], delta(reasoning_content="ab")),
    "reasoning": ([delta(reasoning="a"), delta(reasoning="b")], delta(reasoning="ab")),
    "refusal": ([delta(refusal="a"), delta(refusal="b")], delta(refusal="ab")),
    "the same two texts": (
        [delta(content="a", reasoning="b"), delta(content="c", reasoning="d")],
        delta(content="ac", reasoning="bd"),
    ),
    "another choice than the first": ([delta(1, content="a"), delta(1, content="b")], delta(1, content="ab")),
    "arguments": (
        [delta(tool_calls=[call(1, "a")]), delta(tool_calls=[call(1, "b")])],
        delta(tool_calls=[call(1, "ab")]),
    ),
    "the beginning of a call and its arguments": (
        [delta(tool_calls=[call(0, "", "f", id="a", type="function")]), delta(tool_calls=[call(0, "{}")])],
        delta(tool_calls=[call(0, "{}", "f", id="a", type="function")]),
    ),
    "the beginning of a call that has no arguments yet": (
        [delta(tool_calls=[ToolCallDelta(id="a")]), delta(tool_calls=[call(0, "{}")])],
        delta(tool_calls=[call(0, "{}", id="a")]),
    ),
    "logprobs": (
        [text("a", logprobs=logprobs("a")), text("b", logprobs=logprobs("b", "c"))],
        text("ab", logprobs=logprobs("a", "b", "c")),
    ),
    "logprobs of a refusal": (
        [text("a", logprobs=logprobs(refusal=["a"])), text("b", logprobs=logprobs(refusal=["b"]))],
        text("ab", logprobs=logprobs(refusal=["a", "b"])),
    ),
    "padding": (
        [chunk(ChunkChoice(delta=Delta(content=letter)), obfuscation="x" + letter) for letter in "ab"],
        chunk(ChunkChoice(delta=Delta(content="ab")), obfuscation="xaxb"),
    ),
    "nothing and nothing": ([delta(), delta()], delta()),
    "no deltas": ([chunk(ChunkChoice())] * 2, chunk(ChunkChoice())),
}


@pytest.mark.parametrize(("chunks", "expected"), MERGED.values(), ids=MERGED)
def test_merged(chunks: list[ChatChunk], expected: ChatChunk) -> None:
    assert coalesce(copies(chunks)) == [expected]


TEXT = text("a")
ARGUMENTS = delta(tool_calls=[call(0, "a")])
APART: dict[str, tuple[ChatChunk, ChatChunk]] = {
    "id": (TEXT, chunk(TEXT.choices[0], id="j")),
    "object": (TEXT, chunk(TEXT.choices[0], object="p")),
    "created": (TEXT, chunk(TEXT.choices[0], created=2)),
    "model": (TEXT, chunk(TEXT.choices[0], model="n")),
    "no model": (TEXT, chunk(TEXT.choices[0], model="")),
    "system_fingerprint": (TEXT, chunk(TEXT.choices[0], system_fingerprint="g")),
    "service_tier": (TEXT, chunk(TEXT.choices[0], service_tier=None)),
    "index": (delta(1, content="a"), delta(2, content="a")),
    "kind of text": (TEXT, delta(reasoning="a")),
    "one more text": (TEXT, delta(content="a", refusal="b")),
    "no text": (TEXT, delta()),
    "no delta": (delta(), chunk(ChunkChoice())),
    "the role twice": (delta(role="assistant", content="a"), delta(role="assistant", content="a")),
    "the role, then no text": (delta(role="assistant", content="a"), delta(role="assistant")),
    "a role alone": (delta(role="assistant"), TEXT),
    "padding in one": (TEXT, chunk(TEXT.choices[0], obfuscation="x")),
    "logprobs in one": (TEXT, text("a", logprobs=logprobs("a"))),
    "extras of the logprobs of one": (
        text("a", logprobs=logprobs("a")),
        text("a", logprobs=logprobs("a", extra_json="{}")),
    ),
    "no choices": (ChatChunk(**COMMON), ChatChunk(**COMMON)),
    "two choices": (
        ChatChunk(**COMMON, choices=[*TEXT.choices, ChunkChoice(index=1)]),
        ChatChunk(**COMMON, choices=[*TEXT.choices, ChunkChoice(index=1)]),
    ),
    "arguments of another call": (ARGUMENTS, delta(tool_calls=[call(1, "a")])),
    "text after arguments": (ARGUMENTS, TEXT),
    "arguments after text": (TEXT, ARGUMENTS),
    "text beside arguments": (delta(content="a", tool_calls=[call(0, "a")]), ARGUMENTS),
    "two calls": (delta(tool_calls=[call(0, "a"), call(1, "a")]), delta(tool_calls=[call(0, "a"), call(1, "a")])),
    "one more call": (ARGUMENTS, delta(tool_calls=[call(0, "a"), call(1, "a")])),
    "two beginnings": (delta(tool_calls=[call(0, "a", "f", id="a")]), delta(tool_calls=[call(0, "a", "f", id="a")])),
}
AFTER_ARGUMENTS: dict[str, ToolCallDelta] = {
    "the id again": call(0, "a", id="a"),
    "the type again": call(0, "a", type="function"),
    "the name again": call(0, "a", "f"),
    "a call without arguments": call(0),
    "a call without function": ToolCallDelta(),
}
EQUAL: dict[str, ChatChunk] = {
    # Never merged, even with an equal chunk.
    "usage": chunk(TEXT.choices[0], usage=Usage(total_tokens=1)),
    "moderation": chunk(TEXT.choices[0], moderation_json="{}"),
    "extras": chunk(TEXT.choices[0], extra_json="{}"),
    "finish_reason": text("a", finish_reason="stop"),
    "extras of the choice": text("a", extra_json="{}"),
    "extras of the logprobs": text("a", logprobs=logprobs("a", extra_json="{}")),
    "function_call": delta(function_call=FunctionCallDelta(arguments="a")),
    "audio": delta(audio=AudioDelta(data="a")),
    "annotations": delta(annotations=[Annotation()]),
    "content parts": delta(content="a", content_parts=[ContentPart(text="a")]),
    "extras of the delta": delta(content="a", extra_json="{}"),
    "custom tools": delta(tool_calls=[ToolCallDelta(custom=CustomToolCallDelta(input="a"))]),
    "extras of the call": delta(tool_calls=[call(0, "a", extra_json="{}")]),
    "extras of the function": delta(tool_calls=[ToolCallDelta(function=FunctionCallDelta(extra_json="{}"))]),
}


@pytest.mark.parametrize(("one", "two"), APART.values(), ids=APART)
def test_not_merged(one: ChatChunk, two: ChatChunk) -> None:
    assert coalesce(copies([one, two])) == [one, two]
    assert coalesce(copies([two, one])) == [two, one]


@pytest.mark.parametrize("second", AFTER_ARGUMENTS.values(), ids=AFTER_ARGUMENTS)
def test_only_arguments_follow_arguments(second: ToolCallDelta) -> None:
    chunks = [ARGUMENTS, delta(tool_calls=[second])]
    assert coalesce(copies(chunks)) == chunks


@pytest.mark.parametrize("chunk", EQUAL.values(), ids=EQUAL)
def test_never_merged(chunk: ChatChunk) -> None:
    plain = ARGUMENTS if chunk.choices[0].delta.tool_calls else TEXT
    for chunks in ([chunk, chunk], [plain, chunk], [chunk, plain]):
        assert coalesce(copies(chunks)) == chunks


def test_a_role_is_only_at_the_beginning() -> None:
    chunks = [TEXT, delta(role="assistant", content="a")]
    assert coalesce(copies(chunks)) == chunks


def test_every_field_has_a_rule() -> None:
    """A new field must not be dropped when chunks are merged: it needs a row here."""
    rows = [*EQUAL.values(), *(chunk for pair in APART.values() for chunk in pair)]
    rows += [chunk for chunks, _ in MERGED.values() for chunk in chunks]
    seen = {field.full_name for chunk in rows for message in levels(chunk) for field, _ in message.ListFields()}
    kinds = (ChatChunk, ChunkChoice, Delta, ToolCallDelta, FunctionCallDelta, Logprobs)
    assert {field.full_name for kind in kinds for field in kind.DESCRIPTOR.fields} - seen == set()


def levels(chunk: ChatChunk) -> list[Message]:
    out: list[Message] = [chunk]
    for choice in chunk.choices:
        out += [choice, choice.delta, choice.logprobs, *choice.delta.tool_calls]
        out += [call.function for call in choice.delta.tool_calls]
    return out


@pytest.mark.parametrize("chunks", [[], [TEXT]], ids=["none", "one"])
def test_nothing_to_merge(chunks: list[ChatChunk]) -> None:
    assert coalesce(chunks) is chunks


def test_runs() -> None:
    letters = [*"ab", 0, *"cd", 1, *"ef"]
    chunks = [text("|", finish_reason="stop") if isinstance(x, int) else text(x) for x in letters]
    assert [chunk.choices[0].delta.content for chunk in coalesce(chunks)] == ["ab", "|", "cd", "|", "ef"]


def copies(chunks: Sequence[ChatChunk]) -> list[ChatChunk]:
    out = [ChatChunk() for _ in chunks]
    for copy, chunk in zip(out, chunks, strict=True):
        copy.CopyFrom(chunk)
    return out


SHORT = st.text("ab", max_size=2)
MAYBE = st.none() | SHORT
CALLS = st.builds(call, st.integers(0, 1), MAYBE, st.none() | st.just("f"), id=st.none() | st.just("i"))
DELTAS = st.builds(
    Delta,
    content=MAYBE,
    reasoning=st.none() | st.none() | SHORT,
    role=st.none() | st.none() | st.just("assistant"),
    tool_calls=st.just([]) | st.lists(CALLS, max_size=2),
)
CHOICES = st.builds(
    ChunkChoice,
    index=st.integers(0, 1),
    delta=DELTAS,
    finish_reason=st.none() | st.none() | st.just("stop"),
    logprobs=st.none() | st.none() | st.lists(SHORT, max_size=2).map(lambda tokens: logprobs(*tokens)),
)
CHUNKS = st.builds(
    ChatChunk,
    id=st.sampled_from("iiij"),
    choices=st.lists(CHOICES, min_size=1, max_size=1) | st.lists(CHOICES, max_size=2),
    usage=st.none() | st.none() | st.builds(Usage, total_tokens=st.integers(0, 9)),
    extra_json=st.sampled_from(["", "", "{}"]),
)


def received(chunks: Sequence[ChatChunk]) -> dict[Any, list[Any]]:
    """Return the content that a reader gets, by place: texts letter by letter, the rest in order."""
    out: dict[Any, list[Any]] = defaultdict(list)
    for chunk in chunks:
        for name in ("usage", "extra_json"):
            if getattr(chunk, name) != getattr(ChatChunk(), name):
                out[name].append((chunk.id, getattr(chunk, name)))
        for choice in chunk.choices:
            place = (chunk.id, choice.index)
            out[(*place, "finish_reason")] += [choice.finish_reason] * choice.HasField("finish_reason")
            out[(*place, "logprobs")] += [token.token for token in choice.logprobs.content]
            for name in ("role", "content", "reasoning"):
                out[(*place, name)] += getattr(choice.delta, name)
            for call in choice.delta.tool_calls:
                begins = [(call.id, call.function.name)] if call.HasField("id") or call.function.name else []
                out[(*place, call.index)] += [*begins, *call.function.arguments]
    return out


@settings(max_examples=300)
@given(st.lists(CHUNKS, max_size=12))
def test_a_reader_gets_the_same_content(chunks: list[ChatChunk]) -> None:
    fewer = coalesce(copies(chunks))
    assert received(fewer) == received(chunks)
    assert len(fewer) <= len(chunks)
    assert coalesce(copies(fewer)) == list(fewer)
