"""The command `chatrpc` as a process: one prompt, a pipe, and a conversation in a terminal."""

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from chatrpc_echo import Echo
from support import Service

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "chatrpc_cli"]
SOURCES = (str(ROOT / "clients/python/src"), str(ROOT / "protos/python/src"))
PATHS = os.pathsep.join((*SOURCES, os.environ.get("PYTHONPATH", "")))
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


async def run(
    *arguments: str, target: object = None, stdin: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": PATHS, "CHATRPC_TARGET": str(target or "")} | environ
    return await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=False,
    )


async def test_one_response(chat: Service) -> None:
    result = await run("--model", "echo", "Hello,", "world!", target=chat.server.address)
    assert (result.returncode, result.stdout, result.stderr) == (0, "You said: Hello, world!\n", "")


async def test_standard_input_and_a_system_message(chat: Service, echo: Echo) -> None:
    result = await run("--system", "Be brief.", target=chat.server.address, stdin="Hello!\n", CHATRPC_MODEL="echo")
    assert (result.returncode, result.stdout) == (0, "You said: Hello!\n")
    assert [message["content"] for message in echo.requests[-1].body["messages"]] == ["Be brief.", "Hello!"]


async def test_json(chat: Service) -> None:
    result = await run("--model", "echo:pieces=3", "--json", "?", target=chat.server.address)
    chunks = [json.loads(line) for line in result.stdout.splitlines()]
    assert "".join(part["delta"].get("content", "") for chunk in chunks for part in chunk.get("choices", [])) == "1 2 3"
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert any(part.get("finish_reason") == "stop" for chunk in chunks for part in chunk.get("choices", []))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            "echo:status=429,retry_after=7",
            r"RESOURCE_EXHAUSTED \(UPSTREAM_RATE_LIMITED\): .*; retry in 7 s; .*429; .*",
        ),
        ("echo:pieces=9,truncate=2", r"UNAVAILABLE \(UPSTREAM_TRUNCATED\): .*"),
        ("echo:delay=9", r"DEADLINE_EXCEEDED.*"),
    ],
)
async def test_a_failure_is_one_line(chat: Service, model: str, line: str) -> None:
    result = await run("--model", model, "--timeout", "2", "?", target=chat.server.address)
    assert result.returncode == 1
    assert re.fullmatch(f"chatrpc: {line}\n", result.stderr), result.stderr


async def test_the_text_before_a_failure_is_shown(chat: Service) -> None:
    result = await run("--model", "echo:pieces=9,truncate=2", "?", target=chat.server.address)
    assert (result.returncode, result.stdout) == (1, "1 2\n")


async def test_a_reader_that_closes_the_pipe(chat: Service) -> None:
    command = [sys.executable, "-m", "chatrpc_cli", "--model", "echo:pieces=2000,pace=0.001", "?"]
    environment = os.environ | {"PYTHONPATH": PATHS, "CHATRPC_TARGET": str(chat.server.address)}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout
    assert process.stderr
    await process.stdout.readexactly(3)
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert (await process.stderr.read(), await process.wait()) == (b"", 1)


async def test_no_server() -> None:
    result = await run("--model", "echo", "--timeout", "5", "?", target="127.0.0.1:1")
    assert result.returncode == 1
    assert re.fullmatch(r"chatrpc: UNAVAILABLE: .*127\.0\.0\.1:1.*\n", result.stderr), result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], "Hello!", "model: missing"),
        (["--model", "echo"], "", "prompt: missing"),
        (["--model", "echo", "--ca-file", "/nowhere", "?"], "", "/nowhere"),
        (["--model", "echo", "--ca-file", "", "?"], "", "the path is empty"),
        (["--model", "echo", "--target", "http://a:1", "?"], "", "host:port"),
        (["--model", "echo", "--timeout", "-1", "?"], "", "more than 0"),
    ],
)
async def test_wrong_usage_is_reported(arguments: list[str], stdin: str, message: str) -> None:
    result = await run(*arguments, stdin=stdin)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


async def test_invalid_utf_8_is_replaced(chat: Service) -> None:
    environment = os.environ | {"PYTHONPATH": PATHS, "CHATRPC_TARGET": str(chat.server.address)}
    for arguments, stdin in ((["a\udcff"], b""), ([], b"a\xff")):
        result = await asyncio.to_thread(
            subprocess.run, [*COMMAND, "-m", "echo", *arguments], input=stdin, capture_output=True, env=environment
        )
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.decode() in ("You said: a?\n", "You said: a\ufffd\n")


