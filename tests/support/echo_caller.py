"""An HTTP client of the embedded upstream."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from chatrpc_echo import Echo

WAIT_SECONDS = 5.0
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
INVALID = "invalid_request_error"
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
        """Return the events; '[DONE]' as text, the others parsed."""
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
    """Append arriving data to `received`, so that it is kept if the read fails."""
    async for data in response.content.iter_any():
        received += data


@asynccontextmanager
async def calling(**options: Any) -> AsyncIterator[Caller]:
    async with Echo(**options) as echo, aiohttp.ClientSession() as session:
        yield Caller(echo, session)


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), WAIT_SECONDS)
