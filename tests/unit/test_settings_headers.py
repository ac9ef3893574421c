"""Settings of headers, and the mistakes in them."""

import pytest
from pydantic import ValidationError

from chatrpc_server.settings import Settings


@pytest.mark.parametrize(
    ("upstream", "problem"),
    [
        *(
            ({"headers": f"{name}: 1"}, f"{name.lower()} belongs to the connection")
            for name in (
                "Host",
                "Content-Length",
                "Transfer-Encoding",
                "Connection",
                "TE",
                "Upgrade",
                "Proxy-Authorization",
                "Expect",
            )
        ),
        *(
            ({"headers": f"{name}: 1"}, f"{name.lower()} is set by the service")
            for name in ("Content-Type", "Accept", "Accept-Encoding", "X-Request-Id", "Traceparent")
        ),
        ({"headers": "Authorization: Bearer x"}, "authorization carries the key"),
        *(
            ({"headers": f"{name}: 1"}, "can be secret")
            for name in ("X-Api-Key", "cf-aig-authorization", "Cookie", "X-Token")
        ),
        ({"headers": "x"}, "must be name: value"),
        ({"headers": "a b: x"}, "must be name: value"),
        ({"headers": "x:"}, "visible ASCII"),
        ({"headers": "x: é"}, "visible ASCII"),
        ({"headers": "x: 1\nX: 2"}, "header 2: x is given twice"),
        ({"auth_header": "host"}, "belongs to the connection"),
        ({"auth_header": "a b"}, "the name of a header"),
        ({"auth_scheme": "a b"}, "one word"),
        ({"query": "a b"}, "a query without"),
        ({"query": "a#b"}, "a query without"),
        *(
            ({"forward_metadata": [name]}, "for this service")
            for name in ("authorization", "Api-Key", "x-api-key", "cookie", "user-agent")
        ),
        *(
            ({"forward_metadata": [name]}, "set by the service")
            for name in ("x-request-id", "traceparent", "content-type")
        ),
        *(({"forward_metadata": [name]}, "belongs to") for name in ("host", "te", "content-length", "grpc-timeout")),
        *(({"forward_metadata": [name]}, "is not the key") for name in ("x-bin", "a b", ":path", "")),
        ({"forward_metadata": ["x-a"], "headers": "X-A: 1"}, "also in headers"),
        ({"forward_metadata": ["x-a"], "auth_header": "x-a"}, "also in headers"),
        ({"forward_metadata": ["x-a"], "key_from_metadata": "x-a"}, "also in headers"),
        *(({"key_from_metadata": name}, "") for name in ("x-request-id", "cookie", "user-agent", "host", "x-bin")),
    ],
    ids=str,
)
def test_mistakes(upstream: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings.model_validate({"upstream": upstream})
    assert problem in str(error.value)


def test_lists_and_lines() -> None:
    lines = ["User-Agent: a/1 (b, c: d)", "# a comment", "", "X-Title: A title"]
    for headers in (lines, "\n".join(lines)):
        settings = Settings.model_validate({"upstream": {"headers": headers, "forward_metadata": "x-a, X-B"}})
        assert settings.upstream.headers == "\n".join(lines)
        assert settings.upstream.forward_metadata == ("x-a", "x-b")
