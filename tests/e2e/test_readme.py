"""The README, docs/usage.md and the clients' READMEs are true: their commands and snippets run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.process import ANY_PORTS, run, running

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
USAGE = ROOT / "docs" / "usage.md"
PAGES = [README, USAGE, ROOT / "docs" / "running.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


TOOLS = ROOT / ".tools" / "bin"
GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of what `make serve` runs."""
    with running("demo", "--keep", *ANY_PORTS) as process:
        yield process.line("Serving on").split()[2]


@pytest.fixture(scope="module")
def grpcurl() -> str:
    """Found, or built where Go is at hand."""
    found = shutil.which("grpcurl", path=f"{TOOLS}:{os.environ['PATH']}")
    if not found and shutil.which("go"):
        subprocess.run(["go", "install", GRPCURL], env=os.environ | {"GOBIN": str(TOOLS)}, check=True, timeout=280)
        found = str(TOOLS / "grpcurl")
    if not found:
        pytest.skip("neither grpcurl nor Go to build it is installed")
    return found


@pytest.mark.timeout(300)
def test_the_grpcurl_line(grpcurl: str, address: str) -> None:
    (line,) = (code for code in blocks(README, "sh") if code.startswith("grpcurl"))
    command = shlex.split(line.replace("127.0.0.1:50051", address).replace("\\\n", ""))
    result = subprocess.run([grpcurl, *command[1:]], capture_output=True, text=True, timeout=20, check=True)
    assert '"content": " Hello!"' in result.stdout
    assert '"finish_reason": "stop"' in result.stdout


@pytest.mark.timeout(300)
def test_the_lines_for_callers_without_a_client(grpcurl: str, address: str) -> None:
    (block,) = re.findall(r"```sh\n(grpcurl.*?)```", (ROOT / "clients/README.md").read_text(), re.DOTALL)
    lines = block.replace("127.0.0.1:50051", address).replace("\\\n", "").splitlines()
    programs = {"grpcurl": grpcurl, ".venv/bin/buf": str(Path(sys.executable).parent / "buf")}
    outputs = []
    for line in lines:
        program, *arguments = shlex.split(line)
        result = subprocess.run([programs[program], *arguments], capture_output=True, text=True, timeout=20, check=True)
        outputs.append(result.stdout)
    assert "rpc CreateChatCompletionStream" in outputs[0]
    assert '"finish_reason": "stop"' in outputs[1]
    assert "You said: Hello!" in outputs[2]


def test_buf_curl(address: str) -> None:
    (line,) = (code for code in blocks(USAGE, "sh") if "buf curl" in code)
    _, *arguments = shlex.split(line.replace("127.0.0.1:50051", address).replace("\\\n", ""))
    command = [str(Path(sys.executable).parent / "buf"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert "You said: Hello!" in result.stdout


@pytest.mark.parametrize(
    ("page", "prints"),
    [(README, "You said: Hello!"), (USAGE, "INVALID_ARGUMENT INVALID_REQUEST messages: is empty; add at least one")],
    ids=["stream", "errors"],
)
def test_the_python_snippets(page: Path, prints: str, address: str) -> None:
    (snippet,) = blocks(page, "python")
    code = snippet.replace("127.0.0.1:50051", address)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout.startswith(prints)


def test_the_snippet_of_the_python_client(address: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "clients/python/README.md").read_text(), re.DOTALL)
    code = code.replace("127.0.0.1:50051", address)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout == "You said: Hello! 8\nYou said: Hello!3 {0: 'stop'}\n"


def test_the_first_command() -> None:
    result = subprocess.run(["make", "demo", "ARGS="], cwd=ROOT, capture_output=True, text=True, timeout=50, check=True)
    assert result.stdout.count("You said: ") == 2
    assert "grpc_server_handled_total{" in result.stdout


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_the_readme_takes_queries_and_helm_commands_from_tested_pages() -> None:
    """tests/deploy holds those pages against the rules and the chart."""
    runbook, operating = ((ROOT / "docs" / name).read_text() for name in ("runbook.md", "operating.md"))
    (query,) = blocks(README, "promql")
    (command,) = (code for code in blocks(README, "sh") if "helm" in code)
    assert query in runbook
    assert command in operating


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page: Path) -> None:
    text = page.read_text()
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in set(re.findall(r"(?:^|`|… )make ([a-z-]+)", text, re.MULTILINE)):
        assert f"make {target} " in listed
    for command in set(re.findall(r"chatrpc-server ([a-z][a-z-]+)", text)):
        assert run(command, "--help").returncode == 0
