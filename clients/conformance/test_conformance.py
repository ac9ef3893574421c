"""Every client observes the same results. README.md describes the method, scenarios.yaml has the calls."""

import asyncio
import json
import os
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
from support import Exchange, Responder, Script, Service, http, service

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
CANCELLED = [name for name, scenario in SCENARIOS.items() if "cancel" in name]

UNREACHABLE = re.compile(
    r".*(Could not (resolve|transfer)|E(CONNREFUSED|NOTFOUND|AI_AGAIN)|dial tcp|failed to (download|fetch)).*"
)
"""The errors of Maven, npm, Go and Cargo if their registry is unreachable."""


@dataclass(frozen=True)
class Language:
    """The build command and the programs of a client, relative to its folder."""

    needs: tuple[str, ...]
    build: str
    driver: tuple[str, ...]
    tour: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The required programs that are not installed."""
        return [program for program in self.needs if not shutil.which(program)]


PYTHON = os.environ.get("CLIENT_PYTHON", sys.executable)
"""Of the environment that has the Python client."""

LANGUAGES = {
    "python": Language((), "", (PYTHON, "conformance.py"), (PYTHON, "tour.py")),
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
    """Build a client and return its folder. Skips the test if a toolchain or a registry is missing."""
    language, folder = LANGUAGES[name], ROOT / "clients" / name
    if language.missing:
        pytest.skip(f"client in {name}: {', '.join(language.missing)} not installed; install it to test this client")
    if error := _build_error(language.build, folder):
        if unreachable := UNREACHABLE.search(error):
            pytest.skip(f"client in {name}: its dependencies are unreachable: {unreachable[0]}")
        pytest.fail(f"{language.build}:\n{error}", pytrace=False)
    return folder


@cache
def _build_error(command: str, folder: Path) -> str:
    """Run the build. Return "" or the end of its output if it fails."""
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=900)
    return f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}" if done.returncode else ""


class Quirks(Script):
    """An upstream that responds with the file that the request's model names."""

    def choose(self, exchange: Exchange) -> bytes | Responder:
        name = json.loads(exchange.body)["model"]
        return http((QUIRKS / name).read_bytes(), content_type="text/event-stream")


@dataclass
class Upstreams:
    """Two services: one in front of the embedded upstream, one in front of an upstream that sends files."""

    echo: Echo
    with_echo: Service
    with_quirks: Service


@asynccontextmanager
async def upstreams() -> AsyncIterator[Upstreams]:
    changes: dict[str, Any] = {"upstream": {"max_retries": 0}, "drain": {"grace_seconds": 0.5}}
    async with (
        Echo() as echo,
        Quirks() as quirks,
        service(echo.base_url, **changes) as with_echo,
        service(quirks.base_url, **changes) as with_quirks,
    ):
        yield Upstreams(echo, with_echo, with_quirks)


def encode(scenario: dict[str, Any]) -> str:
    """Return the line of input for a driver."""
    request = ParseDict(scenario["request"], CreateChatCompletionRequest())
    if "upstream" in scenario:
        request.model = scenario["upstream"]
    if "picture_bytes" in scenario:
        url = f"data:image/png;base64,{b64encode(bytes(scenario['picture_bytes'])).decode()}"
        request.messages[0].content_parts[1].image_url.url = url
    call = {key: scenario[key] for key in ("name", "method", "metadata", "timeout_ms")}
    call |= {key: scenario[key] for key in ("cancel_after", "cancel_after_ms", "pause_ms") if key in scenario}
    return json.dumps({**call, "request": b64encode(request.SerializeToString()).decode()}) + "\n"


