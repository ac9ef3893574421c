"""Every client sees the same: README.md says how, scenarios.yaml what."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import MessageToDict, ParseDict

from chatrpc.v1.chat_request_pb2 import CreateChatCompletionRequest
from chatrpc.v1.chat_response_pb2 import CreateChatCompletionResponse, CreateChatCompletionStreamResponse
from chatrpc_echo import Echo
from chatrpc_server.core.errors import Reason
from support import Answer, Exchange, Script, Service, http, service

ROOT = Path(__file__).parents[2]
QUIRKS = ROOT / "tests/fixtures/quirks"
STREAM, UNARY = "CreateChatCompletionStream", "CreateChatCompletion"
TIMEOUT_MS = 15_000
SCENARIOS: dict[str, dict[str, Any]] = {
    each["name"]: {
        "method": STREAM,
        "timeout_ms": TIMEOUT_MS,
        "metadata": {},
        **each,
        "expect": {"code": "OK", **each["expect"]},
    }
    for each in yaml.safe_load((Path(__file__).parent / "scenarios.yaml").read_text())
}


UNREACHABLE = re.compile(
    r".*(Could not (resolve|transfer)|E(CONNREFUSED|NOTFOUND|AI_AGAIN)|dial tcp|failed to (download|fetch)).*"
)
"""What Maven, npm, Go and Cargo say where their registry is out of reach."""


@dataclass(frozen=True)
class Language:
    """How a client is built, and what its programs are called; all in its folder."""

    needs: tuple[str, ...]
    build: str
    driver: tuple[str, ...]
    tour: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """Programs that are not here."""
        return [program for program in self.needs if not shutil.which(program)]


LANGUAGES = {
    "python": Language((), "", (sys.executable, "conformance.py"), (sys.executable, "tour.py")),
    "go": Language(("go",), "go build -o build/ ./cmd/...", ("build/conformance",), ("build/tour",)),
    "typescript": Language(
        ("node", "npm"),
        "npm ci --silent --no-audit --no-fund && npm run --silent build",
        ("node", "build/conformance.js"),
        ("node", "build/tour.js"),
    ),
    "java": Language(
        ("java", "mvn"),
        "mvn --quiet --batch-mode package",
        ("java", "-cp", "target/chatrpc-client.jar", "dev.chatrpc.client.Conformance"),
        ("java", "-cp", "target/chatrpc-client.jar", "dev.chatrpc.client.Tour"),
    ),
    "rust": Language(
        ("cargo",), "cargo build --quiet --release", ("target/release/conformance",), ("target/release/tour",)
    ),
}


def built(name: str) -> Path:
    """The folder of a client that has been built. Skips if it cannot be."""
    language, folder = LANGUAGES[name], ROOT / "clients" / name
    if language.missing:
        pytest.skip(f"not here, so that the client in {name} is not tested: {', '.join(language.missing)}")
    if fault := _fault_of_build(language.build, folder):
        if unreachable := UNREACHABLE.search(fault):
            pytest.skip(f"dependencies of the client in {name} cannot be fetched: {unreachable[0]}")
        pytest.fail(f"{language.build}:\n{fault}", pytrace=False)
    return folder


@cache
def _fault_of_build(command: str, folder: Path) -> str:
    """Nothing, or what was said at the end."""
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=900)
    return f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}" if done.returncode else ""


class Quirks(Script):
    """An upstream that answers with the file that the request's model names."""

    def choose(self, exchange: Exchange) -> bytes | Answer:
        name = json.loads(exchange.body)["model"]
        return http((QUIRKS / name).read_bytes(), content_type="text/event-stream")


@dataclass
class Upstreams:
    """The service before the embedded upstream, and before one that sends files."""

    echo: Echo
    before_echo: Service
    before_quirks: Service


@asynccontextmanager
async def upstreams() -> AsyncIterator[Upstreams]:
    changes: dict[str, Any] = {"upstream": {"max_retries": 0}, "drain": {"grace_seconds": 0.5}}
    async with (
        Echo() as echo,
        Quirks() as quirks,
        service(echo.base_url, **changes) as before_echo,
        service(quirks.base_url, **changes) as before_quirks,
    ):
        yield Upstreams(echo, before_echo, before_quirks)


def written(scenario: dict[str, Any]) -> str:
    """The line that a driver gets."""
    request = ParseDict(scenario["request"], CreateChatCompletionRequest())
    if "upstream" in scenario:
        request.model = scenario["upstream"]
    if "picture_bytes" in scenario:
        url = f"data:image/png;base64,{b64encode(bytes(scenario['picture_bytes'])).decode()}"
        request.messages[0].content_parts[1].image_url.url = url
    call = {key: scenario[key] for key in ("name", "method", "metadata", "timeout_ms")}
    call |= {key: scenario[key] for key in ("cancel_after", "pause_ms") if key in scenario}
    return json.dumps({**call, "request": b64encode(request.SerializeToString()).decode()}) + "\n"


