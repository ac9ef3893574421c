"""Large messages on the wire: parsed in pieces, and their elements counted before."""

import pytest
from google.protobuf.internal.encoder import _VarintBytes as varint  # type: ignore[attr-defined]
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1.chat_message_pb2 import ChatMessage, ContentPart, FunctionCall, ToolCall
from chatrpc.v1.chat_request_pb2 import AllowedTools, Prediction, StreamOptions, Tool, ToolChoice
from chatrpc_server.core import wire
from chatrpc_server.core.upstream import ChatRequest

MESSAGES = [
    ChatMessage(role="user", content="x" * 200),
    ChatMessage(role="user", content_parts=[ContentPart(text="a"), ContentPart(text="b")]),
    ChatMessage(role="assistant", tool_calls=[ToolCall(id="c", function=FunctionCall(name="f"))]),
]
REQUEST = ChatRequest(
    model="m",
    messages=MESSAGES,
    temperature=0.5,
    seed=-3,
    stop=["a", "b"],
    logit_bias={"1": 2.0},
    metadata={"k": "v"},
    tools=[Tool()],
    tool_choice=ToolChoice(allowed_tools=AllowedTools(tools_json=["{}", "{}"])),
    prediction=Prediction(content_parts=[ContentPart(text="a")]),
    stream_options=StreamOptions(include_usage=True),
    extra_json='{"a":1}',
)
ELEMENTS = 3 + 2 + 1 + 2 + 1 + 1 + 1 + 2 + 1


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_PIECE_FIELDS", 2)
    monkeypatch.setattr(wire, "_PIECE_BYTES", 50)


def parsed(data: bytes, max_elements: int = 1000) -> ChatRequest:
    request = ChatRequest()
    wire.parse(request, data, max_elements)
    return request


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("order", [1, -1])
def test_pieces_are_merged(order: int) -> None:
    data = REQUEST.SerializeToString()
    assert parsed(data, ELEMENTS) == REQUEST
    more = ChatRequest(messages=MESSAGES[::order], tool_choice=ToolChoice(mode="auto")).SerializeToString()
    assert parsed(data + more) == ChatRequest.FromString(data + more)


def test_elements_of_every_level_count() -> None:
    with pytest.raises(wire.TooManyElements):
        parsed(REQUEST.SerializeToString(), ELEMENTS - 1)


PATHS: dict[str, tuple[ChatRequest, int, str, int]] = {
    "messages": (ChatRequest(messages=MESSAGES), 0, "messages", 1),
    "parts": (ChatRequest(messages=MESSAGES), 3, "messages[1].content_parts", 2),
    "calls": (ChatRequest(messages=MESSAGES), 5, "messages[2].tool_calls", 1),
    "stop": (ChatRequest(stop=["a", "b", "c"]), 2, "stop", 3),
    "metadata": (ChatRequest(metadata={"a": "b", "c": "d"}), 1, "metadata", 2),
    "a single message": (
        ChatRequest(tool_choice=ToolChoice(allowed_tools=AllowedTools(tools_json=["{}", "{}"]))),
        1,
        "tool_choice.allowed_tools.tools_json",
        2,
    ),
}


@pytest.mark.parametrize(("request_", "limit", "path", "count"), PATHS.values(), ids=PATHS)
def test_the_error_names_the_field(request_: ChatRequest, limit: int, path: str, count: int) -> None:
    with pytest.raises(wire.TooManyElements) as raised:
        parsed(request_.SerializeToString(), limit)
    assert (raised.value.path, raised.value.count, raised.value.limit) == (path, count, limit)


UNKNOWN = 1000
ONE = ChatRequest(messages=[ChatMessage(role="u")]).SerializeToString()
FOREIGN: dict[str, bytes] = {
    "varint": varint(UNKNOWN << 3) + varint(1 << 60),
    "64 bits": varint(UNKNOWN << 3 | 1) + bytes(8),
    "bytes": varint(UNKNOWN << 3 | 2) + varint(300) + bytes(300),
    "group": varint(UNKNOWN << 3 | 3) + varint(8) + b"\1" + varint(UNKNOWN << 3 | 4),
    "32 bits": varint(UNKNOWN << 3 | 5) + bytes(4),
    "the type of another field": varint(2 << 3) + b"\1",
}


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("field", FOREIGN.values(), ids=FOREIGN)
def test_unknown_fields(field: bytes) -> None:
    data = ONE + field + ONE + field
    assert parsed(data, 2) == ChatRequest.FromString(data)
    with pytest.raises(wire.TooManyElements):
        parsed(data, 1)


def test_a_tag_of_more_bytes_than_necessary_counts() -> None:
    data = b"\x92\x80\x00" + ONE[1:]
    assert parsed(data * 2, 2) == ChatRequest.FromString(data * 2)
    with pytest.raises(wire.TooManyElements):
        parsed(data * 2, 1)


@pytest.mark.parametrize("tail", [b"\x12", b"\x12\x05a", b"\x12\xff", b"\x97\x01", b"\x16\x00", b"\x80", b"\x09\0"])
def test_invalid_encodings_are_rejected(tail: bytes) -> None:
    with pytest.raises(DecodeError):
        parsed(ONE + tail)


@given(data=st.binary(max_size=60))
def test_bytes_are_parsed_like_in_one_piece(data: bytes) -> None:
    try:
        expected = ChatRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parsed(data)
    else:
        assert parsed(data) == expected