async def drive(language: str, target: str, lines: str, *, wrapper: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run a language's driver and return its results. `wrapper` is a command that runs the driver."""
    folder = built(language)
    process = await asyncio.create_subprocess_exec(
        *wrapper,
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


_results: dict[str, dict[str, Any]] = {}


async def results(language: str) -> dict[str, Any]:
    """Return the results of a language's driver by scenario. Runs the driver once."""
    if language not in _results:
        async with upstreams() as up:
            calls = defaultdict(str)
            for scenario in SCENARIOS.values():
                calls[kind(scenario)] += encode(scenario)
            found = await drive(language, str(up.with_quirks.server.address), calls["quirks"])
            found += await drive(language, str(up.with_echo.server.address), calls["echo"])
            draining = asyncio.create_task(drain_during_the_call(up))
            found += await drive(language, str(up.with_echo.server.address), calls["drain"])
            await draining
        _results[language] = {each["name"]: each for each in found}
        for name in CANCELLED:
            request = SCENARIOS[name]["request"]
            requests = [each for each in up.echo.requests if request.items() <= each.body.items()]
            _results[language][name]["upstream_requests"] = len(requests)
            _results[language][name]["disconnected"] = all(each.disconnected.is_set() for each in requests)
    return _results[language]


def kind(scenario: dict[str, Any]) -> str:
    return "drain" if scenario.get("drains") else "quirks" if "upstream" in scenario else "echo"


async def drain_during_the_call(up: Upstreams) -> None:
    """Stop the service as SIGTERM does, once the call has reached the upstream."""
    before = len(up.echo.requests)
    async with asyncio.timeout(60):
        while len(up.echo.requests) == before:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    await up.with_echo.server.drain()


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_as_expected(language: str, name: str) -> None:
    observed = summary(name, (await results(language))[name])
    for key, value in SCENARIOS[name]["expect"].items():
        assert observed[key] == value, f"{key} in {observed}"


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "python"])
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if not scenario.get("disagree")])
async def test_as_in_python(language: str, name: str) -> None:
    """All results are equal, to the last field of each message."""
    assert comparable(name, (await results(language))[name]) == comparable(name, (await results("python"))[name])


def test_each_reason_has_a_scenario() -> None:
    """The exceptions need another service: one that is full or broken, or a call without time left."""
    reasons = {scenario["expect"].get("reason") for scenario in SCENARIOS.values()}
    assert set(Reason) - reasons == {Reason.IN_FLIGHT_LIMIT, Reason.INTERNAL, Reason.DEADLINE_EXCEEDED}


def messages_of(name: str, result: dict[str, Any]) -> list[Any]:
    streaming = SCENARIOS[name]["method"] == STREAM
    type_ = CreateChatCompletionStreamResponse if streaming else CreateChatCompletionResponse
    return [type_.FromString(b64decode(message)) for message in result["messages"]]


def comparable(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result without the parts that differ between runs, such as ids that the service makes."""
    messages = [MessageToDict(message) for message in messages_of(name, result)]
    coalesced = SCENARIOS[name]["metadata"].get("x-chatrpc-coalesce") != "off"
    if coalesced:  # then the number of messages depends on timing
        messages = [{**summary(name, result), "messages": 0, "request_id": ""}]
    return {**result, "messages": messages, "request_id": bool(result["request_id"])}


def summary(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the values that scenarios can expect."""
    messages = messages_of(name, result)
    parts = [part for message in messages for part in message.choices]
    deltas = [getattr(part, "delta", None) or part.message for part in parts if not part.index]
    text = "".join(each.content for each in deltas)
    calls: dict[int, str] = defaultdict(str)
    for at, call in ((at, call) for each in deltas for at, call in enumerate(each.tool_calls)):
        calls[getattr(call, "index", at)] += call.function.name + call.function.arguments
    extras = [json.loads(each.extra_json) for message in messages for each in (message, *parts) if each.extra_json]
    return {
        **{key: result.get(key) for key in ("code", "reason", "mapped_reason", "retry_after_ms", "upstream_status")},
        "message": result["message"],
        "request_id": result["request_id"],
        "field": result["fields"][0][0] if result["fields"] else "",
        "upstream_requests": result.get("upstream_requests"),
        "disconnected": result.get("disconnected"),
        "text": text,
        "characters": len(text),
        "numbers": len(text.split()) if text.split() == [str(n + 1) for n in range(len(text.split()))] else 0,
        "reasoning": "".join(each.reasoning_content or each.reasoning for each in deltas),
        "finish_reasons": {part.index: part.finish_reason for part in parts if part.HasField("finish_reason")},
        "usage": any(message.HasField("usage") for message in messages),
        "logprobs": any(part.logprobs.content for part in parts),
        "calls": dict(calls),
        "extras": {key: value for each in extras for key, value in each.items()},
        "messages": len(messages),
    }


@pytest.mark.timeout(300)
def test_the_go_stubs_are_fresh() -> None:
    """Only Go's and Python's stubs are committed; `make lint` checks Python's."""
    done = subprocess.run([built("go") / "generate", "--check"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