async def driven(language: str, target: str, lines: str, *, within: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What the driver of a language saw; `within` is a command that runs it."""
    folder = built(language)
    process = await asyncio.create_subprocess_exec(
        *within,
        *LANGUAGES[language].driver,
        target,
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(lines.encode()), 120)
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, err.decode()[-4000:]
    return [json.loads(line) for line in out.splitlines()]


_seen: dict[str, dict[str, Any]] = {}


async def seen(language: str) -> dict[str, Any]:
    """By scenario, what this language's driver saw; driven once."""
    if language not in _seen:
        async with upstreams() as up:
            calls = defaultdict(str)
            for scenario in SCENARIOS.values():
                calls[kind(scenario)] += written(scenario)
            saw = await driven(language, str(up.before_quirks.server.address), calls["quirks"])
            saw += await driven(language, str(up.before_echo.server.address), calls["echo"])
            model = SCENARIOS["cancel"]["request"]["model"]
            gone = any(each.disconnected.is_set() for each in up.echo.requests if each.body["model"] == model)
            drained = asyncio.create_task(drain_once_asked(up))
            saw += await driven(language, str(up.before_echo.server.address), calls["drain"])
            await drained
        _seen[language] = {each["name"]: each for each in saw}
        _seen[language]["cancel"]["gone"] = gone
    return _seen[language]


def kind(scenario: dict[str, Any]) -> str:
    return "drain" if scenario.get("drains") else "quirks" if "upstream" in scenario else "echo"


async def drain_once_asked(up: Upstreams) -> None:
    """Ends the service as SIGTERM does, once it is in the middle of the call."""
    before = len(up.echo.requests)
    async with asyncio.timeout(60):
        while len(up.echo.requests) == before:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    await up.before_echo.server.drain()


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_as_expected(language: str, name: str) -> None:
    shown = summary(name, (await seen(language))[name])
    for key, value in SCENARIOS[name]["expect"].items():
        assert shown[key] == value, f"{key} in {shown}"


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "python"])
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if not scenario.get("disagree")])
async def test_as_in_python(language: str, name: str) -> None:
    """All that was seen, to the last field of each message."""
    assert comparable(name, (await seen(language))[name]) == comparable(name, (await seen("python"))[name])


def test_each_reason_has_a_scenario() -> None:
    """But for those that take another service: one that is full, broken, or asked with no time left."""
    reasons = {scenario["expect"].get("reason") for scenario in SCENARIOS.values()}
    assert set(Reason) - reasons == {Reason.IN_FLIGHT_LIMIT, Reason.INTERNAL, Reason.DEADLINE_EXCEEDED}


def messages_of(name: str, result: dict[str, Any]) -> list[Any]:
    streaming = SCENARIOS[name]["method"] == STREAM
    type_ = CreateChatCompletionStreamResponse if streaming else CreateChatCompletionResponse
    return [type_.FromString(b64decode(message)) for message in result["messages"]]


def comparable(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Without what is new each time: ids that the service makes."""
    messages = [MessageToDict(message) for message in messages_of(name, result)]
    joined = SCENARIOS[name]["metadata"].get("x-chatrpc-coalesce") != "off"
    if joined:  # how many there are depends on the moment
        messages = [{**summary(name, result), "messages": 0, "request_id": ""}]
    return {**result, "messages": messages, "request_id": bool(result["request_id"])}


def summary(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """What scenarios speak of."""
    messages = messages_of(name, result)
    parts = [part for message in messages for part in message.choices]
    said = [getattr(part, "delta", None) or part.message for part in parts if not part.index]
    text = "".join(each.content for each in said)
    calls: dict[int, str] = defaultdict(str)
    for at, call in ((at, call) for each in said for at, call in enumerate(each.tool_calls)):
        calls[getattr(call, "index", at)] += call.function.name + call.function.arguments
    extras = [json.loads(each.extra_json) for message in messages for each in (message, *parts) if each.extra_json]
    return {
        **{key: result.get(key) for key in ("code", "reason", "mapped_reason", "retry_after_ms", "upstream_status")},
        "message": result["message"],
        "request_id": result["request_id"],
        "field": result["fields"][0][0] if result["fields"] else "",
        "gone": result.get("gone"),
        "text": text,
        "characters": len(text),
        "numbers": len(text.split()) if text.split() == [str(n + 1) for n in range(len(text.split()))] else 0,
        "reasoning": "".join(each.reasoning_content or each.reasoning for each in said),
        "finish_reasons": {part.index: part.finish_reason for part in parts if part.HasField("finish_reason")},
        "usage": any(message.HasField("usage") for message in messages),
        "logprobs": any(part.logprobs.content for part in parts),
        "calls": dict(calls),
        "extras": {key: value for each in extras for key, value in each.items()},
        "messages": len(messages),
    }


@pytest.mark.timeout(300)
def test_the_stubs_of_go_are_fresh() -> None:
    """The only ones that are committed, beside Python's, which `make lint` looks at."""
    done = subprocess.run([built("go") / "generate", "--check"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
