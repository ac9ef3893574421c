"""The commands other than serve, as processes."""

import asyncio
import json
import signal
from pathlib import Path
from urllib.request import urlopen

import pytest

from chatrpc_echo import Echo
from chatrpc_server import __version__
from support.process import ANY_PORTS, run, running

KEY = "sk-canary-0123456789abcdef"


def test_version() -> None:
    assert run("--version").stdout == f"chatrpc-server {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "demo", "echo", "check-config", "healthcheck"])
def test_help(command: str) -> None:
    result = run(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: chatrpc-server " + command in result.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [((), "COMMAND"), (("server",), "invalid choice: 'server'"), (("echo", "--foo"), "--foo: unknown argument")],
    ids=["no-command", "unknown-command", "unknown-argument"],
)
def test_wrong_usage(arguments: tuple[str, ...], problem: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("environ", [{}, {"http_proxy": "http://127.0.0.1:1"}], ids=["plain", "behind-a-proxy"])
def test_demo(environ: dict[str, str]) -> None:
    result = run("demo", "--prompt", "What is a token?", **environ)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("You said: What is a token?") == 2
    assert "tokens in, " in result.stdout
    for metric in ("grpc_server_handled_total{", "chatrpc_tokens_total{"):
        assert metric in result.stdout
    values = [line.split()[-1] for line in result.stdout.splitlines() if "_total{" in line]
    assert "0" not in values, "only series that the calls changed"


async def test_demo_with_a_real_key() -> None:
    async with Echo(api_key=KEY) as echo:
        # Also with the name of the embedded one.
        command = ("demo", "--model=echo", "--upstream.name=echo")
        result = await asyncio.to_thread(run, *command, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=echo.base_url)
        assert (result.returncode, result.stderr) == (0, "")
        why = "because of OPENAI_API_KEY and OPENAI_BASE_URL; --echo selects the embedded one"
        assert result.stdout.splitlines()[0] == f"  upstream   {echo.base_url}, model echo, {why}"
        assert len(echo.requests) == 2
        assert KEY not in result.stdout


@pytest.mark.parametrize(
    ("flags", "environ", "reason"),
    [
        ([], {}, "neither an API key nor a base URL is set"),
        (["--echo"], {"OPENAI_API_KEY": KEY}, "of --echo"),
        (["--echo"], {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, "of --echo"),
        (["--echo", "--upstream.base-url=http://127.0.0.1:9/v1"], {}, "of --echo"),
    ],
    ids=["nothing", "key", "url", "flag"],
)
def test_the_embedded_upstream(flags: list[str], environ: dict[str, str], reason: str) -> None:
    result = run("demo", *flags, **environ)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == f"  upstream   embedded, model echo, because {reason}"


async def test_a_failing_demo_reports_the_error(echo: Echo) -> None:
    result = await asyncio.to_thread(run, "demo", "--model=gpt-9", OPENAI_BASE_URL=echo.base_url)
    assert result.returncode == 1
    assert "NOT_FOUND: The model `gpt-9` does not exist" in result.stderr
    assert "Traceback" not in result.stderr


async def test_demo_can_be_stopped(echo: Echo) -> None:
    with running("demo", "--model=echo:delay=60", OPENAI_BASE_URL=echo.base_url) as process:
        await echo.arrived()
        process.signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait) == 130
        assert "Traceback" not in process.output


def test_echo_command() -> None:
    with running("echo", "--listen=127.0.0.1:0") as process:
        base_url = process.line("echo serves at").split()[-1]
        with urlopen(f"{base_url}/models", timeout=5) as response:
            assert json.load(response)["object"] == "list"
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.parametrize("listen", ["8080", "127.0.0.1:99999"])
def test_echo_with_an_invalid_address(listen: str) -> None:
    result = run("echo", f"--listen={listen}")
    assert result.returncode == 2
    assert result.stderr.startswith("chatrpc-server: --listen: must be host:port")


def test_check_config(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    config = tmp_path / "chatrpc.yaml"
    config.write_text(f"upstream: {{api_key_file: {key_file}, name: mine}}\n")
    result = run("check-config", f"--config={config}", CHATRPC_LISTEN="127.0.0.1:7777")
    assert (result.returncode, result.stderr) == (0, "")
    shown = json.loads(result.stdout)
    assert (shown["listen"], shown["upstream"]["name"], shown["upstream"]["api_key"]) == (
        "127.0.0.1:7777",
        "mine",
        "***",
    )
    assert KEY not in result.stdout


def test_check_config_reports_mistakes(tmp_path: Path) -> None:
    config = tmp_path / "chatrpc.yaml"
    config.write_text("upstream:\n  base_ur: https://example.com/v1\n")
    result = run("check-config", f"--config={config}")
    assert result.returncode == 2
    assert "line 2: unknown setting; did you mean upstream.base_url?" in result.stderr


def test_healthcheck() -> None:
    with running("serve", *ANY_PORTS) as process:
        listen = process.log("serving")["listen"]
        result = run("healthcheck", f"--listen={listen}", http_proxy="http://127.0.0.1:1")
        assert (result.returncode, result.stdout) == (0, "SERVING\n")
        result = run("healthcheck", f"--listen={listen}", "--service=nope")
        assert result.returncode == 1
        assert "NOT_FOUND: unknown service" in result.stderr
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    result = run("healthcheck", f"--listen={listen}", "--timeout-seconds=2")
    assert result.returncode == 1
    assert "UNAVAILABLE" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["echo", "demo"])
def test_the_embedded_upstream_needs_its_extra(tmp_path: Path, command: str) -> None:
    missing = "raise ModuleNotFoundError('No module named aiohttp', name='aiohttp')"
    (tmp_path / "aiohttp.py").write_text(missing)  # found first on the path
    result = run(command, PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    problem = "the embedded upstream: aiohttp is not installed; run pip install 'chatrpc-server[echo]'"
    assert result.stderr == f"chatrpc-server: {problem}\n"


def test_only_the_embedded_upstream_needs_aiohttp(tmp_path: Path) -> None:
    (tmp_path / "aiohttp.py").write_text("raise AssertionError")
    assert run("serve", "--help", PYTHONPATH=str(tmp_path)).returncode == 0