async def test_an_output_encoding_without_the_character(chat: Service) -> None:
    result = await run("--model", "echo", "日", target=chat.server.address, PYTHONIOENCODING="latin-1")
    assert (result.returncode, result.stdout) == (0, "You said: ?\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_closed_streams(chat: Service, closed: str) -> None:
    environment = os.environ | {"PYTHONPATH": PATHS, "CHATRPC_TARGET": str(chat.server.address)}
    command = [*COMMAND, "-m", "echo", "?"]
    result = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, timeout=60, env=environment
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert (b"You said: ?" in result.stdout) == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_a_full_disk_is_reported(chat: Service) -> None:
    environment = os.environ | {"PYTHONPATH": PATHS, "CHATRPC_TARGET": str(chat.server.address)}
    full = os.open("/dev/full", os.O_WRONLY)
    result = await asyncio.to_thread(
        subprocess.run, [*COMMAND, "-m", "echo", "?"], stdout=full, stderr=subprocess.PIPE, env=environment
    )
    os.close(full)
    assert (result.returncode, result.stderr) == (
        1,
        b"chatrpc: standard output: No space left on device; the response is incomplete\n",
    )


class Terminal:
    """A conversation in a pseudo-terminal."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.output = ""
        self._master = master
        self._decoder = getincrementaldecoder("utf-8")()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def shows(self, pattern: str) -> re.Match[str]:
        """Wait for output that matches, and discard it and all before it."""
        async with asyncio.timeout(20):
            while not (match := re.search(pattern, self.output)):
                self.output += ANSI.sub("", (await asyncio.to_thread(self._read)).replace("\r", ""))
        self.output = self.output[match.end() :]
        return match

    def _read(self) -> str:
        return self._decoder.decode(os.read(self._master, 4096))


@contextmanager
def terminal(chat: Service, *arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    environment = os.environ | {"PYTHONPATH": PATHS, "CHATRPC_TARGET": str(chat.server.address), "TERM": "xterm"}
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    watchdog = Timer(40, process.kill)
    watchdog.start()
    try:
        yield Terminal(master, process)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        os.close(master)


async def test_a_conversation(chat: Service, echo: Echo) -> None:
    with terminal(chat, "--model", "echo") as screen:
        await screen.shows("› ")
        screen.type("one\n")
        await screen.shows(r"You said: one\n\d+ tokens in, \d+ out\n")
        await screen.shows("› ")
        screen.type("two\n")
        await screen.shows("You said: two\n")
        contents = [message["content"] for message in echo.requests[-1].body["messages"]]
        assert contents == ["one", "You said: one", "two"]
        await screen.shows("› ")
        screen.type("/system Be brief.\n")
        await screen.shows("› ")
        screen.type("/reset\n")
        await screen.shows("› ")
        screen.type("three\n")
        await screen.shows("You said: three\n")
        contents = [message["content"] for message in echo.requests[-1].body["messages"]]
        assert contents == ["Be brief.", "three"]
        await screen.shows("› ")
        screen.type("/what\n")
        await screen.shows("/exit")
        screen.type("/exit\n")
        assert await asyncio.to_thread(screen.process.wait, 10) == 0


async def test_ctrl_c_stops_the_response_only(chat: Service, echo: Echo) -> None:
    with terminal(chat, "--model", "echo:pieces=500,pace=0.05") as screen:
        await screen.shows("› ")
        screen.type("count\n")
        await screen.shows("1 2 3")
        screen.process.send_signal(2)
        await screen.shows("stopped")
        await asyncio.wait_for(echo.requests[-1].disconnected.wait(), 10)
        await screen.shows("› ")
        screen.type("\x04")  # Ctrl-D
        assert await asyncio.to_thread(screen.process.wait, 10) == 0


@pytest.mark.parametrize("flag", ["--cert", "--key"])
async def test_a_certificate_needs_its_key(flag: str) -> None:
    result = await run("--model=echo", flag, "x.pem", "?")
    assert result.returncode == 2
    assert "--cert, --key: one is missing; give both" in result.stderr
